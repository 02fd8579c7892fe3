"""The tasks of one user: `/api/v1/{user_id}/tasks…`."""

import hashlib
import json
import re
import secrets
from datetime import UTC, date, datetime, time
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Body, Depends, Header, Path, Response
from fastapi.security import HTTPBearer
from psycopg.types.numeric import Int8
from pydantic.json_schema import SkipJsonSchema

from taskctl.errors import (
    BadRequest,
    IdempotencyKeyReused,
    Overloaded,
    QuotaExceeded,
    TaskNotFound,
    VersionConflict,
)
from taskctl.models import (
    Completion,
    Problem,
    Task,
    TaskContent,
    TaskPatch,
    compact,
    due,
)
from taskctl.server import queries, recurrence
from taskctl.server.call import Call, path_as_sent
from taskctl.server.routing import JSON, MERGE_PATCH, RETRY_AFTER, TaskRoute
from taskctl.server.sessions import Contended, Row
from taskctl.vocabulary import API_PREFIX, IDEMPOTENCY_KEY_MAX, TASK_ID_MAX, Priority

_CHALLENGE = {
    "WWW-Authenticate": {
        "description": "RFC 6750, section 3.",
        "required": True,
        "schema": {"type": "string", "pattern": "^Bearer "},
    }
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    401: {
        "model": Problem,
        "description": "No token, or not one that this server accepts.",
        "headers": _CHALLENGE,
    },
    403: {"model": Problem, "description": "Not your tasks, a scope that does not allow this, or no room."},
    422: {"model": Problem, "description": "Values or parameters that are not allowed."},
    429: {
        "model": Problem,
        "description": "Too many requests; go on after `Retry-After` seconds.",
        "headers": RETRY_AFTER,
    },
    500: {"model": Problem, "description": "The server failed."},
    503: {
        "model": Problem,
        "description": "Try again after `Retry-After` seconds.",
        "headers": RETRY_AFTER,
    },
}
BAD: dict[int | str, dict[str, Any]] = {400: {"model": Problem, "description": "Malformed."}}
_ABSENT: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "There is no such task."}}
_STALE: dict[int | str, dict[str, Any]] = {412: {"model": Problem, "description": "`If-Match` is stale."}}
BODY: dict[int | str, dict[str, Any]] = BAD | {
    413: {"model": Problem, "description": "The body is too large."},
    415: {"model": Problem, "description": "The body is of another media type."},
}
_ETAG = {
    "ETag": {
        "description": "The task's version, quoted.",
        "required": True,
        "schema": {"type": "string", "pattern": '^"[1-9][0-9]*"$'},
    }
}
_TASK: dict[int | str, dict[str, Any]] = {200: {"model": Task, "headers": _ETAG}}
_BOTH_PATCH_TYPES = {
    "requestBody": {"content": {MERGE_PATCH: {"schema": {"$ref": "#/components/schemas/TaskPatch"}}}}
}
_BOTH_COMPLETION_TYPES = {
    "requestBody": {"content": {MERGE_PATCH: {"schema": {"$ref": "#/components/schemas/Completion"}}}}
}

_NOTHING_FOLLOWS = {"follows": 0, "next_due_at": None, "next_recurrence": None}

_PRIORITIES = list(Priority)

_ALL = "title description due_at due_all_day priority tags project recurrence time_zone extra completed"

TRIES = 100
"""How often a change is run that meets concurrent ones again and again."""

_NO_DIGEST = b""
"""Stands where no client's key asks whether the content is the same."""

_TAG = r'(W/)?"[!#-~\u0080-\u00FF]*"'
"""An entity tag in the words of JSON Schema."""

_NEXT_ENTITY_TAG = re.compile(r'[ \t,]*(?:(W/)?"([\x21\x23-\x7e\x80-\xff]*)"(?=[ \t]*(?:,|$))|$)')

BEARER = HTTPBearer(bearerFormat="JWT", description="`taskctl token mint` makes one.")
"""Declared for the OpenAPI document; `TaskRoute` does what it says."""

