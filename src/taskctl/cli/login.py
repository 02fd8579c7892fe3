"""Log in to a server, with a token or through its auth server in a browser, and log out."""

import os
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from taskctl import claims, contexts
from taskctl.addresses import origin, server_root
from taskctl.cli import output
from taskctl.errors import NotLoggedIn, TaskctlError, UnexpectedAnswer, UsageInvalid

if TYPE_CHECKING:
    from taskctl.better_auth import BetterAuth, Device


def register(app: typer.Typer) -> None:
    """Add the commands of this module to the root."""
    # Typer's own refusal of an argument repeats it, and here it may be a token.
    app.command(context_settings={"allow_extra_args": True})(login)
    app.command()(logout)


def login(
    context: typer.Context,
    *,
    server: Annotated[
        str | None, typer.Option(metavar="URL", help="The server's root, without /api/v1.")
    ] = None,
    auth_url: Annotated[
        str | None, typer.Option(metavar="URL", help="The auth server: log in there, in a browser.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--context", metavar="NAME", help="What to call it; the host, or HOST-PORT."),
    ] = None,
    token_stdin: Annotated[bool, typer.Option("--token-stdin", help="Read the token from stdin.")] = False,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the browser, if there is one here.")
    ] = True,
    client_id: Annotated[
        str | None, typer.Option(metavar="ID", help="Who asks, for the auth server; taskctl.")
    ] = None,
    keyring: Annotated[
        bool | None,
        typer.Option(
            "--keyring/--no-keyring", help="Keep tokens in the system's keyring. [TASKCTL_KEYRING=1]"
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Try the token with one request before it is stored.")
    ] = True,
    allow_http: Annotated[
        bool, typer.Option("--allow-http", help="Let tokens go to another machine over plain HTTP.")
    ] = False,
) -> None:
    """Log in to a server. Its URL and the token are stored as a context, the current one from then on."""
    flags: contexts.Flags = context.find_root().obj
    if context.args:
        raise UsageInvalid("A token is read from stdin only; pipe it in.")
    if token_stdin and (auth_url or client_id):
        raise UsageInvalid("--token-stdin excludes --auth-url and --client-id.")
    name, known = _target(flags, server, name, allow_http=allow_http)
    auth_url = None if token_stdin else auth_url or known.auth_url
    if not token_stdin and auth_url is None:
        raise UsageInvalid(
            "Log in through an auth server with --auth-url URL, or pipe a token in and add --token-stdin."
        )
    if keyring is None:
        keyring = known.keyring or os.environ.get("TASKCTL_KEYRING", "") in {"1", "true"}
    if keyring:
        from taskctl import vault

        vault.check()
    settings = contexts.ClientSettings(known.server, None, name, contexts.timeout(flags), known.allow_http)
    wanted = known._replace(keyring=keyring)
    if auth_url is None:
        wanted = wanted._replace(token=_read_token(), session=None)
        _save(settings, wanted, check=check, debug=flags.debug)
        _greet(name, wanted)
        return
    auth_url = server_root(auth_url, allow_http=known.allow_http)
    if check:  # nobody is sent to the browser for a server that is not there
        with output.connect(settings, debug=flags.debug) as client:
            client.health()
    wanted = wanted._replace(auth_url=auth_url, client_id=client_id or known.client_id)
    _by_device(settings, wanted, browser=browser, check=check, debug=flags.debug)


def _target(
    flags: contexts.Flags, server: str | None, name: str | None, *, allow_http: bool
) -> tuple[str, contexts.Context]:
    """Which context to log in to, and what is known of it already."""
    stored = contexts.load()
    name = name or flags.context
    server = server or flags.server or (None if name else os.environ.get("TASKCTL_SERVER"))
    allow_http = allow_http or flags.allow_http
    if server is None:  # again, to a server that is known
        name = name or os.environ.get("TASKCTL_CONTEXT") or stored.current
        if name is None:
            raise UsageInvalid("Which server? Give its URL with --server.")
        server = stored.get(name).server
        allow_http = allow_http or stored.get(name).allow_http
    server = server_root(server, allow_http=allow_http)
    name = name or _default_name(server)
    known = stored.contexts.get(name)
    if known is None or origin(known.server) != origin(server):
        known = contexts.Context(server)  # what another server was given is not for this one
    return name, known._replace(server=server, allow_http=allow_http)


def logout(
    context: typer.Context,
    *,
    name: Annotated[
        str | None, typer.Option("--context", metavar="NAME", help="Which; the current one.")
    ] = None,
) -> None:
    """Log out, and forget the tokens.

    The login ends at the auth server, too. Where that cannot be told, the tokens are forgotten all the same.
    The context's server stays, for the next login.
    """
    flags: contexts.Flags = context.find_root().obj
    stored = contexts.load()
    name = name or flags.context or os.environ.get("TASKCTL_CONTEXT") or stored.current
    if name is None:
        raise UsageInvalid("There is no current context to log out of; name one with --context.")
    known = stored.get(name)
    try:
        sign_out(name, known, flags)
    finally:
        contexts.forget_tokens(name)
    typer.echo(f"Logged out of {known.server} (context {name}).", err=True)


