"""What the server counts, as Prometheus reads it.

One process keeps its numbers in memory. Several workers of one `serve` keep them in files of a directory that
`shared` makes, so that any of them answers for all, and what a worker counted outlives it. prometheus_client
settles which of the two it is when it is imported, which is why nothing here imports it before `Metrics()`.
"""

import contextlib
import math
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from taskctl import __version__
from taskctl.jwks import Freshness, State

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SAMPLING_SECONDS = 1.0
"""How old the gauges of the other workers may be."""

_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_OTHER = "other"
"""Stands for every route and method that this server does not have: labels must be few."""

_REQUEST_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_STATEMENT_BUCKETS = (0.0005, *_REQUEST_BUCKETS)


class Metrics:
    """The metrics of one application, in a registry of their own."""

    def __init__(self, pool: Callable[[], Mapping[str, int]]) -> None:
        from prometheus_client import (  # noqa: PLC0415
            CollectorRegistry,
            Counter,
            Gauge,
            Histogram,
            disable_created_metrics,
        )

        # Without it each counter has a second series that nobody asks for.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._directory = shared_directory()
        self._pool = pool
        self._registry = registry = CollectorRegistry()
        self.in_flight = self.streams = 0
        self._requests = Counter(
            "taskctl_http_requests",
            "Requests that were answered.",
            ("method", "route", "status"),
            registry=registry,
        )
        self._durations = Histogram(
            "taskctl_http_request_duration_seconds",
            "Time from a request's head to the end of its answer.",
            ("method", "route", "status"),
            buckets=_REQUEST_BUCKETS,
            registry=registry,
        )
        self._statements = Histogram(
            "taskctl_statement_duration_seconds",
            "Time of a statement as a request sees it, with its wait for a connection.",
            ("statement",),
            buckets=_STATEMENT_BUCKETS,
            registry=registry,
        )
        self._statement_failures = Counter(
            "taskctl_statement_failures",
            "Statements that failed, by the code that was answered.",
            ("statement", "code"),
            registry=registry,
        )
        self._pool_timeouts = Counter(
            "taskctl_pool_timeouts",
            "Requests that got no connection, as all were busy.",
            registry=registry,
        )
        self._authentications = Counter(
            "taskctl_authentications",
            "Tokens that were looked at, by outcome: `accepted`, or the code of the refusal. One that may "
            "not do what it is sent for is in both.",
            ("code",),
            registry=registry,
        )
        self._decisions = Counter(
            "taskctl_rate_limit_decisions",
            "Decisions of the limiter: which limit, and `allowed` or `refused`.",
            ("limit", "decision"),
            registry=registry,
        )
        self.storage_failed = Counter(
            "taskctl_rate_limit_storage_failures",
            "How often the limiter's storage could not be asked.",
            registry=registry,
        ).inc
        self._key_set_fetches = Counter(
            "taskctl_key_set_fetches",
            "Fetches of the issuer's key set, by outcome: `ok`, or why it could not be had.",
            ("outcome",),
            registry=registry,
        )
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
        self._request_cells: dict[tuple[str, str | None, int], tuple[Any, Any]] = {}
        self._cells: dict[tuple[Any, ...], Any] = {}

    @property
    def shared(self) -> bool:
        """Whether there are other workers that count into the same numbers."""
        return self._directory is not None

    def request_ended(self, method: str, route: str | None, status: int, seconds: float) -> None:
        """Count one request; `route` is the template, None where there was none."""
        cells = self._request_cells.get((method, route, status))
        if cells is None:
            labels = (method if method in _METHODS else _OTHER, route or _OTHER, str(status))
            cells = self._requests.labels(*labels).inc, self._durations.labels(*labels).observe
            if labels[0] == method:
                self._request_cells[method, route, status] = cells
        cells[0]()
        cells[1](seconds)

    def statement_ended(self, name: str, seconds: float) -> None:
        """Count one statement."""
        self._cell(self._statements, name).observe(seconds)

    def statement_failed(self, name: str, code: str) -> None:
        """Count one statement that failed."""
        self._cell(self._statement_failures, name, code).inc()
        if code == "overloaded":
            self._pool_timeouts.inc()

    def authenticated(self, code: str) -> None:
        """Count what became of a token: `accepted`, or the code of the refusal."""
        self._cell(self._authentications, code).inc()

    def decided(self, limit: str, decision: str) -> None:
        """Count a decision of the limiter."""
        self._cell(self._decisions, limit, decision).inc()

    def key_set_fetched(self, outcome: str) -> None:
        """Count one fetch of the key set."""
        self._cell(self._key_set_fetches, outcome).inc()

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
            MultiProcessCollector(registry, path=str(self._directory))  # type: ignore[no-untyped-call]
        return generate_latest(registry)

    def _cell(self, metric: Any, *labels: str) -> Any:
        key = (metric, *labels)
        cell = self._cells.get(key)
        if cell is None:
            cell = self._cells[key] = metric.labels(*labels)
        return cell


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
