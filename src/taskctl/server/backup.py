"""Backing up the whole database with pg_dump, and putting it back with pg_restore and psql.

A password goes to these programs through their environment, never on a command line. What they write to
stderr is kept, and one line of it becomes the error's reason.
"""

import contextlib
import os
import re
import secrets
import shutil
import stat
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import psycopg
from psycopg import sql

from taskctl.config import ServerSettings
from taskctl.errors import DatabaseUnavailable, LocalError, UsageInvalid
from taskctl.server import migrations
from taskctl.server.database import check_url
from taskctl.server.embedded import EmbeddedPostgres, bin_dir

Report = Callable[[int], None]
"""Told from time to time how many bytes of the backup are written or read."""

_TICK_SECONDS = 0.2
_CHUNK = 1 << 18
_MAGIC = b"PGDMP"
_CONNECT_TIMEOUT_SECONDS = 10
_KINDS = {"r": "TABLE", "p": "TABLE", "v": "VIEW", "m": "MATERIALIZED VIEW", "f": "FOREIGN TABLE"}
_REASON = re.compile(r"(?:ERROR|FATAL|error):\s+(.+)")
_LOST = ("connection to server", "server closed the connection", "terminating connection", "connection lost")
_RELATIONS = """
SELECT n.nspname, c.relname, c.relkind::text, n.nspname = current_schema()
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
  AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%'
  AND NOT EXISTS (
    SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
  )
ORDER BY c.relkind, 1, 2
"""

_BEGIN = f"""
BEGIN;
SET client_min_messages = error;
SET lock_timeout = '10s';
SELECT pg_advisory_xact_lock({migrations._ADVISORY_LOCK});
"""  # noqa: SLF001 - so that nobody migrates meanwhile


class Relation(NamedTuple):
    """A table or view that the database holds."""

    schema: str
    name: str
    kind: str
    in_current_schema: bool

    def __str__(self) -> str:
        return self.name if self.in_current_schema else f"{self.schema}.{self.name}"


def backup(settings: ServerSettings, file: Path | None, *, report: Report = lambda _: None) -> str:
    """Write the database, as it is at this moment, to `file` (None: stdout); return its schema's revision.

    The file appears when it is complete, readable by its owner alone; until then an older one stays.

    Raises:
        DatabaseUnavailable: the database cannot be reached, or was lost on the way.
        UsageInvalid: `file` cannot be one, or there is no pg_dump as new as the server.
        LocalError: the database has no schema, or writing failed.
    """
    with _reach(settings) as server, contextlib.ExitStack() as stack:
        revision = migrations.current(server.settings)
        if revision is None:
            raise LocalError("The database has no schema yet, so there is nothing to back up.")
        program = server.program("pg_dump")
        # Into a file pg_dump also writes where each table starts, which it does not to stdout.
        output = None if file is None else stack.enter_context(_replacing(file))
        words = [program, "--format=custom", *server.connection]
        if output is None:
            dump = stack.enter_context(server.run(words, stdout=None))
        else:
            dump = stack.enter_context(server.run([*words, f"--file={output}"]))
        while not dump.ended(_TICK_SECONDS):
            if output is not None:
                report(output.stat().st_size)
        if dump.process.returncode:
            kept = "nothing of it was kept" if file is None else f"{file} was not touched"
            raise dump.failure(f"The backup failed, and {kept}")
    return revision


def restore(
    settings: ServerSettings,
    source: IO[bytes],
    *,
    clean: bool,
    confirm: Callable[[Sequence[Relation]], None] = lambda _: None,
    report: Report = lambda _: None,
) -> str | None:
    """Bring the database to what a backup holds, in one transaction; return the schema's revision.

    Args:
        settings: where the database is.
        source: the backup, at its start; a file, not a pipe.
        clean: first drop what the database holds, where that is ours or in the backup.
        confirm: called with what will be dropped, before anything is; ends it by raising.
        report: told how much of the backup is read.

    Raises:
        DatabaseUnavailable: the database cannot be reached, or was lost on the way.
        UsageInvalid: this is no backup of taskctl's, or the database is not empty and `clean` not given,
            or there are no programs as new as the server.
        LocalError: PostgreSQL refused something. The database is then as it was before.
    """
    if os.pread(source.fileno(), len(_MAGIC), 0) != _MAGIC:
        raise UsageInvalid("This is not a backup that `taskctl db backup` or `pg_dump -Fc` has made.")
    with _reach(settings) as server, contextlib.ExitStack() as stack:
        restorer, psql = server.program("pg_restore"), server.program("psql")
        contents = _contents(server, restorer, source)
        drops = _drops(server, contents, clean=clean, confirm=confirm)
        source.seek(0)
        words = [restorer, "--no-owner", "--no-privileges", "--file=-"]
        reader = stack.enter_context(
            server.run([*words, *(["--clean", "--if-exists"] if clean else [])], stdin=source)
        )
        words = [psql, "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", *server.connection]
        writer = stack.enter_context(server.run(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL))
        _pump(reader, writer, drops, lambda: report(os.lseek(source.fileno(), 0, os.SEEK_CUR)))
        return migrations.current(server.settings)


