"""Which server, as whom: status, contexts, and the shell's completion."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

from taskctl import claims, contexts
from taskctl.cli import COMPLETE_VARIABLE, output
from taskctl.cli.output import Form, Json, Ndjson, Quiet
from taskctl.errors import TaskctlError, Unauthenticated

Name = Annotated[str, typer.Argument(metavar="NAME", hidden=True)]


class Shell(StrEnum):
    """The shells that completion is written for."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


def register(app: typer.Typer) -> None:
    """Add the commands of this module to the root."""
    app.command()(status)
    app.add_typer(context_app, name="context")
    app.command()(completion)


def status(context: typer.Context, as_json: Json = False) -> None:
    """Show which server is used, as whom, and whether it is well.

    The user and the expiry are what the token says; only the server can tell whether that is true.
    """
    how = output.form(as_json=as_json, ndjson=False, quiet=False)
    flags: contexts.Flags = context.find_root().obj
    settings = contexts.resolve(flags)
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
        token = client.token  # which may have been renewed
    user, expiry = claims.unverified(token).get("sub"), _moment(claims.expires_at(token))
    if how is Form.JSON:
        report = {
            "context": settings.context,
            "server": settings.server,
            "version": version,
            "reachable": reachable,
            "ready": ready,
            "user": user,
            "token_expires_at": None if expiry is None else expiry.isoformat(),
            "token_accepted": accepted,
            "renewed_by": None if settings.session is None else settings.session.auth_url,
        }
        output.print_json(output.compact(report))
    else:
        health = "ready" if ready else "not ready" if reachable else "no answer"
        said = f" (version {output.escaped(str(version))})" if version else ""
        fate = {True: "accepted", False: "refused", None: "not checked"}[accepted]
        renewed = f", renewed by {settings.session.auth_url}" if settings.session else ""
        fields = [
            ("Context", settings.context or "none"),
            ("Server", f"{settings.server}: {health}{said}"),
            ("User", output.escaped(str(user or "unknown"))),
            ("Token", "none" if token is None else f"{fate}, {_lifetime(expiry)}{renewed}"),
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
            "logged_in": context.logged_in,
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
def remove(context: typer.Context, name: Name) -> None:
    """Forget a context, its token included; a login is ended as `logout` does."""
    from taskctl.cli.login import sign_out

    known = contexts.load().get(name)
    try:
        sign_out(name, known, context.find_root().obj)
    finally:
        contexts.remove_context(name)


def completion(shell: Annotated[Shell, typer.Argument(metavar="bash|zsh|fish", hidden=True)]) -> None:
    """Print a script that completes commands and options.

    In bash or zsh: eval "$(taskctl completion bash)". In fish: taskctl completion fish | source.
    """
    from typer._completion_shared import get_completion_script

    typer.echo(get_completion_script(prog_name="taskctl", complete_var=COMPLETE_VARIABLE, shell=shell.value))


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _lifetime(expiry: datetime | None) -> str:
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
