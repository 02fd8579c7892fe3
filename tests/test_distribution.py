"""`taskctl db distribute`: what it says without Citus, and all of it where TASKCTL_TEST_CITUS_URL names one.

That database must be empty, on the coordinator of a cluster with Citus in it; it is empty again afterwards.
"""

import asyncio
import json
import os

import pytest

from conftest import bare_environ, client_of, make_settings, make_user, taskctl
from taskctl.server import migrations
from taskctl.server.app import create_app

CITUS_URL = os.environ.get("TASKCTL_TEST_CITUS_URL", "")

citus = pytest.mark.skipif(not CITUS_URL, reason="TASKCTL_TEST_CITUS_URL names no Citus cluster")


def environ_of(url, home):
    """The environment of an operator of this database."""
    return bare_environ(home, TASKCTL_ENV="prod", DATABASE_URL=url)


def test_without_citus(empty_database, tmp_path):
    """It refuses, changes nothing, and `check` says nothing of it."""
    environ = environ_of(empty_database, tmp_path)
    assert taskctl("db", "upgrade", environ=environ).code == 0
    before = taskctl("db", "check", "--json", environ=environ)
    done = taskctl("db", "distribute", environ=environ)
    assert (done.code, done.out) == (1, "")
    assert "This PostgreSQL has no Citus" in done.err
    assert "Nothing was changed" in done.err
    assert taskctl("db", "check", "--json", environ=environ) == before
    assert json.loads(before.out)["distribution"] == "none"
    assert "distributed" not in taskctl("db", "check", environ=environ).out


def test_a_schema_that_is_behind(empty_database, tmp_path):
    """It asks for the upgrade first."""
    done = taskctl("db", "distribute", environ=environ_of(empty_database, tmp_path))
    assert done.code == 1
    assert "taskctl db upgrade" in done.err


@pytest.mark.parametrize("shards", ["0", "-1", "many"])
def test_how_many_shards(empty_database, tmp_path, shards):
    """A number of shards that cannot be is refused before anything else."""
    done = taskctl("db", "distribute", "--shards", shards, environ=environ_of(empty_database, tmp_path))
    assert (done.code, "--shards" in done.err) == (2, True)


@pytest.fixture
def cluster(tmp_path):
    """The cluster's database, at this build's schema, for one test."""
    environ = environ_of(CITUS_URL, tmp_path)
    settings = make_settings(CITUS_URL)
    assert migrations.current(settings) in {None, ""}, "TASKCTL_TEST_CITUS_URL must name an empty database"
    migrations.upgrade(settings)
    yield environ
    migrations.downgrade(settings, "base")


@citus
def test_distribute_a_database_that_is_in_use(cluster):
    """Nothing is lost, every operation works afterwards, a second time does nothing, and migrations work."""
    first, second = make_user(), make_user()

    async def use(user, number):
        """One user's life: every statement of the request path, with what each must answer."""
        application = create_app(make_settings(CITUS_URL))
        async with application.router.lifespan_context(application), client_of(application) as api:
            api.headers.update(user.headers)
            path = "/api/v1/me/tasks"
            key = {"Idempotency-Key": f"once-{number}"}
            made = await api.post(path, json={"title": "One"}, headers=key)
            again = await api.post(path, json={"title": "One"}, headers=key)
            assert (made.status_code, again.status_code) == (201, 201)
            assert again.json() == made.json()
            one = f"{path}/{made.json()['id']}"
            done = await api.post(f"{one}/complete")
            assert done.json()["completed_at"] is not None
            renamed = await api.patch(one, json={"title": "Two"})
            assert renamed.json()["completed_at"] == done.json()["completed_at"]
            reopened = await api.patch(one, json={"completed": False})
            assert reopened.json()["completed_at"] is None
            stale = await api.patch(one, json={"title": "Three"}, headers={"If-Match": made.headers["ETag"]})
            assert stale.status_code == 412
            assert (await api.get(one)).json() == reopened.json()
            for title in ("Four", "Five"):
                assert (await api.post(path, json={"title": title})).status_code == 201
            assert (await api.delete(one)).status_code == 204
            assert (await api.delete(one)).status_code == 404
            page = (await api.get(path, params={"limit": 1, "status": "pending"})).json()
            assert page["next_cursor"]
            return (await api.get(path)).json()

    before = asyncio.run(use(first, 1))
    done = taskctl("db", "distribute", "--shards", "4", environ=cluster)
    assert done.out == "account\ntask\nchange\nbulk\n"
    assert "distributed by user" in taskctl("db", "check", environ=cluster).out
    again = taskctl("db", "distribute", environ=cluster)
    assert (again.code, again.out, again.err) == (0, "", "")
    assert [task["title"] for task in before["items"]] == ["Four", "Five"]
    after = asyncio.run(use(first, 2))
    assert after["items"][:2] == before["items"]
    assert [task["id"] for task in after["items"]] == [2, 3, 5, 6]
    asyncio.run(use(second, 1))
    assert taskctl("db", "downgrade", "0001", "--yes", environ=cluster).code == 0
    assert taskctl("db", "upgrade", environ=cluster).code == 0
