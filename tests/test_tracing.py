"""Traces: what a collector gets of requests and their statements, and what it must never get."""

import gzip
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from conftest import SECRET, Server, User, bare_environ, free_port, stop, until, wait_until_ready
from taskctl.errors import SettingsInvalid
from taskctl.server.tracing import Tracing

ROUTE = "/api/v1/{user_id}/tasks"
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


class Collector(ThreadingHTTPServer):
    """Takes what an exporter sends, as an OpenTelemetry collector does."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Receiver)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.raw: list[bytes] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def spans(self) -> list[dict[str, Any]]:
        """Every span that came, with its resource's attributes under `resource`."""
        found = []
        for body in list(self.raw):
            message = ExportTraceServiceRequest()
            message.ParseFromString(body)
            for resource in message.resource_spans:
                about = attributes(resource.resource.attributes)
                found += [
                    {
                        "name": span.name,
                        "trace": span.trace_id.hex(),
                        "id": span.span_id.hex(),
                        "parent": span.parent_span_id.hex(),
                        "kind": span.kind,
                        "error": span.status.code == span.status.STATUS_CODE_ERROR,
                        "start": span.start_time_unix_nano,
                        "end": span.end_time_unix_nano,
                        "attributes": attributes(span.attributes),
                        "resource": about,
                    }
                    for scope in resource.scope_spans
                    for span in scope.spans
                ]
        return found

    def requests(self, **wanted: Any) -> list[dict[str, Any]]:
        """The spans of requests to the API that have these values."""
        return [
            span
            for span in self.spans
            if span["kind"] == 2
            and ROUTE in span["name"]
            and all(span[name] == value for name, value in wanted.items())
        ]

    def close(self) -> None:
        """Listen no more."""
        self.shutdown()
        self.server_close()


class Receiver(BaseHTTPRequestHandler):
    """One export."""

    server: Collector

    def do_POST(self) -> None:
        """Keep it and say so."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Content-Encoding"] == "gzip":
            body = gzip.decompress(body)
        assert self.path == "/v1/traces"
        self.server.raw.append(body)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing on stderr."""


def attributes(pairs: Any) -> dict[str, Any]:
    """A message's attributes as a dictionary."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector that listens."""
    server = Collector()
    yield server
    server.close()


@pytest.fixture
def traced(launch: Callable[..., Server], database_url: str, collector: Collector) -> Callable[..., Server]:
    """Start a server that sends its spans to the collector at once, with JSON for its log."""

    def start(*arguments: str, **variables: str) -> Server:
        usual = {
            "TASKCTL_ENV": "test",
            "DATABASE_URL": database_url,
            "BETTER_AUTH_SECRET": SECRET,
            "TASKCTL_TRACES": "otlp",
            "TASKCTL_LOG_FORMAT": "json",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }
        return wait_until_ready(launch(*arguments, **usual | variables))

    return start


def events(server: Server, name: str) -> list[dict[str, Any]]:
    """The log's events of a name."""
    lines = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == name]


def test_a_request_and_its_statement(traced: Callable[..., Server], collector: Collector, user: User) -> None:
    """A request is a span that continues the caller's trace, its statement one below; the log names it."""
    server = traced()
    parent = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-ID": "ours"}
    answer = httpx.get(f"{server.url}/api/v1/me/tasks?limit=5", headers=user.headers | parent)
    assert answer.status_code == 200
    [request] = until(lambda: collector.requests(trace=TRACE))
    assert (request["name"], request["parent"], request["error"]) == (f"GET {ROUTE}", PARENT, False)
    port = int(server.url.rpartition(":")[2])
    assert request["attributes"] == {
        "http.request.method": "GET",
        "http.route": ROUTE,
        "http.response.status_code": 200,
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "server.address": "127.0.0.1",
        "server.port": port,
        "taskctl.request_id": "ours",
    }
    assert request["resource"]["service.name"] == "taskctl"
    [statement] = [span for span in collector.spans if span["parent"] == request["id"]]
    assert (statement["trace"], statement["kind"]) == (TRACE, 3)
    assert statement["attributes"] == {"db.system.name": "postgresql", "db.query.summary": statement["name"]}
    assert statement["name"] == "list_all_asc"
    assert request["start"] <= statement["start"] <= statement["end"] <= request["end"]
    [event] = [event for event in events(server, "request") if event["request_id"] == "ours"]
    assert event["trace_id"] == TRACE


def test_nothing_of_a_person_is_sent(traced: Callable[..., Server], collector: Collector, user: User) -> None:
    """Spans hold no token, no user id, no query, no title and no path as it was sent."""
    server = traced()
    with httpx.Client(base_url=server.url, headers=user.headers) as client:
        client.post("/api/v1/me/tasks", json={"title": "a-private-title"})
        client.get(f"/api/v1/{user.id}/tasks?access_token=query-secret")
        client.get(f"/api/v1/{user.id}/tasks/1")
        client.get("/path-secret", headers={"Cookie": "cookie-secret"})
        client.request("PURGE", "/api/v1/me/tasks")
    assert stop(server) == 0
    assert len(collector.spans) == 7
    sent = b"".join(collector.raw)
    for secret in (user.token, user.id, "a-private-title", "secret", "PURGE", "access_token"):
        assert secret.encode() not in sent
    assert "_OTHER" in {span["attributes"].get("http.request.method") for span in collector.spans}


