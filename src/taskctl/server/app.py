"""Putting the server together: settings in, an ASGI application out."""

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator
from typing import Any

import structlog
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from taskctl import __version__
from taskctl.config import ServerSettings
from taskctl.errors import DatabaseUnavailable, Overloaded, SettingsInvalid
from taskctl.jwks import OK, Fetch
from taskctl.server.call import Service
from taskctl.server.database import Database, check_url
from taskctl.server.draining import Refusal
from taskctl.server.feed import Feed
from taskctl.server.limits import Limiter
from taskctl.server.metrics import SAMPLING_SECONDS, Metrics, shared_directory
from taskctl.server.middleware import Cors, Envelope, Hosts, Problems, refuse
from taskctl.server.purge import keep_purging
from taskctl.server.routes import bulk, changes, me, pages, probes, tasks
from taskctl.server.routes import metrics as metrics_route
from taskctl.server.routing import PROBLEM, Shortcut
from taskctl.server.tracing import Tracing
from taskctl.setting import Metrics as MetricsAccess
from taskctl.tokens import create_verifier

log: Any = structlog.get_logger()


class Application(FastAPI):
    """FastAPI with this service's own middleware in place of Starlette's and an exact OpenAPI document."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI), without FastAPI's and Starlette's own steps once the stack is built."""
        if scope["type"] == "http" and self.middleware_stack is not None:
            scope["app"] = self
            await self.middleware_stack(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    def build_middleware_stack(self) -> ASGIApp:
        """Envelope, hosts and CORS where set, problems, refusal, router: nothing else runs per request."""
        service: Service = self.state.service
        app: ASGIApp = Problems(Refusal(Shortcut(self.router, self.routes), service.drain), self.routes)
        if service.settings.cors_origins:
            app = Cors(app, service.settings.cors_origins)
        if service.settings.allowed_hosts:
            app = Hosts(app, service.settings.allowed_hosts)
        return Envelope(app, service)

    def refuse(self, scope: Scope) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """Headers and body of the 503 for a request that there is no room for."""
        service: Service = self.state.service
        error = Overloaded if service.database.reachable else DatabaseUnavailable
        return refuse(scope, error, service)

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document; errors are `application/problem+json`, which FastAPI cannot be told."""
        if not self.openapi_schema:
            document = super().openapi()
            for path in document["paths"].values():
                for operation in path.values():
                    for status, response in operation["responses"].items():
                        if int(status) >= 400:  # noqa: PLR2004 - HTTP's own border
                            response["content"] = {PROBLEM: response["content"]["application/json"]}
        assert self.openapi_schema is not None  # noqa: S101 - super() has set it
        return self.openapi_schema


def create_app(settings: ServerSettings) -> Application:
    """Make the application for one process. Nothing is connected before it starts.

    Args:
        settings: complete: `database_url` is set, and `check_trust` has nothing against them.

    Raises:
        SettingsInvalid: they are not, or ask for an extra that is not installed.
    """
    service = _create_service(settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with _running(service):
            yield

    app = Application(
        title="taskctl",
        version=__version__,
        summary="Multi-user tasks.",
        openapi_url="/openapi.json" if settings.docs else None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # FastAPI would look before each request whether somebody traces it.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        lifespan=lifespan,
    )
    app.state.service = service
    # Added as they are rather than included: an included router matches each request twice.
    for router in (me.router, bulk.router, tasks.router, changes.router, probes.router):
        app.router.routes.extend(router.routes)
    if service.metrics is not None:
        metrics_route.add_metrics(app)
    pages.add_error_pages(app)
    if settings.docs:
        pages.add_documentation(app)
    return app


def _create_service(settings: ServerSettings) -> Service:
    if settings.database_url is None:
        raise SettingsInvalid("DATABASE_URL is not set")
    check_url(settings.database_url.get_secret_value())
    database = Database(settings, settings.database_url.get_secret_value())
    metrics = None if settings.metrics is MetricsAccess.off else Metrics(database.pool_use)
    verifier = create_verifier(settings, functools.partial(_tell_of_keys, metrics))
    return Service(
        settings=settings,
        database=database,
        verifier=verifier,
        limiter=_create_limiter(settings, metrics),
        metrics=metrics,
        tracing=None if settings.traces == "off" else Tracing(),
        started=time.monotonic(),
        feed=Feed(settings, settings.database_url.get_secret_value()),
    )


@contextlib.asynccontextmanager
async def _running(service: Service) -> AsyncIterator[None]:
    """What runs beside the requests: connections, the key set's refreshing, sampling; ended in turn."""
    metrics, key_set = service.metrics, service.verifier.key_set
    await service.database.open()
    purging = asyncio.create_task(keep_purging(service.settings, service.database))
    service.feed.open()
    if key_set is not None:
        key_set.start()
        if metrics is not None:  # only now: an application that never starts has no keys to show
            metrics.watch_key_set(key_set.state)
    sampling = asyncio.create_task(_sample(metrics)) if metrics is not None and metrics.shared else None
    try:
        yield
    finally:
        purging.cancel()
        if sampling is not None:
            sampling.cancel()
        if key_set is not None:
            await key_set.close()
        await service.limiter.close()
        await service.feed.close()
        await service.database.close()
        if service.tracing is not None:
            await service.tracing.close()


def _create_limiter(settings: ServerSettings, metrics: Metrics | None) -> Limiter:
    if metrics is None:
        return Limiter(settings, shared_directory())
    return Limiter(
        settings,
        shared_directory(),
        decided=metrics.decided,
        storage_failed=metrics.storage_failed,
    )


def _tell_of_keys(metrics: Metrics | None, fetch: Fetch) -> None:
    """Log and count a fetch of the key set; one that ends as the one before is only counted."""
    if metrics is not None:
        metrics.key_set_fetched(fetch.outcome)
    if fetch.changed:
        log.info("auth_keys_changed", kids=[key.kid for key in fetch.keys], ignored=fetch.ignored)
    elif fetch.news and fetch.outcome == OK:
        log.info("auth_keys_fetched")
    elif fetch.news:
        state = fetch.state
        log.warning(
            "auth_keys_fetch_failed",
            outcome=fetch.outcome,
            reason=fetch.detail,
            keys=state.freshness,
            age_seconds=state.age_seconds and round(state.age_seconds, 1),
        )


async def _sample(metrics: Metrics) -> None:
    """Keep the gauges of this worker fresh for the worker that is asked for them."""
    while True:
        metrics.sample()
        await asyncio.sleep(SAMPLING_SECONDS)
