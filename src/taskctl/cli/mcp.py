"""`taskctl mcp`: the tasks for an assistant, which starts it and speaks to it through pipes."""

from typing import TYPE_CHECKING, Annotated

import typer

from taskctl.cli import clock, output
from taskctl.contexts import Flags, resolve
from taskctl.errors import SettingsInvalid, UsageInvalid

if TYPE_CHECKING:
    from taskctl.client import Client


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(mcp)


def mcp(
    context: typer.Context,
    *,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Offer nothing that changes a task.")
    ] = False,
    time_zone: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Read and show dates there; this machine's zone. [TZ]"),
    ] = None,
) -> None:
    """Let an assistant work on the tasks.

    The assistant's program starts it, and speaks the Model Context Protocol to it through pipes. Needs the
    extra `mcp`.
    """
    from taskctl import dates

    flags: Flags = context.find_root().obj
    settings = resolve(flags)
    settings.require_token()
    try:
        zone = clock.here()[1] if time_zone is None else dates.zone_of(time_zone)
    except ValueError as error:
        raise UsageInvalid(f"--time-zone: {error}") from None
    try:
        from taskctl import assistant
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"mcp", "mcp_types"}:
            raise
        raise SettingsInvalid("`taskctl mcp` needs an extra: pip install 'taskctl[mcp]'.") from None

    def reconnect() -> "Client | None":
        now = resolve(flags)
        same = (now.server, now.context) == (settings.server, settings.context)
        return output.connect(now, debug=flags.debug) if same and now.token else None

    client = output.connect(settings, debug=flags.debug)
    assistant.serve(assistant.Assistant(client, reconnect=reconnect, zone=zone, read_only=read_only))
