"""`taskctl tasks`: the group of the client's commands. Each subject has a module of its own."""

from collections.abc import Mapping
from typing import ClassVar

import typer

from taskctl.cli.listing import AllOption, LimitOption, OrderOption, StatusOption, list_
from taskctl.cli.loading import LoadingGroup, Part
from taskctl.cli.output import Json, Ndjson, Quiet
from taskctl.errors import UsageInvalid


def _add_lists(app: typer.Typer) -> None:
    from taskctl.cli import listing

    listing.register(app)


def _add_add(app: typer.Typer) -> None:
    from taskctl.cli import add

    add.register(app)


def _add_show(app: typer.Typer) -> None:
    from taskctl.cli import show

    app.command()(show.show)


def _add_edit(app: typer.Typer) -> None:
    from taskctl.cli import edit

    app.command()(edit.edit)


def _add_changing(app: typer.Typer) -> None:
    from taskctl.cli import changing

    changing.register(app)


def _add_watch(app: typer.Typer) -> None:
    from taskctl.cli import watch

    app.command()(watch.watch)


def _add_stats(app: typer.Typer) -> None:
    from taskctl.cli import stats

    app.command()(stats.stats)


def _add_offline(app: typer.Typer) -> None:
    from taskctl.cli import offline

    offline.register(app)


def _add_export(app: typer.Typer) -> None:
    from taskctl.cli import exporting

    app.command()(exporting.export)


def _add_import(app: typer.Typer) -> None:
    from taskctl.cli import importing

    app.command("import")(importing.import_)


class Tasks(LoadingGroup):
    """The commands below `taskctl tasks`."""

    parts: ClassVar[Mapping[tuple[str, ...], Part]] = {
        ("add",): _add_add,
        ("list", "ls", "today", "next"): _add_lists,
        ("show",): _add_show,
        ("edit",): _add_edit,
        ("done", "complete", "reopen", "rm", "delete", "restore"): _add_changing,
        ("undo", "sync"): _add_offline,
        ("stats",): _add_stats,
        ("watch",): _add_watch,
        ("export",): _add_export,
        ("import",): _add_import,
    }


app = typer.Typer(
    cls=Tasks,
    invoke_without_command=True,
    epilog="In a pipe a task is one line of tab-separated fields: id, status (pending or completed), title, "
    "time of its last change. In a title a tab is written \\t, a line's end \\n, and other control "
    "characters \\xNN.",
)


@app.callback()
def tasks(
    context: typer.Context,
    *,
    status: StatusOption = None,
    limit: LimitOption = None,
    everything: AllOption = False,
    order: OrderOption = None,
    as_json: Json = False,
    ndjson: Ndjson = False,
    quiet: Quiet = False,
) -> None:
    """Add, list and change tasks. Without a command: list them."""
    if context.invoked_subcommand is None:
        list_(
            context,
            status=status,
            limit=limit,
            everything=everything,
            order=order,
            as_json=as_json,
            ndjson=ndjson,
            quiet=quiet,
        )
    elif any((status, limit, everything, order, as_json, ndjson, quiet)):
        raise UsageInvalid(
            f"Options go after the command, as in `taskctl tasks {context.invoked_subcommand} --json`."
        )
