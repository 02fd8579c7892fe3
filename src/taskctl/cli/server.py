"""The operator's commands: `serve`, `migrate`, `db …` and `config show`."""

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskctl.cli import backup, output

if TYPE_CHECKING:
    from collections.abc import Iterator

    from taskctl.config import ServerSettings

_BEHIND, _AHEAD = 1, 3
"""What `db check` exits with, besides 0 and 8 for a database that cannot be reached."""

Revision = Annotated[str, typer.Argument(metavar="REVISION", help="A revision; the newest when left out.")]
Wait = Annotated[float, typer.Option(metavar="SECONDS", help="How long to wait for PostgreSQL to come up.")]
LockTimeout = Annotated[
    float, typer.Option(metavar="SECONDS", help="How long a migration may wait for a table's lock.")
]
Sql = Annotated[bool, typer.Option("--sql", help="Print the SQL instead of running it.")]

db = typer.Typer(help="The database's schema.", no_args_is_help=True, rich_markup_mode=None)
config = typer.Typer(help="The server's settings.", no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    """Add the operator's commands to the root command."""
    app.command()(serve)
    app.command()(migrate)
    backup.register(db)
    app.add_typer(db, name="db")
    app.add_typer(config, name="config")


def serve(
    *,
    host: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="The address to listen on. [TASKCTL_HOST]")
    ] = None,
    port: Annotated[
        int | None, typer.Option(metavar="PORT", help="The port; 0 takes a free one. [TASKCTL_PORT]")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", help="How many processes serve. [TASKCTL_WORKERS]")
    ] = None,
    uds: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Listen on a Unix socket instead of an address.")
    ] = None,
    fd: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Listen on a socket that is open already.")
    ] = None,
    migrate: Annotated[
        bool, typer.Option("--migrate", help="Upgrade the schema first; development does so by itself.")
    ] = False,
    reload: Annotated[
        bool, typer.Option("--reload", help="Start afresh when taskctl's code changes (development only).")
    ] = False,
) -> None:
    """Run the API server.

    On an embedded PostgreSQL, unless DATABASE_URL names another.
    """
    from taskctl.config import ServerSettings
    from taskctl.errors import UsageInvalid
    from taskctl.vocabulary import Environment

    places = {
        "--host or --port": (host, port) != (None, None),
        "--uds": uds is not None,
        "--fd": fd is not None,
    }
    if len(given := [name for name, is_given in places.items() if is_given]) > 1:
        raise UsageInvalid(f"It listens in one place: give {given[0]}, or {given[1]}.")
    flags = {"TASKCTL_HOST": host, "TASKCTL_PORT": port, "TASKCTL_WORKERS": workers}
    settings = ServerSettings.load(
        flags={name: str(value) for name, value in flags.items() if value is not None}
    )
    if reload and settings.environment is not Environment.dev:
        raise UsageInvalid("--reload is for development: TASKCTL_ENV must be dev.")
    settings.check_database()
    settings.check_trust()
    from taskctl.server.serving import serve as run  # after the settings: a refusal comes at once

    code = run(
        settings, migrate=migrate, save_context=_save_local_context, uds=uds, descriptor=fd, reload=reload
    )
    raise typer.Exit(code)


def _save_local_context(url: str, token: str) -> str:
    """Store the context `local`, or another one while the server of that name still answers elsewhere."""
    from urllib.parse import urlsplit

    from taskctl.client import Client
    from taskctl.contexts import load, save_context
    from taskctl.errors import TaskctlError

    name = "local"
    known = load().contexts.get(name)
    if known is not None and known.server != url:
        with contextlib.suppress(TaskctlError), Client(known.server, None, timeout=1) as client:
            if client.health():
                name = f"local-{urlsplit(url).port}"
    save_context(name, url, token, make_current="if-none")
    return "taskctl" if name == "local" else f"taskctl --context {name}"


def migrate(
    revision: Revision = "head", *, wait: Wait = 0, lock_timeout: LockTimeout = 5, sql: Sql = False
) -> None:
    """Upgrade the database's schema.

    `taskctl migrate` and `taskctl db upgrade` are the same.
    """
    from taskctl.server import migrations

    if sql:
        typer.echo(migrations.sql("upgrade", revision), nl=False)
        return
    with database() as settings:
        done = migrations.upgrade(settings, revision, wait=wait, lock_timeout=lock_timeout, report=typer.echo)
    if not done:
        output.note("Nothing to do.")


db.command("upgrade")(migrate)


