"""The servers that are compared, and what the operating system says that they use."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from taskctl.server import lists, queries
from taskctl.server.pipeline import numbered

SECRET = "a secret for the benchmark, long enough to sign with"  # noqa: S105 - signs nothing of value

STATEMENTS = {
    "read": queries.READ_TASK,
    "list 50": lists.statement(lists.Shape()),
    "create": queries.CREATE_TASK,
    "complete": queries.COMPLETE_TASK,
}
"""What each operation asks of PostgreSQL, in every server but the one with SQLModel."""

_NOT_NULL = {"completed": False, "due_all_day": False, "follows": 0, "priority": 0, "tags": ""}

PARAMETERS = {
    name: {each: _NOT_NULL.get(each) for each in numbered(statement.sql)[1]}
    for name, statement in STATEMENTS.items()
}
"""What each statement is bound to where an operation says nothing else."""

_FASTIFY = Path(__file__).parent / "fastify"
_TASKCTL = (sys.executable, "-m", "taskctl", "serve", "--port")
_UVICORN = (sys.executable, "-m", "uvicorn", "--factory", "--no-access-log", "--log-level=error", "--port")
_ALL_ON = {"TASKCTL_RATE_LIMIT": "1000000/second", "TASKCTL_RATE_LIMIT_ANONYMOUS": "60/minute"}
_ALL_OFF = {"TASKCTL_RATE_LIMIT": "", "TASKCTL_METRICS": "off", "TASKCTL_LOG_LEVEL": "warning"}

SERVERS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "taskctl": (_TASKCTL, _ALL_ON),
    "taskctl, pool": (_TASKCTL, {**_ALL_ON, "TASKCTL_PIPELINE": "off"}),
    "taskctl, quiet": (_TASKCTL, _ALL_OFF),
    "Starlette": ((*_UVICORN[:3], "bench.reference:create_app", *_UVICORN[3:]), {}),
    "Fastify": (("node", str(_FASTIFY / "server.js")), {}),
    "SQLModel": ((*_UVICORN[:3], "bench.sqlmodel_reference:create_app", *_UVICORN[3:]), {}),
}
"""Command, to which the port is added, and environment. `quiet` has no limiter, metrics and log."""

WORKERS = {
    f"{number} worker{'s' * (number > 1)}": (_TASKCTL, {**_ALL_ON, "TASKCTL_WORKERS": str(number)})
    for number in (1, 2)
}
"""The same for one process and for several."""


def install_fastify(place: Path) -> bool:
    """Install the Node reference in `place`; false, with the reason on stderr, where that is not possible."""
    if not shutil.which("npm"):
        print("There is no npm: going on without Fastify.", file=sys.stderr)
        return False
    shutil.copytree(_FASTIFY, place, ignore=shutil.ignore_patterns("node_modules"))
    command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--silent"]
    if subprocess.run(command, cwd=place, check=False, stdout=subprocess.DEVNULL).returncode:
        print("npm install failed: going on without Fastify.", file=sys.stderr)
        return False
    SERVERS["Fastify"] = ("node", str(place / "server.js")), {}
    return True


@contextmanager
def serving(name: str, database_url: str) -> Iterator[tuple[int, int]]:
    """A server's process id and port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command, variables = (SERVERS | WORKERS)[name]
    texts = {name: numbered(statement.sql)[0].decode() for name, statement in STATEMENTS.items()}
    environ: Mapping[str, str] = {
        **os.environ,
        "DATABASE_URL": database_url,
        "BENCH_STATEMENTS": json.dumps(
            {n: {"text": t, "parameters": PARAMETERS[n]} for n, t in texts.items()}
        ),
        "BETTER_AUTH_SECRET": SECRET,
        "TASKCTL_ENV": "test",
        "TASKCTL_LOG_FORMAT": "json",
        **variables,
    }
    with subprocess.Popen(
        [*command, str(port)], env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            _wait_for(f"http://127.0.0.1:{port}/livez")
            yield process.pid, port
        finally:
            process.terminate()


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, its descendants, and those of them that have ended (proc(5), /proc/PID/stat).

    One file is read after the other, and what ends in between is in neither its own nor its parent's: so all
    are read until nothing has ended since.
    """
    seen: set[int] = set()
    while (ticks := _ticks(pid)).keys() != seen:
        seen = set(ticks)
    return sum(ticks.values()) / os.sysconf("SC_CLK_TCK")


def _ticks(pid: int) -> dict[int, int]:
    """CPU time by process, in the kernel's units."""
    ticks, parents = {}, {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        each = int(file.parent.name)
        parents[each] = int(fields[1])
        ticks[each] = sum(int(field) for field in fields[11:15])
    found = {}
    for each, used in ticks.items():
        ancestor = each
        while ancestor not in (pid, 0):
            ancestor = parents.get(ancestor, 0)
        if ancestor == pid:
            found[each] = used
    return found


def resident_mebibytes(pid: int) -> float:
    """Memory that a process has in use."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(url, timeout=1).close()  # noqa: S310 - a loopback address of our own
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return
