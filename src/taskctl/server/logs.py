"""Logging: one event a line, JSON for machines or a readable line for people; uvicorn's own in the same form.

Values are always escaped by the renderer, so nothing that a client sends can start a line of its own.
"""

import json
import logging
import logging.config
import os
import sys
import time
from collections.abc import Callable, MutableMapping
from typing import Any

import structlog

from taskctl.config import ServerSettings
from taskctl.setting import LogFormat

log: Any = structlog.get_logger()

_JSON = json.JSONEncoder(default=str)
_LEVELS = {"exception": "error", "warn": "warning", "fatal": "critical"}
"""The levels of those methods that are not named for theirs."""


class _Clock:
    """The time as events have it: UTC, microseconds, `Z`. All but the fraction is made once a second."""

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def __call__(self) -> str:
        second, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        if second != self._second:
            self._second, self._text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._text}.{nanoseconds // 1000:06d}Z"


_now = _Clock()


class RequestLog:
    """The event of each request, in JSON without structlog, whose steps would be 15 % of a read's cost."""

    def __init__(self) -> None:
        self.write: Callable[[str], object] | None = None
        """Takes whole lines; None where structlog writes these events as all others, or drops them."""

    def ended(
        self,
        *,
        request_id: str,
        trace_id: str | None,
        user_id: str | None,
        method: str,
        route: str | None,
        status: int,
        duration_ms: float,
        db_ms: float | None,
        size: int,
        client: str | None,
    ) -> None:
        """Log a request that has ended; `trace_id` is left out where there are no traces."""
        if self.write is None:
            names = {"request_id": request_id} | ({} if trace_id is None else {"trace_id": trace_id})
            log.info(
                "request",
                **names,
                user_id=user_id,
                method=method,
                route=route,
                status=status,
                duration_ms=duration_ms,
                db_ms=db_ms,
                bytes=size,
                client=client,
            )
            return
        quote = _JSON.encode  # at its best with texts
        trace = "" if trace_id is None else f'"trace_id": {quote(trace_id)}, '
        self.write(
            f'{{"timestamp": "{_now()}", "level": "info", "event": "request", '
            f'"request_id": {quote(request_id)}, {trace}'
            f'"user_id": {"null" if user_id is None else quote(user_id)}, '
            f'"method": {quote(method)}, "route": {"null" if route is None else quote(route)}, '
            f'"status": {status}, "duration_ms": {duration_ms}, '
            f'"db_ms": {"null" if db_ms is None else db_ms}, "bytes": {size}, '
            f'"client": {"null" if client is None else quote(client)}}}\n'
        )


requests = RequestLog()
"""Of this process; `configure` sets it up."""


def configure(settings: ServerSettings) -> None:
    """Set up structlog and the standard library's logging to write to stderr, as the settings say."""
    shared: list[Any] = [_begin]
    renderer: list[Any]
    if settings.log_format is LogFormat.json:
        renderer = [structlog.processors.format_exc_info, _as_json]
    else:
        renderer = [
            structlog.processors.format_exc_info,
            _escape,
            # structlog's own choice, rich, would print the values of local variables: tokens, passwords.
            structlog.dev.ConsoleRenderer(
                colors=_colors(), exception_formatter=structlog.dev.plain_traceback
            ),
        ]
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    direct = settings.log_format is LogFormat.json and level <= logging.INFO
    requests.write = sys.stderr.write if direct else None
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "structlog": {
                    "()": structlog.stdlib.ProcessorFormatter,
                    "foreign_pre_chain": [*shared, structlog.stdlib.ExtraAdder(allow=())],
                    "processors": [structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
                }
            },
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "structlog"}},
            "root": {"handlers": ["stderr"], "level": level},
            # What these tell of an ordinary day is said by this service's own events, once.
            "loggers": {
                "alembic": {"level": "WARNING"},
                "httpx": {"level": "WARNING"},
                "opentelemetry.exporter.otlp.proto.http.trace_exporter": {"level": "CRITICAL"},
                "opentelemetry.sdk._shared_internal": {"level": "CRITICAL"},
                "psycopg.pool": {"level": "ERROR"},
                "uvicorn": {"level": "WARNING"},
            },
        }
    )


def _colors() -> bool:
    """Whether stderr gets colours: a terminal does, unless NO_COLOR says no; FORCE_COLOR says yes."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or sys.stderr.isatty()


def _begin(_logger: object, method: str, event: MutableMapping[str, Any]) -> dict[str, Any]:
    """Time, level and event at the start of the line, where people look for them."""
    return {
        "timestamp": _now(),
        "level": _LEVELS.get(method, method),
        "event": event.pop("event", None),
        **event,
    }


def _as_json(_logger: object, _method: str, event: dict[str, Any]) -> str:
    return _JSON.encode(event)


def _escape(_logger: object, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    """Keep control characters from the terminal; the JSON renderer does so by itself."""
    return {
        name: "\n".join(_printable(line) for line in value.split("\n"))
        if name in {"exception", "stack"} and isinstance(value, str)
        else _printable(value)
        for name, value in event.items()
    }


def _printable(value: Any) -> Any:
    text = value if isinstance(value, str) else repr(value)
    return value if text.isprintable() else ascii(text)
