"""Many operations in one request: `/api/v1/{user_id}/tasks/bulk`."""

import hashlib
import json
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Response
from pydantic.json_schema import SkipJsonSchema

from taskctl.bulk import (
    BulkAnswer,
    BulkContent,
    CompleteOperation,
    CreateOperation,
    Operation,
    PatchOperation,
)
from taskctl.errors import BulkRefused, IdempotencyKeyReused, MethodNotAllowed, Overloaded
from taskctl.models import RECURRENCE_NEEDS_DUE, Problem, compact
from taskctl.server.bulk import BULK, BULK_ONCE
from taskctl.server.call import Call
from taskctl.server.queries import COUNT_USAGE
from taskctl.server.routes.tasks import (
    BEARER,
    BODY,
    PROBLEMS,
    TRIES,
    checked_key,
    digest,
    owner,
    quotas,
    stored,
    successor,
)
from taskctl.server.routing import JSON, PublicRoute, TaskRoute, explain, invalid
from taskctl.server.sessions import Contended
from taskctl.vocabulary import API_PREFIX, IDEMPOTENCY_KEY_MAX

router = APIRouter(
    prefix=f"{API_PREFIX}/{{user_id}}",
    route_class=TaskRoute,
    dependencies=[Depends(owner), Depends(BEARER)],
    responses=PROBLEMS,
    tags=["tasks"],
)


@router.post(
    "/tasks/bulk",
    responses=BODY
    | {
        200: {
            "model": BulkAnswer,
            "headers": {
                "Idempotency-Replayed": {
                    "description": "`true` when this is the answer to an earlier request.",
                    "schema": {"const": "true"},
                }
            },
        },
        422: {"model": Problem, "description": "Values that are not allowed, or an operation was refused."},
    },
)
async def bulk(
    call: Call,
    body: BulkContent,
    idempotency_key: Annotated[
        str | SkipJsonSchema[None],
        Header(
            description="The same key and content are done once.",
            json_schema_extra={"pattern": f"^[!-~]{{1,{IDEMPOTENCY_KEY_MAX}}}$"},
        ),
    ] = None,
) -> Response:
    """Do many operations at once."""
    key = checked_key(idempotency_key)
    operations = {place: _sent(place, operation) for place, operation in body.placed}
    refused = {place: _refusal(place, wrong) for place, wrong in body.refused.items()}
    operations |= refused
    limits = quotas(call)
    content = compact([body.model_dump_json(exclude_unset=True), list(refused.values())])
    for _ in range(TRIES):
        try:
            row = await call.fetch(
                BULK_ONCE if key is None else BULK,
                key=key,
                digest=hashlib.sha256(content.encode()).digest(),
                atomic=body.atomic,
                **limits,
                operations=compact(list(operations.values())),
            )
        except Contended:
            continue
        outcome, answer, now = row or ()
        if outcome == b"recurring":
            changes = dict(body.placed)
            for each in json.loads(b"[%b]" % answer):
                place = each["position"]
                following = successor(each["task"], _changes(changes[place]), now)
                operations[place] |= _json({"bound": each["version"], **following})
            continue
        if outcome == b"uncounted":
            await call.fetch(COUNT_USAGE, **limits)
            continue
        if outcome == b"reused":
            raise IdempotencyKeyReused
        if outcome == b"refused":
            raise BulkRefused(results=json.loads(b"[%b]" % answer))
        headers = {"Idempotency-Replayed": "true"} if outcome == b"replayed" else None
        return Response(b'{"results":[%b]}' % answer, 200, headers, JSON)
    raise Overloaded


async def refuse_method(_: Call) -> Response:
    """Keep other methods from being taken for those of a task whose id is `bulk`."""
    raise MethodNotAllowed(headers={"Allow": "POST"})


router.add_api_route(
    "/tasks/bulk",
    refuse_method,
    methods=["DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "PUT", "TRACE"],
    include_in_schema=False,
    route_class_override=PublicRoute,
)


def _sent(place: int, operation: Operation) -> dict[str, Any]:
    """An operation as the statement takes it."""
    row: dict[str, Any] = {"position": place, "op": operation.op}
    if isinstance(operation, CreateOperation):
        row |= _json(stored(operation.task))
        if operation.key is not None:
            row |= {"key": operation.key, "digest": rf"\x{digest(operation.task).hex()}"}
        return row
    row |= {"id": operation.id}
    if operation.if_version is not None:
        row["version"] = operation.if_version
    if isinstance(operation, CompleteOperation):
        row |= {"sent": ["completed"], "completed": operation.completed}
    elif isinstance(operation, PatchOperation):
        changes = _changes(operation)
        sent = changes["sent"].split()
        row |= {"sent": sent, **_json({name: changes[name] for name in sent})}
        if "recurrence" in sent or "due_at" in sent:
            wrong = [
                {
                    "loc": ["body", "operations", place, "changes", "due_at"],
                    "msg": RECURRENCE_NEEDS_DUE,
                    "type": "value_error",
                }
            ]
            row["undated"] = _answer(wrong)
    return row


def _changes(operation: Operation) -> dict[str, Any]:
    """What an operation that may complete a task writes, as for a single request."""
    if not isinstance(operation, PatchOperation):
        return {"completed": isinstance(operation, CompleteOperation) and operation.completed}
    sent = operation.changes.model_fields_set
    return {
        "sent": " ".join(sorted([*sent, "due_all_day"] if "due_at" in sent else sent)),
        **stored(operation.changes),
    }


def _json(values: dict[str, Any]) -> dict[str, Any]:
    """Parameters as members of JSON; what is left out is null there."""
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in values.items()
        if value is not None
    }


def _refusal(place: int, wrong: list[Any]) -> dict[str, Any]:
    return {"position": place, "op": "invalid", "answer": _answer(explain("body", wrong))}


def _answer(wrong: list[dict[str, Any]]) -> str:
    """The result of an operation that has this wrong with it."""
    error = invalid(wrong)
    problem = {"code": error.code, "detail": error.detail, **error.members}
    return json.dumps({"status": error.status, "problem": problem}, separators=(",", ":"))
