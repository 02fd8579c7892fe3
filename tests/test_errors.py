"""The error catalogue against the tables of the HTTP contract and of the command line."""

import re
import subprocess
import sys

import pytest

from taskctl import errors
from taskctl.errors import TaskctlError, VersionConflict, by_code, catalogue

CONTRACT = {
    # code: (HTTP status, exit code); status 0 is never sent.
    "bad_request": (400, 2),
    "token_missing": (401, 4),
    "token_malformed": (401, 4),
    "token_expired": (401, 4),
    "token_not_yet_valid": (401, 4),
    "token_signature_invalid": (401, 4),
    "token_algorithm_not_allowed": (401, 4),
    "token_claim_missing": (401, 4),
    "token_issuer_wrong": (401, 4),
    "token_audience_wrong": (401, 4),
    "token_key_unknown": (401, 4),
    "not_your_tasks": (403, 4),
    "insufficient_scope": (403, 4),
    "quota_exceeded": (403, 4),
    "task_not_found": (404, 5),
    "route_not_found": (404, 5),
    "method_not_allowed": (405, 1),
    "changes_expired": (410, 5),
    "version_conflict": (412, 6),
    "body_too_large": (413, 2),
    "unsupported_media_type": (415, 2),
    "validation_failed": (422, 2),
    "idempotency_key_reused": (422, 6),
    "bulk_refused": (422, 6),
    "rate_limited": (429, 7),
    "too_many_streams": (429, 7),
    "internal_error": (500, 8),
    "database_unavailable": (503, 8),
    "auth_keys_unavailable": (503, 8),
    "statement_timeout": (503, 8),
    "shutting_down": (503, 8),
    "overloaded": (503, 8),
    "not_ready": (503, 8),
    "local_error": (0, 1),
    "usage_invalid": (0, 2),
    "settings_invalid": (0, 2),
    "not_logged_in": (0, 4),
    "login_denied": (0, 4),
    "login_expired": (0, 4),
    "keyring_failed": (0, 1),
    "clock_wrong": (0, 1),
    "user_not_found": (0, 5),
    "server_unreachable": (0, 8),
    "server_timed_out": (0, 8),
    "unexpected_answer": (0, 1),
    "server_failed": (0, 8),
    "embedded_postgres_failed": (0, 1),
    "internal": (0, 1),
    "migration_failed": (0, 1),
}

CATALOGUE = [error for error in catalogue() if error.__module__ == "taskctl.errors"]
CLASSES = [
    each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, TaskctlError)
]


def test_catalogue_is_the_contract():
    """The catalogue holds exactly the codes of the contract, each once, with its status and exit code."""
    assert [error.code for error in CATALOGUE if error.code not in CONTRACT] == []
    assert {error.code: (error.status, error.exit_code) for error in CATALOGUE} == CONTRACT
    assert len(CATALOGUE) == len(CONTRACT)


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_class_describes_itself(error):
    """Every class says in one sentence what happened."""
    assert re.fullmatch(r"[A-Z][^\n]*\.", error.title())
    assert error("Detail.").detail == "Detail."


@pytest.mark.parametrize("error", CATALOGUE, ids=lambda error: error.__name__)
def test_code_finds_its_class(error):
    """A code is snake_case, leads back to its class, and stands in the problem's type."""
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", error.code)
    assert by_code(error.code) is error
    assert error().detail == str(error()) == error.title()
    assert error().problem(instance="/x", request_id="r") == {
        "type": f"/errors/{error.code}",
        "title": error.title(),
        "status": error.status,
        "detail": error.title(),
        "instance": "/x",
        "code": error.code,
        "request_id": "r",
    }


def test_unknown_code_has_no_class():
    """A code that this release does not know leads nowhere."""
    assert by_code("made_up") is None


def test_occurrence_carries_what_happened():
    """Detail, headers and further members belong to the occurrence, not to its class."""
    headers = {"ETag": '"7"'}
    error = VersionConflict("It is at 7.", headers=headers, request_id="there", current_version=7)
    headers.clear()
    problem = error.problem(instance="/api/v1/me/tasks/1", request_id="here")
    assert (problem["detail"], problem["title"]) == ("It is at 7.", VersionConflict.title())
    assert (problem["current_version"], problem["request_id"]) == (7, "here")
    assert (error.headers, error.request_id) == ({"ETag": '"7"'}, "there")
    assert VersionConflict().members == {}


def test_only_local_errors_have_no_status():
    """What can be sent over HTTP has an error status, what happens on this side has none."""
    local = {error.code for error in CATALOGUE if issubclass(error, errors.LocalError)}
    assert local == {code for code, (status, _) in CONTRACT.items() if status == 0}
    assert all(400 <= status <= 599 for status, _ in CONTRACT.values() if status)


def test_sentences_survive_optimisation():
    """Under `python -OO`, which drops docstrings, an error can still be made and reported."""
    program = (
        "from taskctl.errors import TaskNotFound; print(TaskNotFound().problem(instance='', request_id=''))"
    )
    done = subprocess.run([sys.executable, "-OO", "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
