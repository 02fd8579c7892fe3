"""A server's whole day at the loudest level: nothing that it says anywhere holds a secret."""

import json
import os
import signal
import sys

import httpx
import psycopg
import pytest

from conftest import SECRET, bare_environ, free_port, make_settings, make_user, stop, taskctl, until
from conftest import wait_until_ready as ready
from load import TASKS, variables
from taskctl.server import migrations
from taskctl.tokens import mint
from test_faults_database import clusters, stop_database
from test_workers import children

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="workers and signals")

PREVIOUS = "the previous secret which is long enough too"
PASSWORD, REDIS_PASSWORD = "database-hunter2", "redis-hunter3"
METRICS_TOKEN = "metrics-hunter4-metrics-hunter4"
FORGED_WITH = "an attacker's secret that is long enough to sign"
TITLE = "a title that is nobody's business"


def test_nothing_that_is_said_holds_a_secret(launch, tmp_path):
    """Good requests, refusals, faults, outages, metrics, health, stacks, settings: none tells a secret."""
    user = make_user()
    tokens = {
        "good": user.token,
        "previous": mint(PREVIOUS, user.id, 3600),
        "expired": make_user(lifetime=-3600).token,
        "forged": mint(FORGED_WITH, user.id, 3600),
        "session": "a-session-token.of-another-kind",
    }
    said = []
    with clusters("data") as (cluster,):
        cluster.start()
        migrations.upgrade(make_settings(cluster.url))
        with psycopg.connect(cluster.url, autocommit=True) as connection:
            connection.execute("ALTER TABLE task ADD CHECK (description <> 'unforeseen')")
        settings = variables(
            cluster.url.replace("postgres@", f"postgres:{PASSWORD}@"),
            BETTER_AUTH_SECRET_PREVIOUS=PREVIOUS,
            TASKCTL_LOG_LEVEL="debug",
            TASKCTL_LOG_FORMAT="json",
            TASKCTL_METRICS="token",
            TASKCTL_METRICS_TOKEN=METRICS_TOKEN,
            TASKCTL_RATE_LIMIT="10000/minute",
            TASKCTL_RATE_LIMIT_ANONYMOUS="3/minute",
            TASKCTL_RATE_LIMIT_STORAGE=f"redis://:{REDIS_PASSWORD}@127.0.0.1:{free_port()}/0",
        )
        assert PASSWORD in settings["DATABASE_URL"]
        server = ready(launch("--workers", "2", **settings))

        def ask(method, path, bearer="good", **options):
            headers = {"Authorization": f"Bearer {tokens.get(bearer, bearer)}"} | options.pop("headers", {})
            answer = httpx.request(method, server.url + path, headers=headers, timeout=20, **options)
            said.append(repr(answer.headers))
            if answer.status_code >= 400 or path in {"/health", "/metrics"}:
                said.append(answer.text)
            return answer.status_code

        assert ask("POST", TASKS, json={"title": TITLE}) == 201
        assert ask("GET", TASKS, "previous") == 200
        refused = [ask("GET", TASKS, token) for token in ("expired", "forged", "session") * 2]
        assert set(refused) == {401, 429}
        assert ask("GET", f"{TASKS}/1?token={user.token}") == 422
        assert ask("GET", f"/{user.token}", headers={"Cookie": f"session={user.token}"}) == 404
        assert ask("POST", TASKS, json={"title": TITLE, "description": "unforeseen"}) == 500
        assert ask("POST", TASKS, content=f'{{"title": "{TITLE}"') == 400
        assert ask("GET", "/metrics", METRICS_TOKEN) == 200
        assert ask("GET", "/metrics", METRICS_TOKEN + "x") == 401
        assert ask("GET", "/health") == 200
        stop_database(cluster, "immediate")
        assert ask("GET", TASKS) == 503
        assert ask("GET", "/readyz") == 503
        assert ask("GET", "/health") == 200
        for pid in children(server):
            os.kill(pid, signal.SIGUSR1)  # where each thread is
        until(lambda: "most recent call first" in server.log.read_text())
        environ = bare_environ(tmp_path, **settings)
        for words in (
            ["config", "show"],
            ["db", "check"],
            ["serve", "--port", server.url.rpartition(":")[2]],
        ):
            done = taskctl(*words, environ=environ)
            said += [done.out, done.err]
        assert stop(server) == 0
        said += [server.log.read_text(), server.out.read_text()]
    events = {json.loads(line)["event"] for line in said[-2].splitlines() if line.startswith("{")}
    assert {"request", "auth_refused", "internal_error", "database_connection_lost"} <= events
    everything = "\n".join(said)
    secrets = [SECRET, PREVIOUS, FORGED_WITH, PASSWORD, REDIS_PASSWORD, METRICS_TOKEN, TITLE]
    # A part of a token gives as much away as the whole.
    secrets += [part for token in tokens.values() for part in token.split(".")[1:]]
    # An error names the path that was asked for, to who asked for it and to nobody else.
    without_paths = everything.replace(f"/{user.token}", "")
    assert [each for each in secrets if each in without_paths] == []
    assert user.token not in said[-2]
