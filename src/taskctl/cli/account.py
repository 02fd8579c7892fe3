"""Which server, as whom: login, logout, status, contexts, and the shell's completion."""

import json
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from taskctl import contexts
from taskctl.cli import COMPLETE_VARIABLE, output
from taskctl.cli.output import Form, Json, Ndjson, Quiet
from taskctl.errors import TaskctlError, Unauthenticated, UsageInvalid

Name = Annotated[str, typer.Argument(metavar="NAME", hidden=True)]


class Shell(StrEnum):
    """The shells that completion is written for."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


def register(app: typer.Typer) -> None:
    """Add the commands of this module to the root."""
    # Typer's own refusal of an argument repeats it, and here it may be a token.
    app.command(context_settings={"allow_extra_args": True})(login)
    app.command()(logout)
    app.command()(status)
    app.add_typer(context_app, name="context")
    app.command()(completion)


def login(
    context: typer.Context,
    *,
    server: Annotated[
        str | None, typer.Option(metavar="URL", help="The server's root, without /api/v1.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--context", metavar="NAME", help="What to call it; the host, or HOST-PORT."),
    ] = None,
    token_stdin: Annotated[bool, typer.Option("--token-stdin", help="Read the token from stdin.")] = False,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Try the token with one request before it is stored.")
    ] = True,
    allow_http: Annotated[
        bool, typer.Option("--allow-http", help="Let the token go to another machine over plain HTTP.")
    ] = False,
) -> None:
    """Log in to a server. Its URL and the token are stored as a context, the current one from then on."""
    flags: contexts.Flags = context.find_root().obj
    if context.args:
        raise UsageInvalid("A token is read from stdin only; pipe it in.")
    if not token_stdin:
        raise UsageInvalid("A token is read from stdin only: add --token-stdin, and pipe the token in.")
    stored = contexts.load()
    name = name or flags.context
    server = server or flags.server or (None if name else os.environ.get("TASKCTL_SERVER"))
    allow_http = allow_http or flags.allow_http
    if server is None:  # again, to a server that is known
        name = name or os.environ.get("TASKCTL_CONTEXT") or stored.current
        if name is None:
            raise UsageInvalid("Which server? Give its URL with --server.")
        known = stored.get(name)
        server, allow_http = known.server, allow_http or known.allow_http
    server = contexts.server_root(server, allow_http=allow_http)
    name = name or _default_name(server)
    token = contexts.checked_token(_read_token(), "stdin")
    settings = contexts.ClientSettings(server, token, name, contexts.timeout(flags), allow_http)
    if check:
        with output.connect(settings, debug=flags.debug) as client:
            client.list_tasks(limit=1)
    contexts.save_context(name, server, token, allow_http=allow_http, make_current="always")
    typer.echo(f"Logged in to {server}{_who(token)} (context {name}).", err=True)


def logout(
    context: typer.Context,
    *,
    name: Annotated[
        str | None, typer.Option("--context", metavar="NAME", help="Which; the current one.")
    ] = None,
) -> None:
    """Forget a context's token. Its server stays, for the next login."""
    flags: contexts.Flags = context.find_root().obj
    stored = contexts.load()
    name = name or flags.context or os.environ.get("TASKCTL_CONTEXT") or stored.current
    if name is None:
        raise UsageInvalid("There is no current context to log out of; name one with --context.")
    known = stored.get(name)
    contexts.save_context(name, known.server, None, allow_http=known.allow_http, make_current="never")
    typer.echo(f"Logged out of {known.server} (context {name}).", err=True)


def status(context: typer.Context, as_json: Json = False) -> None:
    """Show which server is used, as whom, and whether it is well.

    The user and the expiry are what the token says; only the server can tell whether that is true.
    """
    how = output.form(as_json=as_json, ndjson=False, quiet=False)
    flags: contexts.Flags = context.find_root().obj
    settings = contexts.resolve(flags)
    claims = _claims(settings.token)
    reachable = ready = False
    version: Any = None
    accepted: bool | None = None
    problem: TaskctlError | None = None
    with output.connect(settings, debug=flags.debug) as client:
        try:
            version = client.health().get("version")
            reachable = True
            client.ready()
            ready = True
            settings.require_token()
            client.list_tasks(limit=1)
            accepted = True
        except TaskctlError as error:
            problem = error
            accepted = False if isinstance(error, Unauthenticated) else None
    if how is Form.JSON:
        report = {
            "context": settings.context,
            "server": settings.server,
            "version": version,
            "reachable": reachable,
            "ready": ready,
            "user": claims.get("sub"),
            "token_expires_at": None if (expiry := _expiry(claims)) is None else expiry.isoformat(),
            "token_accepted": accepted,
        }
        output.print_json(output.compact(report))
    else:
        health = "ready" if ready else "not ready" if reachable else "no answer"
        said = f" (version {output.escaped(str(version))})" if version else ""
        token = {True: "accepted", False: "refused", None: "not checked"}[accepted]
        fields = [
            ("Context", settings.context or "none"),
            ("Server", f"{settings.server}: {health}{said}"),
            ("User", output.escaped(str(claims.get("sub") or "unknown"))),
            ("Token", "none" if settings.token is None else f"{token}, {_lifetime(claims)}"),
        ]
        output.print_fields(fields, how)
    if problem is not None:
        raise problem


