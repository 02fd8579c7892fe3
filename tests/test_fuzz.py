"""What `/openapi.json` says is what the server does: schemathesis makes requests of it, good and bad.

`FUZZ_EXAMPLES` is how many requests each operation gets beyond those that cover its document, `FUZZ_SEED`
repeats a run; a failure tells its seed.
"""

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from conftest import SECRET, Server, User, make_user

pytestmark = pytest.mark.slow

EXAMPLES = os.environ.get("FUZZ_EXAMPLES", "50")

CONFIG = """
hooks = "fuzz_checks"

[auth.openapi.HTTPBearer]
bearer = "{token}"

[dictionaries.owners]
values = ["me", "me", "me", "{user}", "{other}"]

[dictionaries.cursors]
values = {cursors}

[parameters]
"path.user_id" = {{ dictionary = "owners", probability = 0.9 }}
"query.cursor" = {{ dictionary = "cursors", probability = 0.5 }}

# Where each operation stands on its own, what is wrong with one is in its result.
[[operations]]
include-path = "/api/v1/{{user_id}}/tasks/bulk"
checks.negative_data_rejection.expected-statuses = [200, 400, 401, 403, 404, 406, 422, 428, 429, "5xx"]

# `valid_data_is_accepted` of fuzz_checks stands for it, and knows what depends on what is stored.
[checks.positive_data_acceptance]
enabled = false
{more}
"""

LIMITED = """
# The limit comes before what is wrong with a request.
[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 406, 422, 428, 429, "5xx"]
"""


@pytest.fixture
def other() -> User:
    """Somebody else, whose tasks the fuzzer knows of."""
    return make_user()


def add_tasks(server: Server, user: User) -> None:
    """Give a user some tasks, one of them completed."""
    with httpx.Client(base_url=server.url, headers=user.headers) as client:
        for title in ("Buy milk", "Water the plants", "Call home"):
            assert client.post("/api/v1/me/tasks", json={"title": title}).status_code == 201
        assert client.patch("/api/v1/me/tasks/2/complete").status_code == 200


def cursors(server: Server, user: User) -> list[str]:
    """A cursor for either order."""
    path = f"{server.url}/api/v1/me/tasks?limit=1&order="
    return [
        str(httpx.get(path + order, headers=user.headers).json()["next_cursor"]) for order in ("asc", "desc")
    ]


def tasks(server: Server, user: User) -> bytes:
    """All that a user has, as the server sends it."""
    return httpx.get(f"{server.url}/api/v1/me/tasks?limit=200", headers=user.headers).content


def fuzz(server: Server, user: User, other: User, folder: Path, *options: str, more: str = "") -> int:
    """Let schemathesis try everything; return how many requests it made, or fail with what it found."""
    seed = os.environ.get("FUZZ_SEED") or str(secrets.randbelow(2**32))
    text = CONFIG.format(
        token=user.token, user=user.id, other=other.id, cursors=cursors(server, user), more=more
    )
    (folder / "schemathesis.toml").write_text(text)
    variables = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("schemathesis"), "--no-color", "run"),
            *(f"{server.url}/openapi.json", "--seed", seed, "--generation-database", "none"),
            *options,
        ],
        env=variables | {"FUZZ_USER": user.id, "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, f"FUZZ_SEED={seed}\n{done.stdout}{done.stderr}"
    found = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert found, done.stdout
    return int(found[2])


def test_the_document_is_what_the_server_does(
    start_server: Callable[..., Server], database_url: str, user: User, other: User, tmp_path: Path
) -> None:
    """No request, valid or not, signed in or not, gets a 5xx or what the document does not say.

    And none reaches the tasks of another user, which are afterwards what they were.
    """
    server = start_server(
        TASKCTL_ENV="test",
        DATABASE_URL=database_url,
        BETTER_AUTH_SECRET=SECRET,
        TASKCTL_RATE_LIMIT="",
        TASKCTL_RATE_LIMIT_ANONYMOUS="",
    )
    add_tasks(server, user)
    add_tasks(server, other)
    before = tasks(server, other)
    assert fuzz(server, user, other, tmp_path, "--max-examples", EXAMPLES) > 1000
    assert tasks(server, other) == before
    assert "internal_error" not in server.log.read_text()


def test_the_rate_limit_is_documented(
    start_server: Callable[..., Server], database_url: str, user: User, other: User, tmp_path: Path
) -> None:
    """Where requests are limited, 429 comes as the document says it."""
    server = start_server(
        TASKCTL_ENV="test",
        DATABASE_URL=database_url,
        BETTER_AUTH_SECRET=SECRET,
        TASKCTL_RATE_LIMIT="30/second",
    )
    add_tasks(server, user)
    assert fuzz(server, user, other, tmp_path, "--phases", "coverage", more=LIMITED) > 100
    assert re.search(r"status.*429", server.log.read_text())
