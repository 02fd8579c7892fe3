"""`/metrics`, for Prometheus."""

import asyncio
import hmac

from fastapi import FastAPI, Response

from taskctl.errors import TokenSignatureInvalid
from taskctl.server.authentication import bearer_token
from taskctl.server.call import Call
from taskctl.server.metrics import CONTENT_TYPE
from taskctl.server.routing import PublicRoute
from taskctl.setting import Metrics


def add_metrics(app: FastAPI) -> None:
    """Serve `/metrics`."""
    app.router.routes.append(PublicRoute("/metrics", metrics, methods=["GET"], include_in_schema=False))


async def metrics(call: Call) -> Response:
    """Show what was counted to whom the settings allow it."""
    service = call.service
    settings = service.settings
    if settings.metrics is Metrics.token:
        assert settings.metrics_token is not None, "the settings have seen to it"  # noqa: S101
        expected = settings.metrics_token.get_secret_value().encode()
        if not hmac.compare_digest(bearer_token(call).encode("utf-8", "replace"), expected):
            raise TokenSignatureInvalid("This is not the token that TASKCTL_METRICS_TOKEN holds.")
    assert service.metrics is not None, "without metrics there is no such route"  # noqa: S101
    service.metrics.sample()
    # Reading the files of all workers takes its time.
    text = await asyncio.to_thread(service.metrics.render)
    return Response(text, headers={"Content-Type": CONTENT_TYPE})
