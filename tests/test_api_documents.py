"""Around the API: the OpenAPI document, its pages, CORS, the errors' pages and the probes."""

import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from conftest import SECRET, Server, User, client_of, make_settings
from taskctl import __version__, errors
from taskctl.server.app import create_app

TASKS = "/api/v1/me/tasks"
ORIGIN = "https://app.example.com"

COMMON = {"401", "403", "422", "429", "500", "503"}
STATUSES = {
    ("get", "/api/v1/me"): COMMON - {"403"} | {"200"},
    ("get", "/api/v1/{user_id}/tasks"): COMMON | {"200", "400"},
    ("post", "/api/v1/{user_id}/tasks"): COMMON | {"201", "400", "413", "415"},
    ("post", "/api/v1/{user_id}/tasks/bulk"): COMMON | {"200", "400", "413", "415"},
    ("get", "/api/v1/{user_id}/tasks/{task_id}"): COMMON | {"200", "304", "404"},
    ("put", "/api/v1/{user_id}/tasks/{task_id}"): COMMON | {"200", "400", "404", "412", "413", "415"},
    ("patch", "/api/v1/{user_id}/tasks/{task_id}"): COMMON | {"200", "400", "404", "412", "413", "415"},
    ("patch", "/api/v1/{user_id}/tasks/{task_id}/complete"): COMMON
    | {"200", "400", "404", "412", "413", "415"},
    ("delete", "/api/v1/{user_id}/tasks/{task_id}"): COMMON | {"204", "400", "404", "412"},
    ("post", "/api/v1/{user_id}/tasks/{task_id}/restore"): COMMON | {"200", "400", "404", "412"},
    ("get", "/api/v1/{user_id}/changes"): COMMON | {"200", "400", "410"},
}


@pytest.fixture
async def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document."""
    async with client_of(app) as client:
        return dict((await client.get("/openapi.json")).json())


@pytest.fixture
async def browser(database_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application that allows one origin."""
    application = create_app(make_settings(database_url, TASKCTL_CORS_ORIGINS=ORIGIN))
    async with application.router.lifespan_context(application), client_of(application) as client:
        client.headers["Origin"] = ORIGIN
        yield client


def members(node: Any) -> Iterator[tuple[str, Any]]:
    """Every name and value anywhere in a document."""
    for name, value in node.items() if isinstance(node, dict) else enumerate(node):
        yield str(name), value
        if isinstance(value, dict | list):
            yield from members(value)


def listed(header: str) -> set[str]:
    return {part.strip().lower() for part in header.split(",")}


async def test_every_operation_is_documented(app: FastAPI, document: dict[str, Any]) -> None:
    """The document has each operation of the API, with exactly the statuses that it can answer."""
    assert document["openapi"].startswith("3.1")
    assert document["info"]["version"] == __version__
    documented = {
        (method, path): set(operation["responses"])
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if path.startswith("/api")
    }
    assert documented == STATUSES
    served = {route.path for route in app.routes if getattr(route, "include_in_schema", False)}
    assert served == set(document["paths"])


async def test_errors_are_documented_as_problems(document: dict[str, Any]) -> None:
    """Every documented error has a problem document as its body, and every success its model."""
    for operations in document["paths"].values():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                content = response.get("content", {})
                assert response["description"]
                if status >= "400":
                    reference = {"$ref": "#/components/schemas/Problem"}
                    assert content == {"application/problem+json": {"schema": reference}}
                elif status in {"204", "304"}:
                    assert content == {}
                else:
                    assert content["application/json"]["schema"]["$ref"]


async def test_document_is_sound(document: dict[str, Any]) -> None:
    """References lead somewhere, operation ids are unique, path parameters are declared, patterns compile."""
    for name, value in members(document):
        if name == "$ref":
            target: Any = document
            for step in value.removeprefix("#/").split("/"):
                target = target[step]
        if name == "pattern" and isinstance(value, str):
            re.compile(value)
    operations = [
        (path, operation) for path, each in document["paths"].items() for operation in each.values()
    ]
    identifiers = [operation["operationId"] for _, operation in operations]
    assert len(set(identifiers)) == len(identifiers)
    for path, operation in operations:
        parameters = operation.get("parameters", [])
        declared = {each["name"] for each in parameters if each["in"] == "path"}
        assert declared == set(re.findall(r"\{(\w+)\}", path))
        assert len({(each["name"].lower(), each["in"]) for each in parameters}) == len(parameters)
    assert "HTTPValidationError" not in document["components"]["schemas"]


