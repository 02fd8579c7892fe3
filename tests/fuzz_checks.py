"""What the fuzzer checks beyond its own: loaded by schemathesis itself, in its process, for `test_fuzz.py`.

Some refusals no schema can tell. Four depend on what is stored: whether a version is stale, whether a key was
used before, whether a cursor was given out, and whether a task that is to recur has a due date; so does
whether all of a bulk request can be done. One is a recurrence rule of the right form that makes no sense, one
two operations on the same task. The fuzzer's own check of accepted data takes them for faults, so it is
replaced by one that knows them, by code and by what in the request asked for them.
"""

import json
import os
from typing import Any

import schemathesis
from schemathesis.specs.openapi.checks import positive_data_acceptance

OURS = {"me", os.environ.get("FUZZ_USER", "")}
"""What stands in a path for the user whose token is sent."""


def state_forbids(case: schemathesis.Case, response: schemathesis.Response) -> bool:
    """Whether what is stored, and not the form of the request, led to this refusal."""
    if response.status_code not in {400, 410, 412, 422}:
        return False
    problem = json.loads(response.content)
    code = problem["code"]
    sent = {name.lower() for name in case.headers or {}}
    refused = [error["loc"] for error in problem.get("errors", [])]
    return (
        (code == "version_conflict" and "if-match" in sent)
        or (code == "idempotency_key_reused" and "idempotency-key" in sent)
        or (code == "bad_request" and not {"cursor", "since"}.isdisjoint(case.query or {}))
        or (code == "changes_expired" and "since" in (case.query or {}))
        # A date that a recurrence needs may be in the task that a patch changes.
        or (case.method == "PATCH" and refused == [["body", "due_at"]])
        # A pattern has the form of a rule, and not what makes sense in it.
        or (bool(refused) and all(loc[0] == "body" and loc[-1] == "recurrence" for loc in refused))
        or code == "bulk_refused"
        or (bool(refused) and all(error["type"] == "repeated" for error in problem["errors"]))
    )


@schemathesis.check
def valid_data_is_accepted(
    context: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> Any:
    """What the document allows is done, but for what only the stored tasks can refuse."""
    if not state_forbids(case, response):
        positive_data_acceptance(context, response, case)


@schemathesis.check
def nobody_elses_tasks(
    _: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> None:
    """No path but one's own leads to tasks."""
    owner = case.path_parameters.get("user_id") if case.path_parameters else None
    if owner is not None and owner not in OURS:
        assert response.status_code >= 400, f"{response.status_code} for the tasks of {owner!r}"
        assert b"created_at" not in response.content


@schemathesis.check
def answers_are_enveloped(
    _: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> None:
    """Every answer has its id and its time, none under /api is stored, and errors name their request."""
    [request_id] = response.headers["x-request-id"]
    assert response.headers["server-timing"][0].startswith("total;dur=")
    if case.path.startswith("/api"):
        assert response.headers["cache-control"] == ["no-store"]
    if response.status_code >= 400:
        assert response.headers["content-type"] == ["application/problem+json"]
        assert json.loads(response.content)["request_id"] == request_id
