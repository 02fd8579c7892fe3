"""Load on one server: what is asked, by how many at once, and what it cost."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from bench.servers import SECRET, cpu_seconds
from taskctl.tokens import mint

USERS, TASKS = 20, 200
SEED = f"""
INSERT INTO account (user_id, last_task_id) SELECT 'user' || u, {TASKS} FROM generate_series(1, {USERS}) u;
INSERT INTO task (user_id, id, title, completed, version)
SELECT 'user' || u, t, 'Task number ' || t, false, 1
FROM generate_series(1, {USERS}) u, generate_series(1, {TASKS}) t;
ANALYZE;
"""

OPERATIONS = {
    "read": ("GET", "/tasks/17", ("nil",)),
    "list 50": ("GET", "/tasks?limit=50", ("nil",)),
    "create": ("POST", "/tasks", ("""'{"title": "Buy milk"}'""",)),
    "complete": ("PATCH", "/tasks/18/complete", ("""'{"completed": true}'""", """'{"completed": false}'""")),
}
"""Method, path below the user's, and bodies in turn, as Lua has it: every second completion reopens."""

_SCRIPT = """
local users = {%(users)s}
local bodies = {%(bodies)s}
local turn = 0
function request()
  local user, body = users[turn %% #users + 1], bodies[math.floor(turn / #users) %% %(count)s + 1]
  turn = turn + 1
  local headers = {["Authorization"] = "Bearer " .. user[2], ["Content-Type"] = "application/json"}
  return wrk.format("%(method)s", "/api/v1/" .. user[1] .. "%(path)s", headers, body)
end
function done(summary, latency)
  local e = summary.errors
  print("RESULT", summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
        e.status + e.connect + e.read + e.write + e.timeout)
end
"""


_LONGEST_SECONDS = 16


@dataclass(frozen=True)
class Cost:
    """What one load came to: rate, milliseconds, and microseconds of CPU for each request."""

    per_second: float
    p50: float
    p99: float
    server: float
    postgres: float


class LoadFailed(Exception):
    """An answer was not 2xx, or there was none: what was measured is no figure."""


def load(
    operation: tuple[str, str, tuple[str, ...]],
    server: tuple[int, int],
    postgres: int,
    place: Path,
    *,
    users: list[str],
    seconds: int,
    connections: int,
) -> Cost:
    """Load one server; raises LoadFailed where a single answer was other than 2xx."""
    method, path, bodies = operation
    pid, port = server
    script = place / "load.lua"
    tokens = ",".join(f'{{"{user}","{mint(SECRET, user, 86400)}"}}' for user in users)
    values = {"method": method, "path": path, "users": tokens, "bodies": ",".join(bodies)}
    script.write_text(_SCRIPT % (values | {"count": len(bodies)}))
    before = cpu_seconds(pid), cpu_seconds(postgres)
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script)]
    done = subprocess.run([*command, f"http://127.0.0.1:{port}"], check=False, capture_output=True, text=True)
    used = cpu_seconds(pid) - before[0], cpu_seconds(postgres) - before[1]
    result = next((line.split() for line in done.stdout.splitlines() if line.startswith("RESULT")), None)
    if result is None or result[5] != "0" or result[1] == "0":
        raise LoadFailed(f"{method} {path} had errors:\n{done.stdout}{done.stderr}")
    if min(used) <= 0 and seconds < _LONGEST_SECONDS:
        # Less than the kernel's clock shows, where others had the processors: no figure either.
        return load(
            operation, server, postgres, place, users=users, seconds=2 * seconds, connections=connections
        )
    requests, microseconds, p50, p99 = (float(each) for each in result[1:5])
    return Cost(
        per_second=requests / microseconds * 1e6,
        p50=p50 / 1000,
        p99=p99 / 1000,
        server=used[0] / requests * 1e6,
        postgres=used[1] / requests * 1e6,
    )