async def test_every_task_operation_asks_for_a_token(document: dict[str, Any]) -> None:
    """The document says which operations need a bearer token, and which do not."""
    (scheme,) = document["components"]["securitySchemes"].values()
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert bool(operation.get("security")) is path.startswith("/api")


async def test_document_has_headers_parameters_and_bodies(document: dict[str, Any]) -> None:
    """Conditional and idempotency headers, list parameters, media types and bounds are documented."""

    def parameters(method: str, path: str) -> dict[str, Any]:
        found = document["paths"][f"/api/v1/{{user_id}}/tasks{path}"][method]["parameters"]
        return {each["name"].lower(): each for each in found}

    def body_types(method: str, path: str) -> set[str]:
        return set(document["paths"][f"/api/v1/{{user_id}}/tasks{path}"][method]["requestBody"]["content"])

    assert "idempotency-key" in parameters("post", "")
    assert "if-none-match" in parameters("get", "/{task_id}")
    for method, path in (("put", ""), ("patch", ""), ("patch", "/complete"), ("delete", "")):
        assert "if-match" in parameters(method, "/{task_id}" + path)
    query = {name: each["schema"] for name, each in parameters("get", "").items() if each["in"] == "query"}
    assert query.keys() == {"status", "limit", "cursor", "order"}
    assert (query["limit"]["minimum"], query["limit"]["maximum"], query["limit"]["default"]) == (1, 200, 50)
    assert body_types("post", "") == body_types("put", "/{task_id}") == {"application/json"}
    both = {"application/json", "application/merge-patch+json"}
    assert body_types("patch", "/{task_id}") == body_types("patch", "/{task_id}/complete") == both
    schemas = document["components"]["schemas"]
    assert not document["paths"]["/api/v1/{user_id}/tasks/{task_id}/complete"]["patch"]["requestBody"].get(
        "required"
    )
    for name in ("TaskContent", "TaskPatch", "Completion"):
        assert schemas[name]["additionalProperties"] is False
    assert schemas["TaskContent"]["required"] == ["title"]
    title = schemas["TaskContent"]["properties"]["title"]
    assert title["pattern"].count("{0,198}") == 1
    assert not schemas["TaskPatch"].get("required")


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
async def test_pages_need_no_internet(app: FastAPI, page: str) -> None:
    """The documentation's pages refer to nothing but this server, which has it all."""
    async with client_of(app) as client:
        answer = await client.get(page)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/html")
        urls = re.findall(r"""(?:src|href|spec-url|url)\s*[=:]\s*["']([^"']+)""", answer.text)
        assert "/openapi.json" in urls
        assert len(urls) > 1
        for url in urls:
            assert url.startswith(("/", "data:")), url
            if url.startswith("/"):
                asset = await client.get(url)
                assert asset.status_code == 200, url
                assert asset.content
        assert not re.search(r"(?:src|href|url\()\s*=?\s*[\"']?(?:https?:)?//", answer.text)


@pytest.mark.parametrize(
    ("variables", "served"),
    [
        ({}, True),
        ({"TASKCTL_DOCS": "off"}, False),
        ({"TASKCTL_ENV": "prod"}, False),
        ({"TASKCTL_ENV": "prod", "TASKCTL_DOCS": "on"}, True),
    ],
)
async def test_documentation_can_be_switched_off(
    database_url: str, variables: dict[str, str], served: bool
) -> None:
    """The documentation is off in production unless it is switched on; off, its paths do not exist."""
    async with client_of(create_app(make_settings(database_url, **variables))) as client:
        for path in ("/docs", "/redoc", "/openapi.json", "/docs/assets/swagger-ui.css"):
            answer = await client.get(path)
            assert answer.status_code == (200 if served else 404), path
            if not served:
                assert answer.headers["content-type"] == "application/problem+json"
                assert answer.json()["code"] == "route_not_found"
        assert (await client.get("/errors/bad_request")).status_code == 200


@pytest.mark.parametrize(
    "error", [each for each in errors.catalogue() if each.status], ids=lambda each: each.code
)
async def test_every_error_has_a_page(app: FastAPI, error: type[errors.TaskctlError]) -> None:
    """Where a problem's `type` leads, there is a page about the code."""
    async with client_of(app) as client:
        answer = await client.get(f"/errors/{error.code}")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert error.code in answer.text
    assert str(error.status) in answer.text