def sign_out(name: str, context: contexts.Context, flags: contexts.Flags) -> None:
    """End a context's login at its auth server, if it has one; where that fails, say so and go on."""
    try:
        session = contexts.session_of(contexts.with_secrets(name, context))
        if session is not None:
            with _auth_server(session.auth_url, context, contexts.timeout(flags), flags.debug) as server:
                server.sign_out(session.token)
    except TaskctlError as error:
        where = context.auth_url or "the auth server"
        text = f"The login could not be ended at {where}, and lasts there until it expires: {error.detail}"
        typer.echo(f"taskctl: {output.escaped(text)} ({error.code})", err=True)


def _save(settings: contexts.ClientSettings, context: contexts.Context, *, check: bool, debug: bool) -> None:
    """Try the token if asked to, store the context and make it the current one."""
    if check:
        with output.connect(settings._replace(token=context.token), debug=debug) as client:
            client.list_tasks(limit=1)
    members = context._asdict()
    del members["held"]
    contexts.save_context(str(settings.context), **members, make_current="always")


def _greet(name: str, context: contexts.Context) -> None:
    user = claims.unverified(context.token)
    who = next((each for each in (user.get("email"), user.get("sub")) if isinstance(each, str)), None)
    as_whom = f" as {output.escaped(who)}" if who else ""
    typer.echo(f"Logged in to {context.server}{as_whom} (context {name}).", err=True)


def _by_device(
    settings: contexts.ClientSettings, context: contexts.Context, *, browser: bool, check: bool, debug: bool
) -> None:
    """Let a person confirm the login in a browser, and store what it yields; a login not stored is ended."""
    from taskctl.better_auth import CLIENT_ID

    client_id = context.client_id or CLIENT_ID
    with _auth_server(str(context.auth_url), context, settings.timeout, debug) as server:
        device = server.start_login(client_id)
        _show(device, browser=browser)
        with _waiting(spin=sys.stderr.isatty() and not debug):
            session = server.wait_for_session(device, client_id)
        try:
            try:
                token = server.token(session)
            except NotLoggedIn as error:
                raise UnexpectedAnswer(
                    f"{server.url} does not know the login that it has just given; its plugin bearer must be "
                    "on, without requireSignature."
                ) from error
            context = context._replace(token=token, session=session)
            _save(settings, context, check=check, debug=debug)
        except BaseException:
            with suppress(TaskctlError):
                server.sign_out(session)
            raise
    _greet(str(settings.context), context)


def _show(device: "Device", *, browser: bool) -> None:
    """Tell a person where to go and what to confirm, and open a browser where there is one."""
    url = output.escaped(device.url_complete)
    typer.echo(f"Open  {url}\nand confirm the code  {output.escaped(device.user_code)}", err=True)
    if browser and sys.stderr.isatty() and _has_browser(os.environ):
        import webbrowser
        from threading import Thread

        # Some browsers keep their caller waiting until they are closed.
        Thread(target=webbrowser.open, args=(device.url_complete,), daemon=True).start()


def _has_browser(environ: Mapping[str, str]) -> bool:
    """Whether a window can be opened; text browsers would take the terminal away."""
    if environ.get("BROWSER"):
        return True
    if sys.platform in {"darwin", "win32"}:
        return "SSH_CONNECTION" not in environ
    return bool(environ.get("DISPLAY") or environ.get("WAYLAND_DISPLAY"))


def _waiting(*, spin: bool) -> AbstractContextManager[object]:
    """Say on stderr that nothing happens until somebody has confirmed."""
    text = "Waiting for the confirmation"
    if not spin:
        typer.echo(f"{text}.", err=True)
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(f"{text}; Ctrl-C gives up")


def _auth_server(url: str, context: contexts.Context, timeout: float, debug: bool) -> "BetterAuth":
    from taskctl.better_auth import BetterAuth

    on_try = output.show_try if debug else None
    return BetterAuth(url, allow_http=context.allow_http, timeout=timeout, on_try=on_try)


def _default_name(server: str) -> str:
    parts = urlsplit(server)
    host = str(parts.hostname)
    if ":" in host:  # an IPv6 address
        return "default"
    return f"{host}-{parts.port}" if parts.port else host


def _read_token() -> str:
    if sys.stdin.isatty():
        from getpass import getpass

        text = getpass("Token: ", stream=sys.stderr)
    else:
        text = sys.stdin.buffer.read(contexts.TOKEN_MAX + 1024).decode("ascii", "replace")
    return contexts.checked_token(text, "stdin")
