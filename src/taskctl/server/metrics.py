"""What the server counts, as Prometheus reads it.

One process keeps its numbers in memory. Several workers of one `serve` keep them in files of a directory that
`shared` makes, so that any of them answers for all, and what a worker counted outlives it. Counters and
histograms are `Tallies`; gauges are prometheus_client's, which settles whether they are shared when it is
imported, and that is why nothing here imports it before `Metrics()`.
"""

import contextlib
import itertools
import math
import os
import platform
import shutil
import tempfile
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from taskctl import __version__
from taskctl.jwks import Freshness, State
from taskctl.server.tallies import Row, Tallies

if TYPE_CHECKING:
    from prometheus_client import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SAMPLING_SECONDS = 1.0
"""How old the gauges of the other workers may be."""

_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_OTHER = "other"
"""Stands for every route and method that this server does not have: labels must be few."""

_REQUEST_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_STATEMENT_BUCKETS = (0.0005, *_REQUEST_BUCKETS)

_REQUESTS, _DURATIONS = "taskctl_http_requests", "taskctl_http_request_duration_seconds"
_STATEMENTS, _STATEMENT_FAILURES = "taskctl_statement_duration_seconds", "taskctl_statement_failures"
_POOL_TIMEOUTS, _AUTHENTICATIONS = "taskctl_pool_timeouts", "taskctl_authentications"
_DECISIONS, _STORAGE_FAILURES = "taskctl_rate_limit_decisions", "taskctl_rate_limit_storage_failures"
_KEY_SET_FETCHES = "taskctl_key_set_fetches"

_COUNTERS = {
    _REQUESTS: (("method", "route", "status"), "Requests that were answered."),
    _STATEMENT_FAILURES: (("statement", "code"), "Statements that failed, by the code that was answered."),
    _POOL_TIMEOUTS: ((), "Requests that got no connection, as all were busy."),
    _AUTHENTICATIONS: (
        ("code",),
        (
            "Tokens that were looked at, by outcome: `accepted`, or the code of the refusal. One that may "
            "not do what it is sent for is in both."
        ),
    ),
    _DECISIONS: (
        ("limit", "decision"),
        "Decisions of the limiter: which limit, and `allowed` or `refused`.",
    ),
    _STORAGE_FAILURES: ((), "How often the limiter's storage could not be asked."),
    _KEY_SET_FETCHES: (
        ("outcome",),
        "Fetches of the issuer's key set, by outcome: `ok`, or why it could not be had.",
    ),
}
_HISTOGRAMS = {
    _DURATIONS: (
        ("method", "route", "status"),
        _REQUEST_BUCKETS,
        "Time from a request's head to the end of its answer.",
    ),
    _STATEMENTS: (
        ("statement",),
        _STATEMENT_BUCKETS,
        "Time of a statement as a request sees it, with its wait for a connection.",
    ),
}
"""By name: labels, the buckets' upper bounds, and what it is."""


