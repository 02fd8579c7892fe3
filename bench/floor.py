"""What PostgreSQL itself needs for the statements: pgbench on prepared statements, no server in between."""

import re
import sys
from pathlib import Path

from bench.load import USERS
from bench.servers import PARAMETERS, STATEMENTS, cpu_seconds
from taskctl.models import Task
from taskctl.server.embedded import EmbeddedPostgres

_VALUES = {
    "user_id": "('user' || :u)",
    "id": "17",
    "limit": "50",
    "title": "'Buy milk'",
    "completed": ":done",
}
"""What stands for each parameter, where that is not what the servers' references have."""

_FIELDS = ", ".join(Task.model_fields)

_LOGGED = """logged AS (
            INSERT INTO change (user_id, number, type, task_id, at, task)
            SELECT user_id, number, '{}', id, updated_at, row_to_json(made) FROM made
        ) SELECT row_to_json(made) FROM made"""

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
            UPDATE account SET last_task_id = last_task_id + 1, last_change = last_change + 1
            WHERE user_id = 'user' || :u RETURNING last_task_id, last_change
        ), made AS (
            INSERT INTO task (user_id, id, title, completed, version)
            SELECT 'user' || :u, last_task_id, 'Buy milk', false, 1 FROM next
            RETURNING {_FIELDS}, (SELECT last_change FROM next) AS number
        ), {_LOGGED.format("created")}""",
    "complete": f"""
        WITH next AS (
            UPDATE account SET last_change = last_change + 1 WHERE user_id = 'user' || :u
            RETURNING last_change AS number
        ), made AS (
            UPDATE task SET completed = :done, completed_at = CASE WHEN :done THEN now() END,
                            version = version + 1, updated_at = now()
            FROM next WHERE user_id = 'user' || :u AND id = 17 AND completed <> :done
            RETURNING {_FIELDS}, number
        ), {_LOGGED.format("completed")}""",
}
"""The shortest that gives the same tasks as JSON: times as PostgreSQL writes them, no keys, no next page, no
word on why nothing was changed."""


def floor(
    cluster: EmbeddedPostgres, postmaster: int, place: Path, seconds: int
) -> dict[str, dict[str, float]]:
    """PostgreSQL's CPU microseconds for each statement, as it is and at its least."""
    found = {}
    for name, statement in STATEMENTS.items():
        values = {each: _literal(value) for each, value in PARAMETERS[name].items()} | _VALUES
        ours = re.sub(r"%\((\w+)\)s", lambda match: values[match[1]], statement.sql)  # noqa: B023 - used now
        # pgbench sees variables in literals, too.
        ours = ours.replace(":MI:SS", ":' || 'MI:' || 'SS")
        found[name] = {
            label: _run(cluster, postmaster, place, sql.replace(":done", "(:n % 2 = 0)"), seconds)
            for label, sql in (("ours", ours), ("minimal", _MINIMAL[name]))
        }
    return found


def _literal(value: str | float | None) -> str:
    return "NULL" if value is None else f"'{value}'"


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
