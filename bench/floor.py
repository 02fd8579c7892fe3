"""What PostgreSQL itself needs for the statements: pgbench on prepared statements, no server in between."""

import re
import sys
from pathlib import Path

from bench.load import USERS
from bench.servers import STATEMENTS, cpu_seconds
from taskctl.server.embedded import EmbeddedPostgres

_VALUES = {
    "user_id": "('user' || :u)",
    "id": "17",
    "limit": "50",
    "title": "'Buy milk'",
    "completed": ":done",
    "set_description": "false",
}
"""What stands for each parameter; null for the others."""

_FIELDS = "id, user_id, title, description, completed, completed_at, version, created_at, updated_at"

_MINIMAL = {
    "read": f"""
        SELECT row_to_json(t) FROM (
            SELECT {_FIELDS} FROM task WHERE user_id = 'user' || :u AND id = 17
        ) AS t""",
    "list 50": f"""
        SELECT json_agg(t) FROM (
            SELECT {_FIELDS} FROM task WHERE user_id = 'user' || :u AND id >= 0 ORDER BY id LIMIT 51
        ) AS t""",
    "create": f"""
        WITH next AS (
            UPDATE account SET last_task_id = last_task_id + 1 WHERE user_id = 'user' || :u
            RETURNING last_task_id
        ), made AS (
            INSERT INTO task (user_id, id, title, completed, version)
            SELECT 'user' || :u, last_task_id, 'Buy milk', false, 1 FROM next RETURNING {_FIELDS}
        ) SELECT row_to_json(made) FROM made""",
    "complete": f"""
        WITH made AS (
            UPDATE task SET completed = :done, completed_at = CASE WHEN :done THEN now() END,
                            version = version + 1, updated_at = now()
            WHERE user_id = 'user' || :u AND id = 17 AND completed <> :done RETURNING {_FIELDS}
        ) SELECT row_to_json(made) FROM made""",
}
"""The shortest that gives the same tasks as JSON: times as PostgreSQL writes them, no keys, no next page, no
word on why nothing was changed."""


def floor(
    cluster: EmbeddedPostgres, postmaster: int, place: Path, seconds: int
) -> dict[str, dict[str, float]]:
    """PostgreSQL's CPU microseconds for each statement, as it is and at its least."""
    found = {}
    for name, statement in STATEMENTS.items():
        ours = re.sub(r"%\((\w+)\)s", lambda match: _VALUES.get(match[1], "NULL"), statement.sql)
        # pgbench sees variables in literals, too.
        ours = ours.replace(":MI:SS", ":' || 'MI:' || 'SS")
        found[name] = {
            label: _run(cluster, postmaster, place, sql.replace(":done", "(:n % 2 = 0)"), seconds)
            for label, sql in (("ours", ours), ("minimal", _MINIMAL[name]))
        }
    return found


def _run(cluster: EmbeddedPostgres, postmaster: int, place: Path, sql: str, seconds: int) -> float:
    script = place / "script.sql"
    script.write_text(f"\\set u random(1, {USERS})\n\\set n random(1, 1000)\n{' '.join(sql.split())};\n")
    script.chmod(0o644)
    before = cpu_seconds(postmaster)
    options = ("-n", "-M", "prepared", "-c", "8", "-T", str(seconds), "-f", str(script))
    host = ("-h", str(cluster._socket_dir()), "-U", "postgres")  # noqa: SLF001 - where it listens
    done = cluster._run("pgbench", *options, *host, "taskctl", timeout=seconds + 60)  # noqa: SLF001
    used = cpu_seconds(postmaster) - before
    count = re.search(r"actually processed: (\d+)", done.stdout)
    if done.returncode or count is None or "number of failed transactions: 0" not in done.stdout:
        sys.exit(f"pgbench failed:\n{done.stdout}{done.stderr}")
    return used / int(count[1]) * 1e6
