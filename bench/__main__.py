"""What a request costs, next to other ways to write the same server. Prints ratios within one run.

All servers use one embedded PostgreSQL and are loaded in turn, round after round, with wrk. CPU time is what
the operating system charged the server's processes: it is stable where throughput, on a machine that does
other things, is not; the figures are those of each server's round with the least of it. A single answer other
than 2xx ends the benchmark without a figure.
"""

import argparse
import json
import platform
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.contention import contention
from bench.flame import flame
from bench.floor import floor
from bench.growth import growth
from bench.growth import users as many_users
from bench.load import OPERATIONS, SEED, USERS, Cost, LoadFailed, load
from bench.plans import plans
from bench.plot import svg
from bench.servers import SECRET, SERVERS, install_fastify, resident_mebibytes, serving
from bench.startup import startup
from bench.workers import workers
from taskctl.config import ServerSettings
from taskctl.server import migrations
from taskctl.server.embedded import EmbeddedPostgres
from taskctl.tokens import mint


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="how often each server is loaded")
    parser.add_argument("--seconds", type=int, default=1, help="how long one load lasts")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--ten-million", action="store_true", help="also a user with 10 million tasks (1 GB)")
    parser.add_argument("--quick", action="store_true", help="only see that everything works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the costs")
    parser.add_argument("--flame", type=Path, metavar="FILE", help="draw where a read's time goes (py-spy)")
    options = parser.parse_args()
    if not shutil.which("wrk"):
        sys.exit("wrk is not installed")
    if options.quick:
        options.rounds = options.seconds = 1
    place = Path(tempfile.mkdtemp(prefix="taskctl-bench-"))
    place.chmod(0o755)  # as root, PostgreSQL runs as another account
    try:
        figures = _measure(options, place)
    except LoadFailed as failure:
        sys.exit(str(failure))
    finally:
        shutil.rmtree(place)
    _print(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    if options.svg:
        costs = {
            operation: {name: cost["server"] for name, cost in servers.items()}
            for operation, servers in figures["requests"].items()
        }
        options.svg.write_text(svg(costs, figures["growth"], figures["users"]))


def _measure(options: argparse.Namespace, place: Path) -> dict[str, Any]:
    names = ["taskctl", "Starlette", "SQLModel"] if options.quick else list(SERVERS)
    if not options.quick and not install_fastify(place / "fastify"):
        names.remove("Fastify")
    with ExitStack() as stack:
        cluster = stack.enter_context(EmbeddedPostgres(place / "data"))
        postmaster = int((cluster._pgdata / "postmaster.pid").read_text().split()[0])  # noqa: SLF001
        settings = ServerSettings.load({"DATABASE_URL": cluster.url}, env_file=None)
        migrations.upgrade(settings)
        with migrations.connect(settings) as connection:
            connection.exec_driver_sql(SEED)
            connection.commit()
        servers = {name: stack.enter_context(serving(name, cluster.url)) for name in names}
        idle = {name: resident_mebibytes(pid) for name, (pid, _) in servers.items()}
        users = [f"user{number}" for number in range(1, USERS + 1)]
        requests = _requests(options, servers, postmaster, place, users)
        if options.flame and (
            picture := flame(servers["taskctl"], postmaster, place, users, options.seconds)
        ):
            options.flame.write_text(picture)
        sizes = [1000] if options.quick else [1000, 100_000, *([10_000_000] if options.ten_million else [])]
        token = mint(SECRET, "user1", 86400)
        return {
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "versions": {"python": platform.python_version(), "postgresql": "18"}
            | {name: version(name) for name in ("taskctl", "fastapi", "uvicorn", "uvloop", "psycopg")},
            "requests": requests,
            "floor": floor(cluster, postmaster, place, options.seconds),
            "contention": contention(
                servers["taskctl"],
                postmaster,
                place,
                writers=[8] if options.quick else [1, 8, 64],
                users=users,
                seconds=options.seconds,
            ),
            "growth": growth(
                cluster.url,
                servers["taskctl"],
                postmaster,
                place,
                sizes=sizes,
                rounds=1 if options.quick else 5,
            ),
            "plans": {
                name: asdict(plan)
                for name, plan in plans(cluster.url, f"owner{sizes[-1]}", sizes[-1]).items()
            },
            "users": many_users(
                cluster.url,
                postmaster,
                place,
                sizes=[100] if options.quick else [1000, 10_000, 100_000],
                rounds=1 if options.quick else 5,
            ),
            "workers": workers(
                cluster.url,
                postmaster,
                place,
                users=users,
                seconds=options.seconds,
                rounds=1 if options.quick else 3,
            ),
            "idle_mebibytes": idle,
            "startup": startup(servers["taskctl"][1], token, 1 if options.quick else 10),
        }


def _requests(
    options: argparse.Namespace,
    servers: dict[str, tuple[int, int]],
    postmaster: int,
    place: Path,
    users: list[str],
) -> dict[str, dict[str, dict[str, float]]]:
    """What each operation costs each server; round after round, as the machine is never the same for long."""
    costs: dict[str, dict[str, list[Cost]]] = {
        operation: {name: [] for name in servers} for operation in OPERATIONS
    }
    for number in range(options.rounds):
        for operation, what in OPERATIONS.items():
            for name, server in servers.items():
                costs[operation][name].append(
                    load(
                        what,
                        server,
                        postmaster,
                        place,
                        users=users,
                        seconds=options.seconds,
                        connections=options.connections,
                    )
                )
        print(f"round {number + 1} of {options.rounds} is measured", file=sys.stderr)
    # What other programs do only ever adds to it.
    return {
        operation: {name: asdict(min(each, key=lambda cost: cost.server)) for name, each in found.items()}
        for operation, found in costs.items()
    }


def _print(figures: dict[str, Any]) -> None:
    versions = ", ".join(f"{name} {each}" for name, each in figures["versions"].items())
    print(f"{figures['date']}; {versions}\n")
    print("operation server          requests/s  p50 ms  p99 ms  server µs  PostgreSQL µs  taskctl is")
    for operation, servers in figures["requests"].items():
        for name, cost in servers.items():
            ratio = servers["taskctl"]["server"] / cost["server"]
            print(f"{operation:10}{name:16}{cost['per_second']:11.0f}{cost['p50']:8.2f}", end="")
            print(f"{cost['p99']:8.2f}{cost['server']:11.0f}{cost['postgres']:15.0f}{ratio:10.2f} x")
    print("\nPostgreSQL alone, µs of its CPU: this statement, a minimal one, ratio")
    for operation, cost in figures["floor"].items():
        print(f"{operation:26}{cost['ours']:8.0f}{cost['minimal']:8.0f}{cost['ours'] / cost['minimal']:8.2f}")
    print("\nCreates, taskctl: requests/s, p50 ms")
    for name, (per_second, p50) in figures["contention"].items():
        print(f"{name:26}{per_second:8.0f}{p50:8.2f}")
    print("\nWorkers, 32 connections: requests/s, server µs")
    for name, (per_second, server) in figures["workers"].items():
        print(f"{name:26}{per_second:8.0f}{server:8.0f}")
    print(
        "\nEXPLAIN (ANALYZE, BUFFERS), the largest number of tasks of one user: ms, pages, rows read, scans"
    )
    for name, plan in figures["plans"].items():
        numbers = f"{plan['milliseconds']:8.2f}{plan['pages']:8}{plan['rows_read']:8.0f}"
        print(f"{name:26}{numbers}  {plan['nodes']}")
    for title, values in (
        ("A page of 50, µs of the CPU of server and PostgreSQL, against the first", figures["growth"]),
        ("A user's page of 5, by users, the same", figures["users"]),
        ("Memory of an idle process, MiB, against taskctl", figures["idle_mebibytes"]),
        ("Commands, ms of CPU, against the first", figures["startup"]),
    ):
        print(f"\n{title}")
        first = next(iter(values.values()))
        for name, value in values.items():
            print(f"{name:26}{value:8.0f}{value / first:8.2f}")


if __name__ == "__main__":
    main()
