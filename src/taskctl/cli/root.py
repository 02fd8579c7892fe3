"""The root command: the options before the command, and the commands, each loaded when it is asked for."""

from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from taskctl.contexts import Flags

if TYPE_CHECKING:
    from collections.abc import Callable


def _client_tasks(app: typer.Typer) -> None:
    from taskctl.cli import tasks

    app.add_typer(tasks.app, name="tasks")


def _client_account(app: typer.Typer) -> None:
    from taskctl.cli import account

    account.register(app)


def _server(app: typer.Typer) -> None:
    from taskctl.cli import server

    server.register(app)


def _token(app: typer.Typer) -> None:
    from taskctl.cli import token

    app.add_typer(token.app, name="token")


class _Root(TyperGroup):
    """A group whose commands are loaded in order, as far as needed to find the one that is asked for."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self._unloaded: list[Callable[[typer.Typer], None]] = [
            _client_tasks,
            _client_account,
            _token,
            _server,
        ]
        _spare_pydantic(self)

    def _load(self) -> None:
        part = typer.Typer(rich_markup_mode=None)
        self._unloaded.pop(0)(part)
        group = typer.main.get_group(part)
        _spare_pydantic(group)
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


class _Plain:
    """Turns a parameter's text into its type as typer does, but without pydantic.

    Typer imports pydantic for every parameter that is not a set flag, `--help` included, which takes longer
    than all the rest of a command. Where a later typer asks nobody for `get_runtime_param`, nothing breaks.
    """

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """The value as the parameter's type, or a usage error. Called by typer."""
        many = param.multiple or param.nargs == -1
        if value is None:
            return () if many else None
        return tuple(value) if many else self._one(value, param, ctx)

    def _one(self, value: Any, param: Any, ctx: Any) -> Any:
        kind, bounds = param.type_descriptor.annotation, param.type_descriptor.parameter_info
        try:
            value = kind(value)
        except ValueError:
            if issubclass(kind, Enum):
                what = "one of " + ", ".join(repr(member.value) for member in kind)
            else:
                what = "a whole number" if kind is int else "a number"
            raise typer.BadParameter(f"{value!r} is not {what}.", ctx=ctx, param=param) from None
        if bounds.min is not None and value < bounds.min:
            raise typer.BadParameter(f"{value} is less than {bounds.min}.", ctx=ctx, param=param)
        if bounds.max is not None and value > bounds.max:
            raise typer.BadParameter(f"{value} is more than {bounds.max}.", ctx=ctx, param=param)
        return value


def _spare_pydantic(command: Any) -> None:
    """Let `_Plain` read those parameters of a command, and of all below it, whose types it knows."""
    for parameter in command.get_params(typer.Context(command)):
        kind = parameter.type_descriptor.annotation
        simple = isinstance(kind, type) and issubclass(kind, str | bool | int | float | Enum)
        if kind is bool and parameter.envvar:
            continue  # a variable's text needs typer's own reading
        if (simple or kind == list[str]) and parameter.type_descriptor.parameter_info.parser is None:
            parameter.get_runtime_param = _Plain
    for child in getattr(command, "commands", {}).values():
        _spare_pydantic(child)


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