@pytest.mark.parametrize("code", ["nothing", "server_unreachable", "%3Cscript%3E", "bad_request%0A"])
async def test_other_errors_have_no_page(app: FastAPI, code: str) -> None:
    """What no server answers with has no page."""
    async with client_of(app) as client:
        answer = await client.get(f"/errors/{code}")
    assert (answer.status_code, answer.json()["code"]) == (404, "route_not_found")
    assert "<script>" not in answer.text


async def test_probes(app: FastAPI) -> None:
    """The probes answer anybody, and tell no secret."""
    async with client_of(app) as client:
        live, ready, health = [await client.get(path) for path in ("/livez", "/readyz", "/health")]
        assert (await client.head("/readyz")).status_code == 200
    assert (live.status_code, live.json()) == (200, {"status": "ok"})
    assert (ready.status_code, ready.json()) == (
        200,
        {"status": "ready", "checks": {"database": "ok", "schema": "ok"}},
    )
    assert health.status_code == 200
    details = health.json()
    assert (details["status"], details["version"], details["environment"]) == ("ok", __version__, "test")
    assert details["uptime_seconds"] >= 0
    assert details["database"]["reachable"] is True
    assert details["database"]["latency_ms"] > 0
    assert re.fullmatch(r"\d{4}", details["database"]["revision"])
    assert details["pool"].keys() == {"max", "open", "idle", "waiting"}
    assert SECRET not in health.text
    assert "postgresql" not in health.text


async def test_no_cors_by_default(api: httpx.AsyncClient) -> None:
    """Unless an origin is configured, no answer allows any, and a preflight is a wrong method."""
    headers = {"Origin": ORIGIN, "Access-Control-Request-Method": "GET"}
    preflight = await api.options(TASKS, headers=headers)
    assert (preflight.status_code, preflight.json()["code"]) == (405, "method_not_allowed")
    answer = await api.get(TASKS, headers=headers)
    for each in (preflight, answer):
        assert not [name for name in each.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
async def test_preflight(browser: httpx.AsyncClient, method: str) -> None:
    """A configured origin may use every method and the headers that the API reads."""
    wanted = "authorization, content-type, idempotency-key, if-match, if-none-match, x-request-id"
    answer = await browser.options(
        TASKS, headers={"Access-Control-Request-Method": method, "Access-Control-Request-Headers": wanted}
    )
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert method.lower() in listed(answer.headers["access-control-allow-methods"])
    assert listed(wanted) <= listed(answer.headers["access-control-allow-headers"])
    assert "origin" in listed(answer.headers["vary"])
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example", "Access-Control-Request-Method": "GET"},
        {"Origin": "null", "Access-Control-Request-Method": "GET"},
        {"Origin": f"{ORIGIN}.evil.example", "Access-Control-Request-Method": "GET"},
        {"Access-Control-Request-Method": "TRACE"},
        {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "x-other"},
    ],
)
async def test_refused_preflight(browser: httpx.AsyncClient, headers: dict[str, str]) -> None:
    """A preflight for another origin, method or header is a problem, and allows nothing."""
    answer = await browser.options(TASKS, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["instance"] == TASKS
    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["cache-control"] == "no-store"


async def test_browser_sees_answers_and_their_headers(browser: httpx.AsyncClient, user: User) -> None:
    """A configured origin may read every answer, errors included, and the headers that it needs."""
    answers = [
        await browser.post(TASKS, json={"title": "x"}, headers=user.headers),
        await browser.get(f"{TASKS}/99", headers=user.headers),
        await browser.get(TASKS),
        await browser.get("/nowhere"),
        await browser.delete(TASKS),
    ]
    assert [answer.status_code for answer in answers] == [201, 404, 401, 404, 405]
    needed = {
        "etag",
        "link",
        "location",
        "retry-after",
        "x-request-id",
        "idempotency-replayed",
        "server-timing",
    }
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert needed <= listed(answer.headers["access-control-expose-headers"])
        assert "access-control-allow-credentials" not in answer.headers


async def test_other_origins_may_read_nothing(browser: httpx.AsyncClient, user: User) -> None:
    """An origin that is not configured gets no permission to read an answer."""
    answer = await browser.get(TASKS, headers={**user.headers, "Origin": "https://evil.example"})
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers


def test_server_with_cors_serves(start_server: Callable[..., Server], database_url: str, user: User) -> None:
    """A server with a configured origin starts, and reaches its database."""
    server = start_server(
        TASKCTL_ENV="test", DATABASE_URL=database_url, BETTER_AUTH_SECRET=SECRET, TASKCTL_CORS_ORIGINS=ORIGIN
    )
    answer = httpx.get(server.url + TASKS, headers=user.headers, timeout=10)
    assert answer.status_code == 200, answer.text