TaskId = Annotated[int, Path(ge=1, le=TASK_ID_MAX, description="What cannot be an id is 404.")]
IfMatch = Annotated[
    str | SkipJsonSchema[None],
    Header(
        description="Entity tags, comma-separated, or `*`: change the task only at one of these versions.",
        json_schema_extra={
            "anyOf": [{"const": "*"}, {"pattern": rf"^[ \t,]*{_TAG}([ \t]*,[ \t,]*{_TAG})*[ \t,]*$"}]
        },
    ),
]


async def owner(
    user_id: Annotated[str, Path(description="The `sub` of the token; `me` stands for it.", examples=["me"])],
) -> None:
    """Declared for the OpenAPI document; `TaskRoute` does what it says."""


router = APIRouter(
    prefix=f"{API_PREFIX}/{{user_id}}",
    route_class=TaskRoute,
    dependencies=[
        Depends(owner),
        Depends(BEARER),
    ],
    responses=PROBLEMS,
    tags=["tasks"],
)


@router.post(
    "/tasks",
    status_code=201,
    responses=BODY
    | {
        201: {
            "model": Task,
            "headers": _ETAG
            | {
                "Location": {
                    "description": "The task's path.",
                    "required": True,
                    "schema": {"type": "string", "format": "uri-reference"},
                },
                "Idempotency-Replayed": {
                    "description": "`true` when this key made the task before.",
                    "schema": {"const": "true"},
                },
            },
        }
    },
)
async def create_task(
    call: Call,
    body: TaskContent,
    idempotency_key: Annotated[
        str | SkipJsonSchema[None],
        Header(
            description="The same key and content make one task.",
            json_schema_extra={"pattern": f"^[!-~]{{1,{IDEMPOTENCY_KEY_MAX}}}$"},
        ),
    ] = None,
) -> Response:
    """Create a task."""
    idempotency_key = checked_key(idempotency_key)
    parameters = {
        **stored(body),
        **quotas(call),
        # Every create has a key, so that it can be run again when its connection was lost.
        "key": _internal_key() if idempotency_key is None else idempotency_key,
        "digest": _NO_DIGEST if idempotency_key is None else digest(body),
    }
    for _ in range(TRIES):
        try:
            row = await call.fetch(queries.CREATE_TASK, **parameters)
        except Contended:
            continue
        if row is None:
            await make_room(call)
            continue
        replayed, same_content, task_id, version, task = row
        if not same_content:
            raise IdempotencyKeyReused
        headers = {"Location": f"{path_as_sent(call.scope)}/{task_id}"}
        if replayed and idempotency_key is not None:
            headers["Idempotency-Replayed"] = "true"
        return _json(task, version, status=201, headers=headers)
    raise Overloaded


@router.get(
    "/tasks/{task_id}",
    responses=_TASK
    | _ABSENT
    | {304: {"description": "The task is as `If-None-Match` has it.", "headers": _ETAG}},
)
async def read_task(
    call: Call,
    task_id: TaskId,
    if_none_match: Annotated[
        str | SkipJsonSchema[None], Header(description="Entity tags, comma-separated, or `*`.")
    ] = None,
) -> Response:
    """Read one task."""
    _, version, task = _found(await call.fetch(queries.READ_TASK, id=Int8(task_id)))
    if if_none_match is not None and _none_match_fails(if_none_match, version):
        return Response(status_code=304, headers={"ETag": f'"{version}"'})
    return _json(task, version)


@router.put("/tasks/{task_id}", responses=_TASK | BODY | _ABSENT | _STALE)
async def replace_task(call: Call, task_id: TaskId, body: TaskContent, if_match: IfMatch = None) -> Response:
    """Replace all that can be written of a task; what is left out takes its default."""
    return await _change(call, _CHANGE, task_id, if_match, sent=_ALL, **stored(body))


@router.patch(
    "/tasks/{task_id}",
    responses=_TASK | BODY | _ABSENT | _STALE,
    openapi_extra=_BOTH_PATCH_TYPES,
)
async def edit_task(call: Call, task_id: TaskId, body: TaskPatch, if_match: IfMatch = None) -> Response:
    """Change some of a task (JSON merge patch, RFC 7396)."""
    sent = body.model_fields_set
    names = " ".join([*sent, "due_all_day"] if "due_at" in sent else sent)
    return await _change(call, _CHANGE, task_id, if_match, sent=names, **stored(body))


