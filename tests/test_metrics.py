"""What `/metrics` says, who may read it, how several processes count together, what the dashboard asks."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from conftest import SECRET, bare_environ, client_of, free_port, make_settings, make_user, until
from taskctl import __version__
from taskctl.errors import catalogue
from taskctl.server import metrics
from taskctl.server.app import create_app

TASKS = "/api/v1/me/tasks"
DASHBOARD = Path(__file__).parents[1] / "deploy" / "grafana-dashboard.json"
TOKEN = "a-token-for-prometheus"

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parse(text: str) -> Samples:
    """Every sample by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(samples: Samples, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels."""
    wanted = labels.items()
    return sum(value for (each, has), value in samples.items() if each == name and wanted <= has)


def labels(samples: Samples, name: str, label: str) -> set[str]:
    """All values of a label."""
    return {dict(has)[label] for each, has in samples if each == name}


async def scrape(client: httpx.AsyncClient) -> Samples:
    """Read the metrics."""
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    return parse(answer.text)


@contextlib.asynccontextmanager
async def running(database_url: str, **variables: str) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    """An application of its own, started, and a client of it."""
    application = create_app(make_settings(database_url, **variables))
    async with application.router.lifespan_context(application), client_of(application) as client:
        yield application, client


@pytest.fixture
async def fresh(database_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application that has counted nothing yet."""
    async with running(database_url) as (_, client):
        yield client


async def test_requests_are_counted_by_template(fresh: httpx.AsyncClient) -> None:
    """Requests count by method, route template and status, with their durations."""
    user = make_user()
    for _ in range(3):
        await fresh.post(TASKS, json={"title": "x"}, headers=user.headers)
    for number in range(1, 5):
        await fresh.get(f"{TASKS}/{number}", headers=user.headers)
    await fresh.head(TASKS, headers=user.headers)
    await fresh.get(TASKS)
    samples = await scrape(fresh)
    route = "/api/v1/{user_id}/tasks"
    for name in ("taskctl_http_requests_total", "taskctl_http_request_duration_seconds_count"):
        assert total(samples, name) == 9
        assert total(samples, name, method="POST", route=route, status="201") == 3
        assert total(samples, name, method="GET", route=f"{route}/{{task_id}}", status="200") == 3
        assert total(samples, name, method="GET", route=f"{route}/{{task_id}}", status="404") == 1
        assert total(samples, name, method="HEAD", route=route, status="200") == 1
        assert total(samples, name, method="GET", route=route, status="401") == 1
    assert 0 < total(samples, "taskctl_http_request_duration_seconds_sum") < 9
    assert total(samples, "taskctl_http_request_duration_seconds_bucket", le="+Inf") == 9


async def test_pages_have_their_route(fresh: httpx.AsyncClient) -> None:
    """The documentation and the errors' pages count by their template, as everything else does."""
    for path in ("/docs", "/redoc", "/errors/bad_request", "/errors/not_found"):
        await fresh.get(path)
    samples = await scrape(fresh)
    assert {"/docs", "/redoc", "/errors/{code}"} <= labels(samples, "taskctl_http_requests_total", "route")


async def test_labels_are_few(fresh: httpx.AsyncClient) -> None:
    """Routes that do not exist are one value, methods that nobody has are another; ids are no labels."""
    user = make_user("somebody-whom-no-metric-names")
    for number in range(30):
        await fresh.request(f"METHOD{number}", f"/nowhere/{number}")
        await fresh.get(f"/wp-admin/{number}.php")
        await fresh.get(f"/errors/{number}")
        await fresh.get(f"{TASKS}/{number}", headers=user.headers)
    answer = await fresh.get("/metrics")
    samples = parse(answer.text)
    name = "taskctl_http_requests_total"
    assert labels(samples, name, "method") == {"GET", "other"}
    assert len(labels(samples, name, "route")) <= 3
    assert {route for route in labels(samples, name, "route") if not route.startswith("/")} == {"other"}
    assert total(samples, name) == 120
    assert user.id not in answer.text


async def test_statements_and_pool(fresh: httpx.AsyncClient) -> None:
    """Statements count by name with their time; the pool tells what it has."""
    user = make_user()
    for _ in range(2):
        await fresh.post(TASKS, json={"title": "x"}, headers=user.headers)
    await fresh.get(f"{TASKS}/1", headers=user.headers)
    samples = await scrape(fresh)
    name = "taskctl_statement_duration_seconds"
    assert labels(samples, f"{name}_count", "statement") == {"create_task", "read_task"}
    assert total(samples, f"{name}_count", statement="create_task") == 2
    assert 0 < total(samples, f"{name}_sum", statement="create_task") < 5
    assert total(samples, "taskctl_pool_connections_max") == 10
    assert total(samples, "taskctl_pool_connections") >= total(samples, "taskctl_pool_connections_idle") >= 1
    assert total(samples, "taskctl_pool_waiting") == 0
    assert total(samples, "taskctl_http_requests_in_flight") == 1
    build = {"version": __version__}
    assert total(samples, "taskctl_build_info", **build) == 1


async def test_exhausted_pool_is_seen(database_url: str) -> None:
    """Requests that wait for a connection are seen waiting; those that got none are counted."""
    user = make_user()
    variables = {"TASKCTL_POOL_SIZE": "1", "TASKCTL_POOL_TIMEOUT": "500ms"}
    async with running(database_url, **variables) as (_, client):
        assert (await client.post(TASKS, json={"title": "x"}, headers=user.headers)).status_code == 201
        async with await psycopg.AsyncConnection.connect(database_url) as locker:
            await locker.execute("SELECT FROM task WHERE user_id = %s FOR UPDATE", [user.id])
            busy = asyncio.create_task(client.patch(f"{TASKS}/1", json={"title": "y"}, headers=user.headers))
            while total(await scrape(client), "taskctl_pool_connections_idle") > 0:
                pass
            waiting = asyncio.create_task(client.get(TASKS, headers=user.headers))
            while (seen := await scrape(client)) and not total(seen, "taskctl_pool_waiting"):
                pass
            assert total(seen, "taskctl_http_requests_in_flight") == 3
            assert (await waiting).status_code == 503
            await locker.rollback()
        assert (await busy).status_code == 200
        samples = await scrape(client)
    assert total(samples, "taskctl_pool_timeouts_total") == 1
    assert total(samples, "taskctl_statement_failures_total", code="overloaded") == 1


async def test_authentication_outcomes(fresh: httpx.AsyncClient) -> None:
    """Every look at a token counts by its outcome, whose values are codes of the catalogue."""
    await fresh.get(TASKS)
    for user in (make_user(), make_user(), make_user(lifetime=-3600)):
        await fresh.get(TASKS, headers=user.headers)
    await fresh.get(TASKS, headers={"Authorization": "Bearer x"})
    samples = await scrape(fresh)
    name = "taskctl_authentications_total"
    counts = {code: total(samples, name, code=code) for code in labels(samples, name, "code")}
    assert counts == {"accepted": 2, "token_expired": 1, "token_malformed": 1, "token_missing": 1}
    assert counts.keys() <= {"accepted", *(error.code for error in catalogue())}


async def test_refusals_of_good_tokens(fresh: httpx.AsyncClient) -> None:
    """What a good token may not do counts by its code, too; the token itself was accepted."""
    user = make_user(scope="tasks:read")
    await fresh.get("/api/v1/somebody-else/tasks", headers=user.headers)
    await fresh.post(TASKS, headers=user.headers, json={"title": "x"})
    samples = await scrape(fresh)
    for code, count in (("accepted", 2), ("not_your_tasks", 1), ("insufficient_scope", 1)):
        assert total(samples, "taskctl_authentications_total", code=code) == count


async def test_limiter_decisions(database_url: str) -> None:
    """What the limiter lets pass and refuses counts by limit."""
    variables = {"TASKCTL_RATE_LIMIT": "2/minute", "TASKCTL_RATE_LIMIT_ANONYMOUS": "1/minute"}
    user = make_user()
    async with running(database_url, **variables) as (_, client):
        for headers in (user.headers, {}):
            for _ in range(5):
                await client.get(TASKS, headers=headers)
        samples = await scrape(client)
    name = "taskctl_rate_limit_decisions_total"
    assert {
        (limit, decision): total(samples, name, limit=limit, decision=decision)
        for limit in ("user", "anonymous")
        for decision in ("allowed", "refused")
    } == {
        ("user", "allowed"): 2,
        ("user", "refused"): 3,
        ("anonymous", "allowed"): 1,
        ("anonymous", "refused"): 4,
    }


# Who may read them


@pytest.mark.parametrize("variables", [{"TASKCTL_METRICS": "off"}, {"TASKCTL_ENV": "prod"}])
async def test_metrics_off(database_url: str, variables: dict[str, str]) -> None:
    """Metrics that are off, as they are in production, are a route that does not exist."""
    async with running(database_url, **variables) as (_, client):
        answer = await client.get("/metrics")
        assert (answer.status_code, answer.json()["code"]) == (404, "route_not_found")
        assert (await client.get(TASKS, headers=make_user().headers)).status_code == 200


async def test_metrics_open(fresh: httpx.AsyncClient) -> None:
    """Open metrics are Prometheus's text for everybody, by GET and HEAD only."""
    answer = await fresh.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert (await fresh.head("/metrics")).status_code == 200
    assert (await fresh.post("/metrics")).status_code == 405


async def test_metrics_for_a_token(database_url: str) -> None:
    """Metrics behind a token answer who sends exactly that one, and 401 problems otherwise."""
    variables = {"TASKCTL_METRICS": "token", "TASKCTL_METRICS_TOKEN": TOKEN}
    async with running(database_url, **variables) as (_, client):
        for value in (f"Bearer {TOKEN}", f"bearer  {TOKEN} "):
            assert (await client.get("/metrics", headers={"Authorization": value})).status_code == 200
        for value in (
            None,
            "Bearer",
            f"Basic {TOKEN}",
            f"Bearer {TOKEN}x",
            f"Bearer {TOKEN[:-1]}",
            f"Bearer {make_user().token}",
            "Bearer é".encode(),
        ):
            headers = [] if value is None else [("Authorization", value)]
            answer = await client.get("/metrics", headers=headers)  # type: ignore[arg-type]
            assert answer.status_code == 401, value
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert TOKEN not in answer.text


# Several processes


WORKER = """
import sys, uvicorn
from taskctl.config import ServerSettings
from taskctl.server.app import create_app
app = create_app(ServerSettings.load(env_file=None))
uvicorn.run(app, port=int(sys.argv[1]), log_level="error", access_log=False)
"""


@contextlib.contextmanager
def workers(number: int, folder: Path, database_url: str, **variables: str) -> Iterator[dict[int, Any]]:
    """Processes that serve as the workers of one `serve` do, by their ports."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(metrics.shared(number))
        environ = bare_environ(
            folder,
            TASKCTL_ENV="test",
            DATABASE_URL=database_url,
            BETTER_AUTH_SECRET=SECRET,
            PROMETHEUS_MULTIPROC_DIR=os.environ["PROMETHEUS_MULTIPROC_DIR"],
            **variables,
        )
        processes = {}
        for port in [free_port() for _ in range(number)]:
            command = [sys.executable, "-c", WORKER, str(port)]
            processes[port] = stack.enter_context(subprocess.Popen(command, env=environ, cwd=folder))
            stack.callback(processes[port].terminate)
        for port in processes:
            until(lambda port=port: fetch(port, "/livez"))
        yield processes


def fetch(port: int, path: str, headers: dict[str, str] | None = None) -> tuple[int, str] | None:
    """Status and text of an answer; None where nobody listens yet."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - of our own
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return None


def read_metrics(port: int) -> Samples:
    """The metrics as one worker tells them."""
    answer = fetch(port, "/metrics")
    assert answer is not None
    assert answer[0] == 200
    return parse(answer[1])


def test_workers_count_together(tmp_path: Path, database_url: str) -> None:
    """Any worker answers for all; a killed one's counts stay and its gauges go; one limit holds for all."""
    user = make_user()
    route = "/api/v1/{user_id}/tasks"
    with workers(2, tmp_path, database_url, TASKCTL_RATE_LIMIT="10/minute") as processes:
        first, second = processes
        statuses = [(fetch(port, TASKS, user.headers) or (0, ""))[0] for port in (first, first, second) * 5]
        assert (statuses.count(200), statuses.count(429)) == (10, 5)
        for port in (first, second):
            samples = read_metrics(port)
            assert total(samples, "taskctl_http_requests_total", route=route) == 15
            assert total(samples, "taskctl_http_requests_total", route=route, status="200") == 10
            assert total(samples, "taskctl_statement_duration_seconds_count") == 10
            assert total(samples, "taskctl_build_info") == 1
        until(lambda: total(read_metrics(first), "taskctl_pool_connections_max") == 20)
        processes[second].send_signal(signal.SIGKILL)
        processes[second].wait()
        metrics.forget_worker(processes[second].pid)
        samples = read_metrics(first)
        assert total(samples, "taskctl_http_requests_total", route=route) == 15
        assert total(samples, "taskctl_pool_connections_max") == 10
        assert "pid" not in {label for _, has in samples for label, _ in has}


def test_shared_directory_is_cleaned_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several workers get a directory of their own for as long as they serve; one worker needs none."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/somebody/else's")
    with metrics.shared(1):
        assert metrics.shared_directory() is None
        metrics.forget_worker(1)
    with metrics.shared(2):
        directory = metrics.shared_directory()
        assert directory is not None
        assert directory.stat().st_mode & 0o777 == 0o700
        (directory / "counter_1.db").touch()
    assert not directory.exists()
    assert os.environ["PROMETHEUS_MULTIPROC_DIR"] == "/somebody/else's"


# The dashboard


async def test_dashboard_asks_for_what_there_is(database_url: str) -> None:
    """Every metric in the dashboard's queries exists in `/metrics`, and none there is forgotten."""
    issuer = f"http://127.0.0.1:{free_port()}"
    async with running(database_url, BETTER_AUTH_URL=issuer) as (_, client):
        text = (await client.get("/metrics")).text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}
    known = {name + end for name, family in families.items() for end in suffixes[family.type]}
    board = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    queries += [each["query"]["query"] for each in board["templating"]["list"] if each["type"] == "query"]
    asked = {name for query in queries for name in re.findall(r"\btaskctl_\w+", query)}
    assert asked <= known
    assert {name for name in known if not name.endswith(("_bucket", "_count", "_sum"))} <= asked
    assert all(query.count("(") == query.count(")") for query in queries)
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