@contextlib.contextmanager
def seekable(stream: IO[bytes]) -> Iterator[IO[bytes]]:
    """The stream itself where it is a file, else all of it in a temporary file.

    Raises:
        LocalError: the temporary file cannot be written.
    """
    if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        yield stream
        return
    try:
        copy = tempfile.TemporaryFile()  # noqa: SIM115 - closed below; only opening is explained here
    except OSError as error:
        raise LocalError(
            f"There is no place for a copy of the backup: {error.strerror}; set TMPDIR"
        ) from error
    with copy:
        try:
            shutil.copyfileobj(stream, copy)
            copy.flush()
        except OSError as error:
            raise LocalError(
                f"The backup cannot be read into {tempfile.gettempdir()}: {error.strerror}"
            ) from error
        yield copy


@dataclass
class _Run:
    """A program that runs, and the last lines of what it complains about."""

    process: subprocess.Popen[bytes]
    complaints: deque[str] = field(default_factory=lambda: deque(maxlen=100))
    listener: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.listener = threading.Thread(target=self._listen, daemon=True)

    def ended(self, seconds: float) -> bool:
        """Whether it has ended, after waiting for that up to so many seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
            return True
        return False

    def failure(self, what: str) -> LocalError | DatabaseUnavailable:
        """The error that says why it failed."""
        self.listener.join()
        output = "\n".join(self.complaints)
        found = _REASON.search(output)
        code = self.process.returncode
        reason = found[1] if found else f"{Path(str(self.process.args[0])).name} ended with {code}"  # type: ignore[index]
        kind = DatabaseUnavailable if any(sign in output for sign in _LOST) else LocalError
        return kind(f"{what}: {reason.strip().rstrip('.')}.")

    def _listen(self) -> None:
        # ValueError: an interrupted start has closed it already.
        with contextlib.suppress(ValueError):
            for line in self.process.stderr or ():
                self.complaints.append(line.decode(errors="replace").rstrip())


@dataclass(frozen=True)
class _Server:
    """The database, and how PostgreSQL's programs reach it."""

    settings: ServerSettings
    programs: Path | None
    major: int
    connection: list[str]
    environ: dict[str, str]

    def program(self, name: str) -> str:
        """The path of a program that is at least as new as the server."""
        if self.programs is not None:
            return str(self.programs / name)
        path = shutil.which(name)
        advice = f"install the client programs of PostgreSQL {self.major} and put them first on PATH"
        if path is None:
            raise UsageInvalid(f"There is no {name} on PATH: {advice}.")
        done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)  # noqa: S603 - as named
        found = re.search(r"\) (\d+)", done.stdout)
        if found is None:
            raise UsageInvalid(f"{path} does not tell its version: {advice}.")
        if int(found[1]) < self.major:
            raise UsageInvalid(
                f"{path} is of PostgreSQL {found[1]}, older than the server's {self.major}: {advice}."
            )
        return path

    @contextlib.contextmanager
    def run(
        self,
        words: Sequence[str],
        *,
        stdin: IO[bytes] | int = subprocess.DEVNULL,
        stdout: Any = subprocess.PIPE,
    ) -> Iterator[_Run]:
        """Run a program, which ends with this block at the latest; stdout None is our own."""
        with subprocess.Popen(  # noqa: S603 - PostgreSQL's own programs
            words,
            env=self.environ,
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            start_new_session=True,  # the terminal's Ctrl-C is for us alone
        ) as process:
            run = _Run(process)
            try:
                run.listener.start()
                yield run
            finally:
                process.kill()
                process.wait()
                # Ctrl-C while it starts leaves a thread that cannot be joined yet.
                if run.listener.is_alive():
                    run.listener.join()
                if process.stdin is not None:
                    with contextlib.suppress(OSError):
                        process.stdin.close()


@contextlib.contextmanager
def _reach(settings: ServerSettings) -> Iterator[_Server]:
    """The database of the settings, or the embedded one, which runs for as long as this block."""
    with contextlib.ExitStack() as stack:
        environ, programs = dict(os.environ), None
        if settings.database_url is None and settings.migration_database_url is None:
            embedded = stack.enter_context(EmbeddedPostgres(settings.data_dir))
            settings, programs = settings.with_database(embedded.url), bin_dir()
            environ = {name: value for name, value in environ.items() if not name.startswith("PG")}
        url = migrations.database_url(settings)
        check_url(url)
        words, more = _connection(url)
        with _connect(url) as connection:
            major = connection.info.server_version // 10000
        yield _Server(settings, programs, major, words, environ | more)