@router.patch(
    "/tasks/{task_id}/complete",
    responses=_TASK | BODY | _ABSENT | _STALE,
    openapi_extra=_BOTH_COMPLETION_TYPES,
)
async def complete_task(
    call: Call,
    task_id: TaskId,
    body: Annotated[Completion, Body()] = Completion(),  # noqa: B008 - never changed
    if_match: IfMatch = None,
) -> Response:
    """Complete a task, or reopen it. A state and not a toggle: sent twice, it changes nothing."""
    return await _change(call, _COMPLETE, task_id, if_match, completed=body.completed)


@router.delete(
    "/tasks/{task_id}",
    status_code=204,
    responses=BAD | _ABSENT | _STALE | {204: {"description": "The task is in the trash."}},
)
async def delete_task(call: Call, task_id: TaskId, if_match: IfMatch = None) -> Response:
    """Move a task to the trash, from where it can be restored until it is purged."""
    await _change(call, (queries.DELETE_TASK, None), task_id, if_match)
    return Response(status_code=204)


@router.post("/tasks/{task_id}/restore", responses=_TASK | BAD | _ABSENT | _STALE)
async def restore_task(call: Call, task_id: TaskId, if_match: IfMatch = None) -> Response:
    """Take a task out of the trash. A state: sent twice, it changes nothing."""
    return await _change(call, (queries.RESTORE_TASK, None), task_id, if_match)


_CHANGE = (queries.CHANGE_TASK, queries.CHANGE_RECURRING)
_COMPLETE = (queries.COMPLETE_TASK, queries.COMPLETE_RECURRING)


def stored(body: TaskContent | TaskPatch) -> dict[str, Any]:
    """What a client writes, as the parameters of the statements have it."""
    due_at = body.due_at
    return {
        "title": body.title,
        "description": body.description,
        "due_at": due_at and _instant(due_at),
        "due_all_day": due_at is not None and not isinstance(due_at, datetime),
        "priority": _PRIORITIES.index(body.priority),
        "tags": " ".join(body.tags),
        "project": body.project,
        "recurrence": body.recurrence,
        "time_zone": body.time_zone,
        "extra": None if body.extra is None else compact(body.extra),
        "completed": body.completed,
    }


def _instant(due_at: date | datetime) -> datetime:
    """What stands for a due date in the database: a date's midnight in UTC."""
    return due_at if isinstance(due_at, datetime) else datetime.combine(due_at, time(), UTC)


async def _change(
    call: Call,
    statements: tuple[queries.Statement, queries.Statement | None],
    task_id: int,
    if_match: str | None,
    **changes: Any,
) -> Response:
    """Run a change, and answer with what it has made of the task.

    One that completes a recurring task takes two statements: the first finds that it recurs and changes
    nothing; the second, bound to the version that was found, completes it and creates the one that follows.
    """
    ordinary, recurring = statements
    parameters = {"id": Int8(task_id), "versions": _versions(if_match), **quotas(call), **changes}
    for _ in range(TRIES):
        state, version, task, now = _found(await call.fetch(ordinary, **parameters))
        bound = False
        if state == b"recurs" and recurring is not None:
            following = successor(json.loads(task), changes, now)
            state, version, task, _ = _found(
                await call.fetch(recurring, **parameters | following | {"versions": [Int8(version)]})
            )
            bound = True
        if state in {b"tasks", b"bytes"}:
            await make_room(call, state.decode())
        elif state != b"stale":
            return _json(task, version)
        elif not bound:
            raise VersionConflict(
                f"The task is at version {version}, which is not what was asked for; read it again.",
                current_version=version,
            )
    raise Overloaded


def quotas(call: Call) -> dict[str, Any]:
    """How much of what a user may have, as parameters of the statements."""
    settings = call.service.settings
    return {"quota_tasks": Int8(settings.quota_tasks), "quota_bytes": Int8(settings.quota_bytes)}


