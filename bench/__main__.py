"""Run both servers on one embedded PostgreSQL, load them in turn, and print CPU per request and the ratio.

Needs wrk. CPU time is what the operating system charged the server's process: it is stable where
throughput, on a machine that does other things, is not. A run with a single answer other than 2xx counts
for nothing and ends the benchmark.
"""

import argparse
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from taskctl.config import ServerSettings
from taskctl.server import migrations
from taskctl.server.embedded import EmbeddedPostgres
from taskctl.tokens import mint

SECRET = "a secret for the benchmark, long enough to sign with"  # noqa: S105 - signs nothing of value
USERS, TASKS = 20, 200
SEED = f"""
INSERT INTO account (user_id, last_task_id) SELECT 'user' || u, {TASKS} FROM generate_series(1, {USERS}) u;
INSERT INTO task (user_id, id, title, completed, version)
SELECT 'user' || u, t, 'Task number ' || t, false, 1
FROM generate_series(1, {USERS}) u, generate_series(1, {TASKS}) t;
ANALYZE;
"""
OPERATIONS = {
    "read": ("GET", "/tasks/17", ""),
    "list 50": ("GET", "/tasks?limit=50", ""),
    "create": ("POST", "/tasks", '{"title": "Buy milk"}'),
    "complete": ("PATCH", "/tasks/18/complete", '{"completed": true}'),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often each server is loaded")
    parser.add_argument("--seconds", type=int, default=3, help="how long one load lasts")
    parser.add_argument("--connections", type=int, default=16)
    options = parser.parse_args()
    if not shutil.which("wrk"):
        sys.exit("wrk is not installed")
    place = Path(tempfile.mkdtemp(prefix="taskctl-bench-"))
    place.chmod(0o755)  # as root, PostgreSQL runs as another account
    try:
        with ExitStack() as stack:
            postgres = stack.enter_context(EmbeddedPostgres(place / "data"))
            settings = ServerSettings.load({"DATABASE_URL": postgres.url}, env_file=None)
            migrations.upgrade(settings)
            with migrations.connect(settings) as connection:
                connection.exec_driver_sql(SEED)
                connection.commit()
            servers = {
                "taskctl": stack.enter_context(_server("taskctl", postgres.url)),
                "reference": stack.enter_context(_server("reference", postgres.url)),
            }
            print(f"{'':10}{'taskctl':>12}{'reference':>12}{'ratio':>8}    µs of server CPU per request")
            for name in OPERATIONS:
                costs: dict[str, list[float]] = {server: [] for server in servers}
                for _ in range(options.rounds):
                    for server, (pid, port) in servers.items():
                        costs[server].append(_load(name, pid, port, place, options))
                ours, reference = (statistics.median(costs[server]) for server in servers)
                print(f"{name:10}{ours:12.0f}{reference:12.0f}{ours / reference:8.2f}", flush=True)
    finally:
        shutil.rmtree(place)


@contextmanager
def _server(name: str, database_url: str) -> Iterator[tuple[int, int]]:
    """A server's process id and port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    reference = ["uvicorn", "bench.reference:create_app", "--factory", "--no-access-log", "--log-level=error"]
    module = {"taskctl": ["taskctl", "serve"], "reference": reference}[name]
    command = [sys.executable, "-m", *module, f"--port={port}"]
    environ = os.environ | {
        "DATABASE_URL": database_url,
        "BETTER_AUTH_SECRET": SECRET,
        "TASKCTL_ENV": "test",
        "TASKCTL_LOG_FORMAT": "json",
    }
    with subprocess.Popen(
        command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            _wait_for(f"http://127.0.0.1:{port}/livez")
            yield process.pid, port
        finally:
            process.terminate()


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(url, timeout=1).close()  # noqa: S310 - a loopback address of our own
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def _load(name: str, pid: int, port: int, place: Path, options: argparse.Namespace) -> float:
    """Microseconds of CPU per request of one load."""
    method, path, body = OPERATIONS[name]
    tokens = [mint(SECRET, f"user{number}", 86400) for number in range(1, USERS + 1)]
    script = place / "load.lua"
    users = ",".join(f'{{"user{number}","{token}"}}' for number, token in enumerate(tokens, 1))
    script.write_text(
        f"local users = {{{users}}}\nlocal turn = 0\n"
        "function request()\n  turn = turn % #users + 1\n  local user = users[turn]\n"
        f'  return wrk.format("{method}", "/api/v1/" .. user[1] .. "{path}",\n'
        '    {["Authorization"] = "Bearer " .. user[2], ["Content-Type"] = "application/json"},'
        f" {repr(body) if body else 'nil'})\nend\n"
    )
    url = f"http://127.0.0.1:{port}"
    before = _cpu_seconds(pid)
    output = subprocess.run(
        ["wrk", "-t1", f"-c{options.connections}", f"-d{options.seconds}s", "-s", script, url],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    used = _cpu_seconds(pid) - before
    requests = re.search(r"(\d+) requests in", output)
    if requests is None or "Non-2xx" in output or "Socket errors" in output:
        sys.exit(f"{name} had errors:\n{output}")
    return used / int(requests[1]) * 1e6


def _cpu_seconds(pid: int) -> float:
    """User and system time of a process, in seconds (proc(5), fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
