"""The root command: the options before the command, and the commands, each loaded when it is asked for."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import typer

from taskctl.cli.loading import LoadingGroup, Part
from taskctl.contexts import Flags
from taskctl.errors import UsageInvalid


def _add_tasks(app: typer.Typer) -> None:
    from taskctl.cli import tasks

    app.add_typer(tasks.app, name="tasks")


def _add_add(app: typer.Typer) -> None:
    from taskctl.cli import add

    add.register(app)


def _add_lists(app: typer.Typer) -> None:
    from taskctl.cli import listing

    app.command("ls")(listing.list_)
    app.command()(listing.today)
    app.command("next")(listing.next_)


def _add_done(app: typer.Typer) -> None:
    from taskctl.cli import changing

    app.command()(changing.done)


def _add_login(app: typer.Typer) -> None:
    from taskctl.cli import login

    login.register(app)


def _add_account(app: typer.Typer) -> None:
    from taskctl.cli import account

    account.register(app)


def _add_doctor(app: typer.Typer) -> None:
    from taskctl.cli import doctor

    doctor.register(app)


def _add_token(app: typer.Typer) -> None:
    from taskctl.cli import token

    app.add_typer(token.app, name="token")


def _add_server(app: typer.Typer) -> None:
    from taskctl.cli import server

    server.register(app)


def _add_users(app: typer.Typer) -> None:
    from taskctl.cli import users

    app.add_typer(users.app, name="users")


def _add_mcp(app: typer.Typer) -> None:
    from taskctl.cli import mcp

    mcp.register(app)


class _Root(LoadingGroup):
    parts: ClassVar[Mapping[tuple[str, ...], Part]] = {
        ("tasks",): _add_tasks,
        ("add",): _add_add,
        ("ls", "today", "next"): _add_lists,
        ("done",): _add_done,
        ("login", "logout"): _add_login,
        ("status", "completion", "context"): _add_account,
        ("doctor",): _add_doctor,
        ("token",): _add_token,
        ("serve", "migrate", "db", "config"): _add_server,
        ("users",): _add_users,
        ("mcp",): _add_mcp,
    }

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command; for one that is below `tasks` only, say so."""
        if self.get_command(ctx, args[0]) is None:
            from taskctl.cli.tasks import Tasks

            if any(args[0] in names for names in Tasks.parts):
                raise UsageInvalid(f"There is no command {args[0]!r} here; write `taskctl tasks {args[0]}`.")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Root,
    name="taskctl",
    rich_markup_mode=None,  # rich costs more than the help's text is worth
    add_completion=False,  # `taskctl completion` instead
    no_args_is_help=True,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from taskctl import __version__

        typer.echo(f"taskctl {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    *,
    server: Annotated[
        str | None, typer.Option(metavar="URL", help="The server's root, without /api/v1. [TASKCTL_SERVER]")
    ] = None,
    context_name: Annotated[
        str | None, typer.Option("--context", metavar="NAME", help="Which context to use. [TASKCTL_CONTEXT]")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="For one operation and its repeats; 30. [TASKCTL_TIMEOUT]"),
    ] = None,
    allow_http: Annotated[
        bool, typer.Option("--allow-http", help="Let the token go over plain HTTP. [TASKCTL_ALLOW_HTTP=1]")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show requests, and tracebacks of what goes wrong.")
    ] = False,
    _version: Annotated[
        bool,
        typer.Option("--version", "-V", is_eager=True, callback=_print_version, help="Show the version."),
    ] = False,
) -> None:
    """Tasks on a server of yours: the command line, and the server itself."""
    context.obj = Flags(server, context_name, timeout, allow_http, debug)