def _connection(url: str) -> tuple[list[str], dict[str, str]]:
    """What tells a program where the database is: its words, and for what is secret its environment."""
    options = {option.keyword.decode(): option for option in psycopg.pq.Conninfo.get_defaults()}
    words: dict[str, Any] = {}
    environ = {"LC_ALL": "C"}
    for name, value in psycopg.conninfo.conninfo_to_dict(url).items():
        option = options[name]
        if option.dispchar != b"*":
            words[name] = value
        elif option.envvar:
            environ[option.envvar.decode()] = str(value)
        else:
            raise UsageInvalid(f"`{name}` in the database's URL cannot be passed to pg_dump secretly.")
    words = {"connect_timeout": _CONNECT_TIMEOUT_SECONDS} | words
    return ["--no-password", f"--dbname={psycopg.conninfo.make_conninfo('', **words)}"], environ


@contextlib.contextmanager
def _connect(url: str) -> Iterator[psycopg.Connection]:
    try:
        connection = psycopg.connect(url, connect_timeout=_CONNECT_TIMEOUT_SECONDS, autocommit=True)
    except psycopg.OperationalError as error:
        reason = str(error).strip().partition("\n")[0]
        raise DatabaseUnavailable(f"The database cannot be reached: {reason}") from error
    with connection:
        yield connection


@contextlib.contextmanager
def _replacing(file: Path) -> Iterator[Path]:
    """A new file, which takes the place of `file` when the block ends well and else disappears."""
    file = Path(os.path.realpath(file))
    if file.is_dir():
        raise UsageInvalid(f"{file} is a directory.")
    if file.exists() and not file.is_file():
        raise UsageInvalid(f"{file} is not a regular file; `-` writes to stdout.")
    partial = file.with_name(f".{file.name}.{secrets.token_hex(4)}.partial")
    try:
        try:
            os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            yield partial
            _sync(partial)
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
        _sync(file.parent)
    except OSError as error:
        raise LocalError(f"{file} cannot be written: {error.strerror}") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _contents(server: _Server, restorer: str, source: IO[bytes]) -> list[str]:
    """The lines of the backup's table of contents, from the kind of each object on."""
    source.seek(0)
    with server.run([restorer, "--list"], stdin=source) as run:
        assert run.process.stdout is not None  # noqa: S101 - it is a pipe
        text = run.process.stdout.read().decode(errors="replace")
        if run.process.wait():
            raise run.failure("The backup cannot be read")
    lines = [line.split(" ", 3)[3] for line in text.splitlines() if re.match(r"\d+; \d+ \d+ ", line)]
    if not any(re.match(r"TABLE DATA \S+ alembic_version ", line) for line in lines):
        raise UsageInvalid("This backup is not one of a taskctl database.")
    return lines


def _drops(
    server: _Server,
    contents: Sequence[str],
    *,
    clean: bool,
    confirm: Callable[[Sequence[Relation]], None],
) -> str:
    """The statements that make place for the backup; refuses where that is not allowed."""
    with _connect(migrations.database_url(server.settings)) as connection:
        found = [Relation(*row) for row in connection.execute(_RELATIONS)]
        if not found:
            return ""
        names = ", ".join(map(str, found))
        if not clean:
            raise UsageInvalid(f"The database is not empty (it holds {names}); --clean replaces all of that.")
        own = _own_tables()
        foreign = [
            relation
            for relation in found
            if not (relation.in_current_schema and relation.name in own)
            and not any(
                line.startswith(f"{_KINDS[relation.kind]} {relation.schema} {relation.name} ")
                for line in contents
            )
        ]
        if foreign:
            names = ", ".join(map(str, foreign))
            raise UsageInvalid(
                f"The database holds {names}, which this build does not know and the backup does not hold: "
                "drop that first, or restore into another database."
            )
        confirm(found)
        statements = [
            sql.SQL("DROP {kind} IF EXISTS {name} CASCADE;\n").format(
                kind=sql.SQL(_KINDS[relation.kind]), name=sql.Identifier(relation.schema, relation.name)
            )
            for relation in found
        ]
        return sql.Composed(statements).as_string(connection)


def _own_tables() -> set[str]:
    from taskctl.server.tables import metadata  # noqa: PLC0415 - costs a server 30 MiB that it does not need

    return {*metadata.tables, "alembic_version"}


def _pump(reader: _Run, writer: _Run, drops: str, report: Callable[[], None]) -> None:
    """Give psql what pg_restore makes of the backup, and COMMIT only when that was all of it."""
    source, target = reader.process.stdout, writer.process.stdin
    assert source is not None and target is not None  # noqa: S101, PT018 - they are pipes
    what = "The restore failed, and the database is as it was"
    try:
        target.write(_BEGIN.encode())
        target.write(drops.encode())
        while chunk := source.read1(_CHUNK):  # type: ignore[attr-defined]
            target.write(chunk)
            report()
        if reader.process.wait():
            raise reader.failure(what)
        target.write(b"ANALYZE;\nCOMMIT;\n")
        target.close()
    except BrokenPipeError:
        pass  # psql has ended, and says why
    if writer.process.wait():
        raise writer.failure(what)
