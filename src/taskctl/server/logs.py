"""Logging: one event a line, JSON for machines or a readable line for people; uvicorn's own in the same form.

Values are always escaped by the renderer, so nothing that a client sends can start a line of its own.
"""

import json
import logging
import logging.config
import os
import sys
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any

import structlog

from taskctl.config import ServerSettings
from taskctl.setting import LogFormat

_JSON = json.JSONEncoder(default=str)
_LEVELS = {"exception": "error", "warn": "warning", "fatal": "critical"}
"""The levels of those methods that are not named for theirs."""


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
    """Time, level and event at the start of the line, where people look for them.

    One step instead of structlog's several: there is an event for every request.
    """
    return {
        "timestamp": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
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