@db.command()
def downgrade(
    revision: Annotated[
        str, typer.Argument(metavar="REVISION", help="A revision, or `base` for no schema at all.")
    ],
    *,
    wait: Wait = 0,
    lock_timeout: LockTimeout = 5,
    sql: Sql = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Take the schema back to a revision.

    What that revision cannot hold is lost.
    """
    from taskctl.server import migrations

    if sql:
        typer.echo(migrations.sql("downgrade", revision), nl=False)
        return
    question = f"Take the schema back to {revision}? Data may be lost."
    if not yes and sys.stdin.isatty() and not typer.confirm(question, err=True):
        typer.echo("Nothing is changed.", err=True)
        raise typer.Exit(1)
    with database() as settings:
        done = migrations.downgrade(
            settings, revision, wait=wait, lock_timeout=lock_timeout, report=typer.echo
        )
    if not done:
        output.note("Nothing to do.")


@db.command()
def current(*, wait: Wait = 0, as_json: output.Json = False) -> None:
    """Print the revision that the database is at."""
    from taskctl.server import migrations

    with database() as settings:
        revision = migrations.current(settings, wait=wait)
    if as_json:
        output.print_json(output.compact({"revision": revision}))
    else:
        typer.echo(revision or "empty")


@db.command()
def check(*, wait: Wait = 0, as_json: output.Json = False) -> None:
    """Compare the schema with this build, and tell how the tables lie.

    Exits 0 at head, 1 behind or empty, 3 ahead or unknown, 8 when the database cannot be reached.
    """
    from taskctl.server import distribution, migrations

    with database() as settings:
        revision = migrations.current(settings, wait=wait)
        lie = distribution.read(settings)
    state = migrations.compare(revision)
    if as_json:
        newest = migrations.revisions()[-1]
        output.print_json(
            output.compact({"state": state, "revision": revision, "head": newest, "distribution": lie})
        )
    else:
        typer.echo(migrations.describe(revision, state))
        if lie is not distribution.Distribution.none:
            typer.echo(distribution.describe(lie))
    if state in {migrations.State.behind, migrations.State.empty}:
        raise typer.Exit(_BEHIND)
    if state in {migrations.State.ahead, migrations.State.unknown}:
        raise typer.Exit(_AHEAD)


@db.command()
def distribute(
    *,
    shards: Annotated[
        int, typer.Option(metavar="N", min=1, max=10_000, help="Into how many parts to divide each table.")
    ] = 32,
    wait: Wait = 0,
    lock_timeout: LockTimeout = 5,
) -> None:
    """Spread the tables over a Citus cluster, by user.

    On its coordinator, after `taskctl db upgrade`. Writes wait while the rows move.
    """
    from taskctl.server import distribution

    with database() as settings:
        done = distribution.distribute(
            settings, shards=shards, wait=wait, lock_timeout=lock_timeout, report=typer.echo
        )
    if not done:
        output.note("Nothing to do.")


@db.command()
def purge(as_json: output.Json = False) -> None:
    """Remove for good what has been in the trash for TASKCTL_TRASH_DAYS, and old changes.

    Servers do so by themselves, every TASKCTL_PURGE_INTERVAL.
    """
    from dataclasses import asdict

    from taskctl.server import purge as purging

    with database() as settings, output.progress(None, streaming=False) as progress:
        done = purging.purge(settings, report=progress.advance)
    if as_json:
        output.print_json(output.compact(asdict(done)))
    else:
        typer.echo(f"Purged {done.tasks} tasks and {done.changes} changes.")


@db.command()
def history(as_json: output.Json = False) -> None:
    """List the revisions, oldest first."""
    from taskctl.server import migrations

    known = migrations.history()
    if as_json:
        rows = [{"revision": revision, "title": title} for revision, title in known]
        output.print_json(output.compact(rows))
    else:
        for revision, title in known:
            typer.echo(f"{revision}\t{title}")


@db.command()
def revision(
    message: Annotated[
        str, typer.Option("--message", "-m", metavar="TEXT", help="What it changes, in a few words.")
    ],
    *,
    autogenerate: Annotated[
        bool,
        typer.Option("--autogenerate", help="Fill it in with what the tables have and the database lacks."),
    ] = False,
) -> None:
    """Write a new revision's file, in a checkout."""
    from taskctl.server import migrations

    with database() as settings, contextlib.redirect_stdout(sys.stderr):  # Alembic talks
        path = migrations.new_revision(settings, message, autogenerate=autogenerate)
    typer.echo(path)


@db.command()
def url() -> None:
    """Print the connection string, for psql.

    The embedded PostgreSQL runs only while `taskctl serve` does.
    """
    from taskctl.config import ServerSettings

    settings = ServerSettings.load()
    settings.check_database()
    if settings.database_url is not None:
        typer.echo(settings.database_url.get_secret_value())
        return
    from taskctl.server.embedded import EmbeddedPostgres

    embedded = EmbeddedPostgres(settings.data_dir)
    if not embedded.is_running():
        output.note("The embedded PostgreSQL is not running; `taskctl serve` starts it.")
    typer.echo(embedded.url)


@config.command("show")
def config_show(as_json: output.Json = False) -> None:
    """Print the settings in force.

    Each with where its value came from; secrets are masked.
    """
    from taskctl.config import ServerSettings

    settings = ServerSettings.load()
    rows = []
    for name, field in ServerSettings.model_fields.items():
        variable, extra = str(field.alias), field.json_schema_extra
        default = str(extra["shown"]) if isinstance(extra, dict) else ""
        value = _shown(getattr(settings, name)) or default
        rows.append({"name": variable, "value": value, "source": settings.source(variable)})
    if as_json:
        output.print_json(output.compact(rows))
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        typer.echo(output.escaped(f"{row['name']:<{width}}  {row['value']}  ({row['source']})"))


def _shown(value: object) -> str:
    """A value as text, secrets masked; nothing where there is none."""
    if value is None:
        return ""
    if isinstance(value, tuple):
        return ",".join(str(each) for each in value)
    return json.dumps(value) if isinstance(value, bool) else str(value)


@contextlib.contextmanager
def database() -> "Iterator[ServerSettings]":
    """Settings with a database that runs: the embedded one, started if need be, or DATABASE_URL's."""
    from taskctl.config import ServerSettings
    from taskctl.server.embedded import EmbeddedPostgres

    settings = ServerSettings.load()
    if settings.database_url or settings.migration_database_url:
        yield settings
        return
    settings.check_database()
    with EmbeddedPostgres(settings.data_dir) as embedded:
        yield settings.with_database(embedded.url)
