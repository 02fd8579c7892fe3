"""The root command: the options before the command, and the commands, each loaded when it is asked for."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from taskctl.cli.conversion import spare_pydantic
from taskctl.contexts import Flags


def _add_tasks(app: typer.Typer) -> None:
    from taskctl.cli import tasks

    app.add_typer(tasks.app, name="tasks")


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


class _Root(TyperGroup):
    """A group whose commands are loaded in order, as far as needed to find the one that is asked for."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self._unloaded = [
            _add_tasks, _add_login, _add_account, _add_doctor, _add_token, _add_server, _add_users, _add_mcp,
        ]  # fmt: skip
        spare_pydantic(self)

    def _load(self) -> None:
        part = typer.Typer(rich_markup_mode=None)
        add = self._unloaded.pop(0)
        add(part)
        group = typer.main.get_group(part)
        spare_pydantic(group)
        self.commands.update(group.commands)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Look a command up, loading the parts that come before it."""
        while cmd_name not in self.commands and self._unloaded:
            self._load()
        return super().get_command(ctx, cmd_name)

    def list_commands(self, ctx: Any) -> list[str]:
        """Load all parts, because `--help` and completion show all commands."""
        while self._unloaded:
            self._load()
        return super().list_commands(ctx)


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