async def make_room(call: Call, of: str | None = None) -> None:
    """Return where a change can be tried again: it was not counted, or there is room by now.

    Args:
        call: the request.
        of: the quota that left no room, `tasks` or `bytes`; None where it is not known.

    Raises:
        QuotaExceeded: the quota is used up.
    """
    row = await call.fetch(queries.COUNT_USAGE, **quotas(call))
    recounted, tasks, size, most_tasks, most_bytes = row or (
        False,
        0,
        0,
        None,
        call.service.settings.quota_bytes,
    )
    if recounted:
        return
    if of != "bytes" and most_tasks is not None and tasks >= most_tasks:
        raise QuotaExceeded(
            f"You have {tasks} of the {most_tasks} tasks that you may have: delete some.",
            quota="tasks",
            used=tasks,
            limit=most_tasks,
        )
    if of == "tasks" or not most_bytes:
        return
    raise QuotaExceeded(
        f"Your tasks take {size} of the {most_bytes} bytes that they may take: delete some.",
        quota="bytes",
        used=size,
        limit=most_bytes,
    )


def successor(task: dict[str, Any], changes: dict[str, Any], now: bytes) -> dict[str, Any]:
    """What follows a recurring task that `changes` complete, as parameters of the statement that does it."""
    sent = changes["sent"].split() if "sent" in changes else ()
    after = {"recurrence": task["recurrence"], "time_zone": task["time_zone"], "due_at": task["due_at"]}
    after |= {name: changes[name] for name in after if name in sent}
    due_at = after["due_at"]
    if due_at is None:  # which the database refuses
        return _NOTHING_FOLLOWS
    if not isinstance(due_at, datetime):
        due_at = due(due_at)
    elif changes["due_all_day"]:
        due_at = due_at.date()
    zone = ZoneInfo(after["time_zone"] or "UTC")
    following = recurrence.following(after["recurrence"], due_at, zone, datetime.fromisoformat(now.decode()))
    if following is None:
        return _NOTHING_FOLLOWS
    next_due, next_rule = following
    return {"follows": 1, "next_due_at": _instant(next_due), "next_recurrence": next_rule}


def _found(row: Row | None) -> Row:
    if row is None:
        raise TaskNotFound
    return row


def _json(
    body: bytes, version: int | None = None, *, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    headers = headers or {}
    if version is not None:
        headers["ETag"] = f'"{version}"'
    return Response(body, status, headers, JSON)


def _entity_tags(header: str) -> list[tuple[bool, str]] | None:
    """A list of entity tags (RFC 9110, section 8.8.3) as (weak, text), or None for what is none."""
    tags = []
    position = 0
    while position < len(header):
        match = _NEXT_ENTITY_TAG.match(header, position)
        if match is None:
            return None
        if match[2] is not None:
            tags.append((match[1] is not None, match[2]))
        position = match.end()
    return tags or None


def _versions(if_match: str | None) -> list[Int8] | None:
    """The versions that `If-Match` names; None where it names none or any.

    A weak tag never matches (RFC 9110, section 13.1.1), nor does one that no version of a task has.
    """
    if if_match is None or if_match.strip(" \t") == "*":
        return None
    tags = _entity_tags(if_match)
    if tags is None:
        raise BadRequest('If-Match takes entity tags such as "3", comma-separated, or *.')
    numbers = [text for weak, text in tags if not weak and re.fullmatch(r"[1-9][0-9]{0,18}", text)]
    # As bigint whatever their size, or each size would be a prepared statement of its own.
    return [Int8(number) for number in map(int, numbers) if number <= TASK_ID_MAX]


def _none_match_fails(if_none_match: str, version: int) -> bool:
    """Whether `If-None-Match` names this version; weak tags count (RFC 9110, section 13.1.2)."""
    if if_none_match.strip(" \t") == "*":
        return True
    return any(text == str(version) for _, text in _entity_tags(if_none_match) or ())


def checked_key(text: str | None) -> str | None:
    """An `Idempotency-Key`, if there is one; BadRequest where it cannot be."""
    if text is not None and not (
        1 <= len(text) <= IDEMPOTENCY_KEY_MAX and all("!" <= each <= "~" for each in text)
    ):
        raise BadRequest(
            f"An Idempotency-Key is 1 to {IDEMPOTENCY_KEY_MAX} visible ASCII characters, with no space."
        )
    return text


def _internal_key() -> str:
    """A key for one request alone; with its space it is none that a client can send."""
    return f" {secrets.token_urlsafe(12)}"


def digest(body: TaskContent) -> bytes:
    """What tells one content from another, whatever the order of members, white space or left-out defaults.

    Defaults are left out, so that a field that comes with a later release changes no digest.
    """
    content = json.dumps(body.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
    return hashlib.sha256(content.encode()).digest()