class Metrics:
    """The metrics of one application, in a registry of their own."""

    def __init__(self, pool: Callable[[], Mapping[str, int]]) -> None:
        from prometheus_client import CollectorRegistry, Gauge  # noqa: PLC0415

        self._directory = shared_directory()
        self._pool = pool
        self._registry = registry = CollectorRegistry()
        self.in_flight = self.streams = 0
        self._tallies = Tallies(self._directory)
        registry.register(_Tallied(self._tallies))
        self._pool_timeouts = self._tallies.row((_POOL_TIMEOUTS,))
        self._storage_failures = self._tallies.row((_STORAGE_FAILURES,))
        self._key_set: Callable[[], State] | None = None
        self._key_set_gauges: dict[str, Any] = {}
        self._gauges = {
            name: Gauge(f"taskctl_{name}", text, multiprocess_mode="livesum", registry=registry)
            for name, text in (
                ("http_requests_in_flight", "Requests that are being answered, this one included."),
                ("streams", "Streams of changes that are open; they are no requests in flight."),
                ("pool_connections_max", "Connections to the database that there may be."),
                ("pool_connections", "Connections to the database that there are."),
                ("pool_connections_idle", "Connections that no statement uses."),
                ("pool_waiting", "Requests that wait for a connection."),
            )
        }
        Gauge(
            "taskctl_build_info",
            "1, with the versions of taskctl and Python.",
            ("version", "python"),
            multiprocess_mode="max",
            registry=registry,
        ).labels(__version__, platform.python_version()).set(1)
        self._requests: dict[tuple[str, str | None, int], Row] = {}
        """The rows of requests by what they are told of, as labels take some steps to make."""

    @property
    def shared(self) -> bool:
        """Whether there are other workers that count into the same numbers."""
        return self._directory is not None

    def request_ended(self, method: str, route: str | None, status: int, seconds: float) -> None:
        """Count one request; `route` is the template, None where there was none."""
        row = self._requests.get((method, route, status))
        if row is None:
            known = method in _METHODS
            labels = (method if known else _OTHER, route or _OTHER, str(status))
            row = self._tallies.row((_DURATIONS, *labels))
            if known:
                self._requests[method, route, status] = row
        _observe(row, _REQUEST_BUCKETS, seconds)

    def statement_ended(self, name: str, seconds: float) -> None:
        """Count one statement."""
        _observe(self._tallies.row((_STATEMENTS, name)), _STATEMENT_BUCKETS, seconds)

    def statement_failed(self, name: str, code: str) -> None:
        """Count one statement that failed."""
        self._tallies.row((_STATEMENT_FAILURES, name, code))[0] += 1
        if code == "overloaded":
            self._pool_timeouts[0] += 1

    def authenticated(self, code: str) -> None:
        """Count what became of a token: `accepted`, or the code of the refusal."""
        self._tallies.row((_AUTHENTICATIONS, code))[0] += 1

    def decided(self, limit: str, decision: str) -> None:
        """Count a decision of the limiter."""
        self._tallies.row((_DECISIONS, limit, decision))[0] += 1

    def storage_failed(self) -> None:
        """Count that the limiter's storage could not be asked."""
        self._storage_failures[0] += 1

    def key_set_fetched(self, outcome: str) -> None:
        """Count one fetch of the key set."""
        self._tallies.row((_KEY_SET_FETCHES, outcome))[0] += 1

    def watch_key_set(self, state: Callable[[], State]) -> None:
        """Show the key set's state from now on; that of several workers' which is the worst off."""
        from prometheus_client import Gauge  # noqa: PLC0415

        self._key_set = state
        gauges: tuple[tuple[str, Literal["livemin", "livemax"], str], ...] = (
            ("keys", "livemin", "Keys of the issuer that may be used."),
            ("age_seconds", "livemax", "Time since the key set was fetched; NaN where it never was."),
            ("stale", "livemax", "1 while the keys are older than they should be, or there are none."),
        )
        self._key_set_gauges = {
            name: Gauge(f"taskctl_key_set_{name}", text, multiprocess_mode=mode, registry=self._registry)
            for name, mode, text in gauges
        }

    def sample(self) -> None:
        """Set the gauges to what is the case now."""
        if self._key_set is not None:
            state = self._key_set()
            self._key_set_gauges["keys"].set(state.keys)
            self._key_set_gauges["age_seconds"].set(
                math.nan if state.age_seconds is None else state.age_seconds
            )
            self._key_set_gauges["stale"].set(state.freshness is not Freshness.fresh)
        pool = self._pool()
        for name, value in (
            ("http_requests_in_flight", self.in_flight),
            ("streams", self.streams),
            ("pool_connections_max", pool["max"]),
            ("pool_connections", pool["open"]),
            ("pool_connections_idle", pool["idle"]),
            ("pool_waiting", pool["waiting"]),
        ):
            self._gauges[name].set(value)

    def render(self) -> bytes:
        """All metrics of all workers in Prometheus's text format; the gauges as `sample` left them."""
        from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415
        from prometheus_client.multiprocess import MultiProcessCollector  # noqa: PLC0415

        registry = self._registry
        if self._directory is not None:
            registry = CollectorRegistry()
            registry.register(_Tallied(self._tallies))
            MultiProcessCollector(registry, path=str(self._directory))  # type: ignore[no-untyped-call]
        return generate_latest(registry)


class _Tallied:
    """What was tallied, as prometheus_client's registry collects it."""

    def __init__(self, tallies: Tallies) -> None:
        self._tallies = tallies

    def collect(self) -> Iterator["Metric"]:
        """Every counter and histogram, also those that have nothing yet."""
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily  # noqa: PLC0415

        rows: dict[str, dict[tuple[str, ...], list[float]]] = defaultdict(dict)
        for (name, *labels), row in sorted(self._tallies.totals().items()):
            rows[name][tuple(labels)] = row
        # A request's duration was observed when it was answered: there is no need to count both.
        rows[_REQUESTS] = {labels: [sum(row[1:])] for labels, row in rows[_DURATIONS].items()}
        for name, (names, text) in _COUNTERS.items():
            counter = CounterMetricFamily(name, text, labels=names)
            for values, row in rows[name].items():
                counter.add_metric(values, row[0])
            yield counter
        for name, (names, buckets, text) in _HISTOGRAMS.items():
            histogram = HistogramMetricFamily(name, text, labels=names)
            for values, (seconds, *counts) in rows[name].items():
                bounds = [*(str(bound) for bound in buckets), "+Inf"]
                # What room the row has beyond its buckets is empty.
                cumulated = zip(bounds, itertools.accumulate(counts), strict=False)
                histogram.add_metric(values, list(cumulated), seconds)
            yield histogram


def _observe(row: Row, buckets: Sequence[float], seconds: float) -> None:
    """Add to a histogram: its sum, and how many fell into each bucket; the last one has no bound."""
    row[0] += seconds
    row[bisect_left(buckets, seconds) + 1] += 1


def shared_directory() -> Path | None:
    """Where the workers of this `serve` share what they count; None where there is one process."""
    name = os.environ.get(_DIRECTORY)
    return Path(name) if name else None


@contextlib.contextmanager
def shared(workers: int) -> Iterator[None]:
    """For the process that starts the workers, before it does: what they count is shared until the end.

    One worker needs nothing of the kind, and what an outer program has set is not meant for it.
    """
    previous = os.environ.pop(_DIRECTORY, None)
    directory = Path(tempfile.mkdtemp(prefix="taskctl-serve-")) if workers > 1 else None
    if directory is not None:
        os.environ[_DIRECTORY] = str(directory)
    try:
        yield
    finally:
        os.environ.pop(_DIRECTORY, None)
        if previous is not None:
            os.environ[_DIRECTORY] = previous
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)


def forget_worker(pid: int) -> None:
    """Drop the gauges of a worker that has ended; its counters stay, as they may only grow."""
    if (directory := shared_directory()) is not None:
        for file in directory.glob(f"gauge_live*_{pid}.db"):
            file.unlink(missing_ok=True)
