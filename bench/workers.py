"""Two workers against one, on the cores that there are."""

from contextlib import ExitStack
from pathlib import Path

from bench.load import OPERATIONS, Cost, load
from bench.servers import WORKERS, serving


def workers(
    database_url: str, postmaster: int, place: Path, *, users: list[str], seconds: int, rounds: int
) -> dict[str, tuple[float, float]]:
    """Requests a second, and server CPU microseconds of one, by operation and number of workers."""
    operations = ("read", "create")
    with ExitStack() as stack:
        servers = {name: stack.enter_context(serving(name, database_url)) for name in WORKERS}
        costs: dict[str, list[Cost]] = {f"{each}, {name}": [] for each in operations for name in servers}
        for _ in range(rounds):
            for each in operations:
                for name, server in servers.items():
                    cost = load(
                        OPERATIONS[each],
                        server,
                        postmaster,
                        place,
                        users=users,
                        seconds=seconds,
                        connections=32,
                    )
                    costs[f"{each}, {name}"].append(cost)
    best = {name: max(each, key=lambda cost: cost.per_second) for name, each in costs.items()}
    return {name: (cost.per_second, cost.server) for name, cost in best.items()}