context_app = typer.Typer(no_args_is_help=True, help="Switch between several servers.")


@context_app.command("list")
@context_app.command("ls", hidden=True)
def list_(as_json: Json = False, ndjson: Ndjson = False, quiet: Quiet = False) -> None:
    """List the contexts. In a pipe: name, server, `current` or nothing, separated by tabs."""
    how = output.form(as_json=as_json, ndjson=ndjson, quiet=quiet)
    stored = contexts.load()
    entries = [
        {
            "name": name,
            "server": context.server,
            "current": name == stored.current,
            "logged_in": context.token is not None,
        }
        for name, context in sorted(stored.contexts.items())
    ]
    if how is Form.JSON:
        output.print_json(output.compact(entries))
        return
    if not entries and how is Form.TERMINAL:
        typer.echo("No contexts; `taskctl login` makes one.", err=True)
    width = max((len(name) for name in stored.contexts), default=0)
    for entry in entries:
        name, server, current = entry["name"], entry["server"], entry["current"]
        if how is Form.NDJSON:
            output.print_json(output.compact(entry))
        elif how is Form.IDS:
            typer.echo(name)
        elif how is Form.ROWS:
            typer.echo(f"{name}\t{server}\t{'current' if current else ''}")
        else:
            token = "" if entry["logged_in"] else "  (logged out)"
            typer.echo(f"{'*' if current else ' '} {name:<{width}}  {server}{token}")


@context_app.command()
def use(name: Name) -> None:
    """Make a context the current one."""
    contexts.use_context(name)


@context_app.command("rm")
@context_app.command("delete", hidden=True)
def remove(name: Name) -> None:
    """Forget a context, its token included."""
    contexts.remove_context(name)


def completion(shell: Annotated[Shell, typer.Argument(metavar="bash|zsh|fish", hidden=True)]) -> None:
    """Print a script that completes commands and options.

    In bash or zsh: eval "$(taskctl completion bash)". In fish: taskctl completion fish | source.
    """
    from typer._completion_shared import get_completion_script

    typer.echo(get_completion_script(prog_name="taskctl", complete_var=COMPLETE_VARIABLE, shell=shell.value))


def _default_name(server: str) -> str:
    parts = urlsplit(server)
    host = str(parts.hostname)
    if ":" in host:  # an IPv6 address
        return "default"
    return f"{host}-{parts.port}" if parts.port else host


def _read_token() -> str:
    if sys.stdin.isatty():
        from getpass import getpass

        return getpass("Token: ", stream=sys.stderr)
    return sys.stdin.buffer.read(contexts.TOKEN_MAX + 1024).decode("ascii", "replace")


def _claims(token: str | None) -> Mapping[str, Any]:
    """What a token says, unverified; nothing where it is no JSON Web Token (RFC 7519)."""
    from base64 import urlsafe_b64decode

    try:
        payload = (token or "").split(".")[1]
        claims = json.loads(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, ValueError, RecursionError):
        return {}
    return claims if isinstance(claims, dict) else {}


def _who(token: str) -> str:
    user = _claims(token).get("sub")
    return f" as {output.escaped(user)}" if isinstance(user, str) else ""


def _expiry(claims: Mapping[str, Any]) -> datetime | None:
    seconds = claims.get("exp")
    try:
        return datetime.fromtimestamp(seconds, UTC) if isinstance(seconds, int | float) else None
    except (ValueError, OverflowError, OSError):
        return None


def _lifetime(claims: Mapping[str, Any]) -> str:
    expiry = _expiry(claims)
    if expiry is None:
        return "with no expiry that can be read"
    left = expiry - datetime.now(UTC)
    when = output.local_time(expiry.isoformat())
    if left.total_seconds() <= 0:
        return f"expired {when}"
    if left.days:
        return f"expires {when} (in {left.days} day{'s' if left.days > 1 else ''})"
    hours, minutes = divmod(int(left.total_seconds()) // 60, 60)
    return f"expires {when} (in {hours} h {minutes} min)" if hours else f"expires {when} (in {minutes} min)"
