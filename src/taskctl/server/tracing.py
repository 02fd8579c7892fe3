"""Traces, by OpenTelemetry: a span for each request, one below it for each statement; exported by OTLP/HTTP.

Everything but whether there are any is set by OpenTelemetry's own variables, `OTEL_*`. Nothing here imports
OpenTelemetry's SDK before `Tracing()`. A span never has what may hold a secret or name a user: no path or
query as it was sent, only the route; no header; no statement's parameters.
"""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import structlog
from starlette.types import Scope

from taskctl import __version__
from taskctl.errors import SettingsInvalid

log: Any = structlog.get_logger()

_METHODS = frozenset(
    {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY"}
)
"""Any other is `_OTHER`, as OpenTelemetry's conventions want it."""

_FLUSH_SECONDS = 3.0
"""How long the end of the process may wait for the last spans to be sent."""


class Tracing:
    """Makes the spans of one process.

    Raises:
        SettingsInvalid: OpenTelemetry is not installed, or its variables are wrong.
    """

    def __init__(self) -> None:
        try:
            from opentelemetry import trace  # noqa: PLC0415 - an extra
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415 - an extra
                OTLPSpanExporter,
            )
            from opentelemetry.sdk import resources  # noqa: PLC0415 - an extra
            from opentelemetry.sdk.trace import TracerProvider, export  # noqa: PLC0415 - an extra
            from opentelemetry.trace.propagation import tracecontext  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise SettingsInvalid(
                "TASKCTL_TRACES=otlp needs the extra `otel`: pip install 'taskctl[otel]'"
            ) from error
        _check_protocol()
        # What the environment says of the service comes last, so that it wins.
        about: dict[str, Any] = {
            "service.name": "taskctl",
            "service.version": __version__,
            "process.pid": os.getpid(),
        }
        told = resources.Resource(about).merge(resources.OTELResourceDetector().detect())
        try:
            # Of its own: FastAPI traces by itself, and more than is wanted, where there is a global one.
            self._provider = TracerProvider(
                resource=resources.Resource.create().merge(told), shutdown_on_exit=False
            )
            exporter: Any = _Exporter(OTLPSpanExporter())
            self._provider.add_span_processor(export.BatchSpanProcessor(exporter))
        except ValueError as error:
            raise SettingsInvalid(f"one of the variables OTEL_* is wrong: {error}") from None
        self._tracer = self._provider.get_tracer("taskctl", __version__)
        self._trace = trace
        self._context = tracecontext.TraceContextTextMapPropagator()

    def begin(self, scope: Scope, request_id: str) -> Any:
        """The span of a request, which continues the trace that `traceparent` names (W3C Trace Context)."""
        method = scope["method"]
        attributes = {
            "http.request.method": method if method in _METHODS else "_OTHER",
            "url.scheme": scope["scheme"],
            "network.protocol.version": scope["http_version"],
            "taskctl.request_id": request_id,
        }
        server = scope.get("server")
        if server is not None and server[1] is not None:
            attributes |= {"server.address": server[0], "server.port": server[1]}
        return self._tracer.start_span(
            attributes["http.request.method"],
            context=self._parent(scope),
            kind=self._trace.SpanKind.SERVER,
            attributes=attributes,
        )

    def end(self, span: Any, *, route: str | None, status: int, answered: bool) -> None:
        """End the span of a request; `answered` is false where the client went away before."""
        if not span.is_recording():
            return
        if route is not None:
            span.set_attribute("http.route", route)
            span.update_name(f"{span.name} {route}")
        if answered:
            span.set_attribute("http.response.status_code", status)
        else:
            span.set_attribute("error.type", "client_disconnected")
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            span.set_attribute("error.type", str(status))
            span.set_status(self._trace.StatusCode.ERROR)
        span.end()

    def statement(self, span: Any, name: str, seconds: float, failure: str | None) -> None:
        """Note a statement of a request that has just ended.

        Args:
            span: the request's.
            name: the statement's; its parameters are never told.
            seconds: how long it took, with the wait for a connection.
            failure: the code that it ended with.
        """
        if not span.is_recording():
            return
        now = time.time_ns()
        attributes = {"db.system.name": "postgresql", "db.query.summary": name}
        if failure is not None:
            attributes["error.type"] = failure
        statement = self._tracer.start_span(
            name,
            context=self._trace.set_span_in_context(span),
            kind=self._trace.SpanKind.CLIENT,
            attributes=attributes,
            start_time=now - int(seconds * 1e9),
        )
        if failure is not None:
            statement.set_status(self._trace.StatusCode.ERROR)
        statement.end(now)

    async def close(self) -> None:
        """Send what is left, for `_FLUSH_SECONDS` at most."""
        loop = asyncio.get_running_loop()
        sent = asyncio.Event()

        def flush() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop has ended in the meantime
                loop.call_soon_threadsafe(sent.set)

        # Not `to_thread`: the end of the loop would wait for a thread of its pool, however long.
        threading.Thread(target=flush, daemon=True).start()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(sent.wait(), _FLUSH_SECONDS)

    def _parent(self, scope: Scope) -> Any:
        names = (b"traceparent", b"tracestate")
        sent = [(name.decode(), value.decode("latin-1")) for name, value in scope["headers"] if name in names]
        if [name for name, _ in sent].count("traceparent") != 1:
            return self._context.extract({})
        states = ",".join(value for name, value in sent if name == "tracestate")
        return self._context.extract(dict(sent) | ({"tracestate": states} if states else {}))


class _Exporter:
    """Passes spans on, and tells once that they cannot be sent, and once that they can again."""

    def __init__(self, exporter: Any) -> None:
        self._exporter = exporter
        self._lost = 0

    def export(self, spans: Sequence[Any]) -> Any:
        """Send some spans."""
        result = self._exporter.export(spans)
        if result.value == 0:
            if self._lost:
                log.info("traces_exported_again", lost=self._lost)
            self._lost = 0
        else:
            if not self._lost:
                log.warning("traces_not_exported", detail="spans are lost while nothing takes them")
            self._lost += len(spans)
        return result

    def shutdown(self) -> None:
        """Give up what is being sent."""
        self._exporter.shutdown()


def trace_id(span: Any) -> str:
    """The trace that a request's span is part of, as the log has it: 32 hexadecimal digits."""
    return f"{span.get_span_context().trace_id:032x}"


def _check_protocol() -> None:
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if os.environ.get(name, "").strip() not in {"", "http/protobuf"}:
            raise SettingsInvalid(f"{name} is wrong: traces are sent as http/protobuf only")