def test_traces_of_callers_who_send_nonsense(
    traced: Callable[..., Server], collector: Collector, user: User
) -> None:
    """A `traceparent` that is none, or comes twice, starts another trace; an unsampled one sends nothing."""
    server = traced()
    url = f"{server.url}/api/v1/me/tasks"
    sent = f"00-{TRACE}-{PARENT}-01"
    for values in (["nonsense"], [sent, sent], ["00-" + "0" * 32 + f"-{PARENT}-01"], ["\u00e9" * 300]):
        headers = [*user.headers.items(), *(("traceparent", value) for value in values)]
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
        assert httpx.get(url, headers=raw).status_code == 200
    unsampled = httpx.get(url, headers=user.headers | {"traceparent": f"00-{'1' * 32}-{PARENT}-00"})
    assert unsampled.status_code == 200
    assert stop(server) == 0
    assert {event["trace_id"] for event in events(server, "request")} >= {"1" * 32}
    assert "Traceback" not in server.log.read_text()
    assert len(collector.requests(parent="")) == 4
    assert len({span["trace"] for span in collector.requests()} - {TRACE}) == 4


def test_failures_are_errors(
    traced: Callable[..., Server], collector: Collector, database_url: str, user: User
) -> None:
    """A refusal is no error of the server's; a statement that failed is one, and so is its request."""
    server = traced(TASKCTL_STATEMENT_TIMEOUT="0.1")
    with httpx.Client(base_url=f"{server.url}/api/v1/me/", headers=user.headers) as client:
        assert client.post("tasks", json={"title": "x"}).status_code == 201
        assert client.get("tasks/9").status_code == 404
        with psycopg.connect(database_url) as connection:
            connection.execute("SELECT FROM task WHERE user_id = %s FOR UPDATE", [user.id])
            assert client.patch("tasks/1", json={"title": "y"}).status_code == 503
    assert stop(server) == 0
    [refused] = collector.requests(name=f"GET {ROUTE}/{{task_id}}")
    assert (refused["error"], "error.type" in refused["attributes"]) == (False, False)
    [failed] = collector.requests(error=True)
    assert failed["attributes"]["error.type"] == "503"
    [statement] = [span for span in collector.spans if span["parent"] == failed["id"]]
    assert (statement["error"], statement["attributes"]["error.type"]) == (True, "statement_timeout")


def test_a_client_that_goes_away(traced: Callable[..., Server], collector: Collector, user: User) -> None:
    """A request whose client left has no status, and says why."""
    server = traced()
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        head = f"POST /api/v1/me/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {user.token}\r\n"
        connection.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
    [request] = until(collector.requests)
    assert "http.response.status_code" not in request["attributes"]
    assert request["attributes"]["error.type"] == "client_disconnected"


def test_workers_trace_and_end(traced: Callable[..., Server], collector: Collector, user: User) -> None:
    """Each of several workers sends its own spans, and what is left when it ends."""
    server = traced("--workers", "2", OTEL_BSP_SCHEDULE_DELAY="60000", OTEL_SERVICE_NAME="tasks-eu")
    for number in range(40):
        headers = user.headers | {"X-Request-ID": f"r{number}", "Connection": "close"}
        assert httpx.get(f"{server.url}/api/v1/me/tasks", headers=headers).status_code == 200
    assert collector.raw == []
    assert stop(server) == 0
    spans = collector.requests()
    assert {span["attributes"]["taskctl.request_id"] for span in spans} == {f"r{n}" for n in range(40)}
    assert {span["resource"]["service.name"] for span in spans} == {"tasks-eu"}


def test_a_collector_that_is_away_costs_nothing(traced: Callable[..., Server], user: User) -> None:
    """Without a collector requests are served, the log says so once, and the end does not wait for it."""
    port = free_port()
    server = traced(OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}", OTEL_EXPORTER_OTLP_TIMEOUT="1")

    def ask() -> httpx.Response:
        return httpx.get(f"{server.url}/api/v1/me/tasks", headers=user.headers)

    assert ask().status_code == 200
    until(lambda: events(server, "traces_not_exported"))
    assert ask().status_code == 200
    collector = Collector(port)
    until(lambda: ask().status_code == 200 and events(server, "traces_exported_again"))
    collector.close()
    assert stop(server) == 0
    text = server.log.read_text()
    assert "Traceback" not in text
    assert {json.loads(line)["event"] for line in text.splitlines()} <= {
        "auth_accepted",
        "database_connected",
        "listening",
        "ready",
        "request",
        "traces_not_exported",
        "traces_exported_again",
    }
    [again] = events(server, "traces_exported_again")
    assert again["lost"] >= 1


def test_off_loads_nothing(database_url: str, tmp_path: Path) -> None:
    """Left off, nothing of OpenTelemetry but what FastAPI itself brings is loaded."""
    code = """
import os, sys
from taskctl.config import ServerSettings
from taskctl.server.app import create_app
app = create_app(ServerSettings.load(os.environ, env_file=None))
print([name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))])
"""
    variables = {"TASKCTL_ENV": "test", "DATABASE_URL": database_url, "BETTER_AUTH_SECRET": SECRET}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=bare_environ(tmp_path, **variables, OTEL_TRACES_EXPORTER="otlp"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_a_missing_extra_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra the setting is refused, with what to install."""
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    with pytest.raises(SettingsInvalid, match=re.escape("pip install 'taskctl[otel]'")):
        Tracing()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-1"),
    ],
)
def test_wrong_variables_are_told(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """What OpenTelemetry's variables ask for and is not there ends the start, with a sentence."""
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsInvalid, match="OTEL_"):
        Tracing()
