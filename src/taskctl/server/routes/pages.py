"""Pages for people, with nothing from the internet: the API's documentation, and what an error code means."""

import html
from importlib.util import find_spec
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

from taskctl import errors

_ASSETS = "/docs/assets"
_NO_ICON = "data:,"


def add_documentation(app: FastAPI) -> None:
    """Serve `/docs` and `/redoc`, with their assets out of the package fastapi-offline."""
    title = app.title

    async def docs(_: Request) -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=title,
            swagger_js_url=f"{_ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{_ASSETS}/swagger-ui.css",
            swagger_favicon_url=_NO_ICON,
        )

    async def redoc(_: Request) -> HTMLResponse:
        return get_redoc_html(
            openapi_url="/openapi.json",
            title=title,
            redoc_js_url=f"{_ASSETS}/redoc.standalone.js",
            redoc_favicon_url=_NO_ICON,
            with_google_fonts=False,
        )

    app.add_route("/docs", docs, include_in_schema=False)
    app.add_route("/redoc", redoc, include_in_schema=False)
    # Found, not imported: the package brings an application class of its own that is not wanted here.
    spec = find_spec("fastapi_offline")
    assert spec is not None, "a dependency"  # noqa: S101
    assert spec.origin is not None, "a dependency"  # noqa: S101
    app.mount(_ASSETS, StaticFiles(directory=Path(spec.origin).with_name("static")))


def add_error_pages(app: FastAPI) -> None:
    """Serve `/errors/{code}`: where the `type` of each problem leads."""

    async def page(request: Request) -> HTMLResponse:
        error = errors.by_code(request.path_params["code"])
        if error is None or not error.status:
            raise errors.RouteNotFound("There is no error with this code.")
        code, title = html.escape(error.code), html.escape(error.title())
        return HTMLResponse(
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{code}</title>'
            f"<h1>{code}</h1><p>HTTP status {error.status}.</p><p>{title}</p></html>"
        )

    app.add_route("/errors/{code}", page, include_in_schema=False)
