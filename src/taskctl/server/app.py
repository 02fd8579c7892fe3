"""Putting the server together: settings in, an ASGI application out."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp

from taskctl import __version__
from taskctl.config import ServerSettings
from taskctl.errors import SettingsInvalid
from taskctl.server.database import Database, check_url
from taskctl.server.draining import Refusal
from taskctl.server.limits import Limiter
from taskctl.server.metrics import SAMPLING_SECONDS, Metrics, shared_directory
from taskctl.server.middleware import Cors, Envelope, Hosts, Problems
from taskctl.server.routes import metrics as metrics_route
from taskctl.server.routes import pages, probes, tasks
from taskctl.server.routing import Service, Shortcut
from taskctl.setting import Metrics as MetricsAccess
from taskctl.tokens import create_verifier

_PROBLEM_TYPE = "application/problem+json"


class Application(FastAPI):
    """FastAPI with this service's own middleware in place of Starlette's and an exact OpenAPI document."""

    def build_middleware_stack(self) -> ASGIApp:
        """Envelope, hosts and CORS where set, problems, refusal, router: nothing else runs per request."""
        service: Service = self.state.service
        app: ASGIApp = Problems(Refusal(Shortcut(self.router, self.routes), service.drain), self.routes)
        if service.settings.cors_origins:
            app = Cors(app, service.settings.cors_origins)
        if service.settings.allowed_hosts:
            app = Hosts(app, service.settings.allowed_hosts)
        return Envelope(app, service.metrics, service.limiter.policy)

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document; errors are `application/problem+json`, which FastAPI cannot be told."""
        if not self.openapi_schema:
            document = super().openapi()
            for path in document["paths"].values():
                for operation in path.values():
                    for status, response in operation["responses"].items():
                        if int(status) >= 400:  # noqa: PLR2004 - HTTP's own border
                            response["content"] = {_PROBLEM_TYPE: response["content"]["application/json"]}
        assert self.openapi_schema is not None  # noqa: S101 - super() has set it
        return self.openapi_schema


def create_app(settings: ServerSettings) -> Application:
    """Make the application for one process. Nothing is connected before it starts.

    Args:
        settings: complete: `database_url` is set, and so is a secret.

    Raises:
        SettingsInvalid: they are not.
    """
    if settings.database_url is None:
        raise SettingsInvalid("DATABASE_URL is not set")
    check_url(settings.database_url.get_secret_value())
    database = Database(settings, settings.database_url.get_secret_value())
    metrics = None if settings.metrics is MetricsAccess.off else Metrics(database.pool_use)
    service = Service(
        settings=settings,
        database=database,
        verifier=create_verifier(settings),
        limiter=_create_limiter(settings, metrics),
        metrics=metrics,
        started=time.monotonic(),
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.database.open()
        sampling = asyncio.create_task(_sample(metrics)) if metrics is not None and metrics.shared else None
        try:
            yield
        finally:
            if sampling is not None:
                sampling.cancel()
            await service.limiter.close()
            await service.database.close()

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
    for router in (tasks.router, probes.router):
        app.router.routes.extend(router.routes)
    if metrics is not None:
        metrics_route.add_metrics(app)
    pages.add_error_pages(app)
    if settings.docs:
        pages.add_documentation(app)
    return app


def _create_limiter(settings: ServerSettings, metrics: Metrics | None) -> Limiter:
    if metrics is None:
        return Limiter(settings, shared_directory())
    return Limiter(
        settings,
        shared_directory(),
        decided=metrics.decided,
        storage_failed=metrics.storage_failed,
    )


async def _sample(metrics: Metrics) -> None:
    """Keep the gauges of this worker fresh for the worker that is asked for them."""
    while True:
        metrics.sample()
        await asyncio.sleep(SAMPLING_SECONDS)
