"""Pages for people, with nothing from the internet: the API's documentation, and what an error code means."""

import base64
import hashlib
import html
import re
from importlib.util import find_spec
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import HTMLResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.routing import Match, Route
from starlette.types import Scope

from taskctl import errors

_ASSETS = "/docs/assets"
_NO_ICON = "data:,"

_NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""The Content-Security-Policy that everything starts from: a page may load nothing and be framed nowhere."""

_REDOC_LOGO = b"https://cdn.redoc.ly/redoc/logo-mini.svg"
"""ReDoc asks for this picture and hides it where there is none; no option of its own prevents that."""

_INLINE_SCRIPT = re.compile(r"(?s)<script>(.*?)</script>")


class _Page(Route):
    """A route that says which it is, as FastAPI's do, for the log and the metrics."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        return match, {**child, "route": self} if match is not Match.NONE else child


def add_documentation(app: FastAPI) -> None:
    """Serve `/docs` and `/redoc`, with their assets out of the package fastapi-offline."""
    title = app.title

    swagger = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title=title,
        swagger_js_url=f"{_ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{_ASSETS}/swagger-ui.css",
        swagger_favicon_url=_NO_ICON,
    )
    redoc = get_redoc_html(
        openapi_url="/openapi.json",
        title=title,
        redoc_js_url=f"{_ASSETS}/redoc.standalone.js",
        redoc_favicon_url=_NO_ICON,
        with_google_fonts=False,
    )
    _add_page(app, "/docs", bytes(swagger.body).decode())
    # ReDoc searches in a worker that it makes itself.
    _add_page(app, "/redoc", bytes(redoc.body).decode(), "; worker-src blob:")
    # Found, not imported: the package brings an application class of its own that is not wanted here.
    spec = find_spec("fastapi_offline")
    assert spec is not None, "a dependency"  # noqa: S101
    assert spec.origin is not None, "a dependency"  # noqa: S101
    assets = Path(spec.origin).with_name("static")
    _add_redoc_script(app, assets)
    app.mount(_ASSETS, StaticFiles(directory=assets))


def _add_redoc_script(app: FastAPI, assets: Path) -> None:
    """Serve ReDoc so that it asks nobody else for a picture, which the page's policy would stop, loudly."""

    async def script(_: Request) -> Response:
        text = (assets / "redoc.standalone.js").read_bytes()
        return Response(text.replace(_REDOC_LOGO, b"data:,"), media_type="text/javascript")

    app.add_route(f"{_ASSETS}/redoc.standalone.js", script, include_in_schema=False)


def _add_page(app: FastAPI, path: str, text: str, more: str = "") -> None:
    """Serve one page that may run its own scripts, and call this server only."""
    hashes = [
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        for script in _INLINE_SCRIPT.findall(text)
    ]
    scripts = "".join(f" 'sha256-{each}'" for each in hashes)
    policy = (
        f"{_NOTHING}; script-src 'self'{scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        f"font-src 'self' data:; connect-src 'self'{more}"
    )

    async def page(_: Request) -> HTMLResponse:
        return HTMLResponse(text, headers={"Content-Security-Policy": policy})

    app.router.routes.append(_Page(path, page, include_in_schema=False))


def add_error_pages(app: FastAPI) -> None:
    """Serve `/errors/{code}`: where the `type` of each problem leads."""

    async def page(request: Request) -> HTMLResponse:
        error = errors.by_code(request.path_params["code"])
        if error is None or not error.status:
            raise errors.RouteNotFound("There is no error with this code.")
        code, title = html.escape(error.code), html.escape(error.title())
        return HTMLResponse(
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{code}</title>'
            f"<h1>{code}</h1><p>HTTP status {error.status}.</p><p>{title}</p></html>",
            headers={"Content-Security-Policy": _NOTHING},
        )

    app.router.routes.append(_Page("/errors/{code}", page, include_in_schema=False))
