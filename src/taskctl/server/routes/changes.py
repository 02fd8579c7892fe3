"""The log of one user's changes: `/api/v1/{user_id}/changes`, page by page or as server-sent events.

A cursor names the last change that its reader knows, the user, and the life of their account: numbers begin
anew with an account that is made after the user was erased. Events are those of
https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

import asyncio
import base64
import hashlib
import random
import re
import struct
import time
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Depends, Header, Query, Response
from psycopg.types.numeric import Int8
from pydantic.json_schema import SkipJsonSchema
from starlette.types import Receive, Scope, Send

from taskctl.errors import (
    AuthKeysUnavailable,
    BadRequest,
    ChangesExpired,
    Unauthenticated,
    Unavailable,
)
from taskctl.models import ChangePage, ChangesQuery, Problem
from taskctl.server import queries
from taskctl.server.authentication import bearer_token
from taskctl.server.call import Call
from taskctl.server.feed import Stream
from taskctl.server.routes.tasks import BEARER, PROBLEMS, owner
from taskctl.server.routing import JSON, TaskRoute
from taskctl.vocabulary import API_PREFIX, TASK_ID_MAX

EVENT_STREAM = "text/event-stream"

_PAGE_BYTES = 1 << 20
"""About how large a page of long tasks becomes."""

_STREAM_LIMIT, _STREAM_BYTES = 100, 1 << 18
"""The same for what a stream holds in memory while its reader takes it."""

_RETRY_MILLISECONDS = (1000, 3000)
"""When a client connects again; not all of them at the same moment."""

_LONGEST_SECONDS = 86400.0
"""How long a stream lasts at the most."""

_NOW = "now"
_CURSOR = re.compile(r"[A-Za-z0-9_-]{32}")
_WEIGHT = re.compile(r"[01](\.[0-9]{0,3})?")
_CURSOR_BYTES = struct.Struct(">Q8sQ")
"""Number, digest of the user, and life: 32 characters of base64, and no padding."""

_CHANGES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": ChangePage,
        "description": "A page; or, where `Accept` asks for it, events without an end.",
        "content": {EVENT_STREAM: {"schema": {"type": "string"}}},
    },
    400: {"model": Problem, "description": "The cursor is none of this user's."},
    410: {"model": Problem, "description": "Changes after the cursor are no longer kept, or were erased."},
}

router = APIRouter(
    prefix=f"{API_PREFIX}/{{user_id}}",
    route_class=TaskRoute,
    dependencies=[Depends(owner), Depends(BEARER)],
    responses=PROBLEMS,
    tags=["changes"],
)


class _Place(NamedTuple):
    """After which change a page begins."""

    number: int
    life: int
    """When the account was made, in microseconds since 1970 (UTC); 0 where there was none yet."""


class _Page(NamedTuple):
    """Changes as the log has them: number, type and JSON."""

    items: list[tuple[int, bytes, bytes]]
    reached: _Place
    """Where the next page begins."""
    more: bool


@router.get("/changes", responses=_CHANGES)
async def read_changes(
    call: Call,
    query: Annotated[ChangesQuery, Query()],
    last_event_id: Annotated[
        str | SkipJsonSchema[None], Header(description="Of a stream's reader: goes before `since`.")
    ] = None,
) -> Response:
    """Read what has changed, in the order of the changes."""
    streams = _wants_events(call.headers.get("accept", ""))
    since = (last_event_id if streams else None) or query.since
    user_id = call.identity.user_id
    if not streams:
        page = await _read(call, since, query.limit, _PAGE_BYTES)
        return Response(
            b'{"items":[%b],"next_cursor":"%b","more":%b}'
            % (
                b",".join(item for _, _, item in page.items),
                _encode_cursor(user_id, page.reached).encode(),
                b"true" if page.more else b"false",
            ),
            media_type=JSON,
        )
    if "taskctl.head" in call.scope:
        await _read(call, since, 1, 1)
        return _EventStream()
    return await _open(call, since)


async def _open(call: Call, since: str | None) -> Response:
    """Begin to follow, and read what there is already, so that what is wrong is answered as anywhere."""
    stream = call.service.feed.follow(call.identity.user_id)
    try:
        stream.looks()
        return _Events(call, stream, await _read(call, since, _STREAM_LIMIT, _STREAM_BYTES))
    except BaseException:
        stream.leave()
        raise


class _EventStream(Response):
    """The head of a stream. nginx, which would hold back what comes, is told not to.

    The connection ends with the stream: where a server ends it, nothing else may be asked over it.
    """

    def __init__(self) -> None:
        super().__init__(media_type=EVENT_STREAM, headers={"X-Accel-Buffering": "no", "Connection": "close"})
        del self.headers["Content-Length"]


class _Events(_EventStream):
    """Changes as they happen, until somebody ends it: the reader, the token, or the server.

    Nothing more is read from the log before the reader has taken what was sent.
    """

    def __init__(self, call: Call, stream: Stream, first: _Page) -> None:
        super().__init__()
        self._call = call
        self._stream = stream
        self._page = first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events (ASGI)."""
        scope["taskctl.lasts_since"] = time.perf_counter()
        if "taskctl.lasts" in scope:
            scope["taskctl.lasts"]()
        service, stream = self._call.service, self._stream
        seconds = self._call.identity.expires_at + service.verifier.leeway - time.time()
        expiry = asyncio.get_running_loop().call_later(min(max(seconds, 0), _LONGEST_SECONDS), stream.end)
        leaving = asyncio.create_task(self._end_with_reader(receive))
        if service.metrics is not None:
            service.metrics.in_flight -= 1
            service.metrics.streams += 1
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._send_events(send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            stream.leave()
            expiry.cancel()
            leaving.cancel()
            if service.metrics is not None:
                service.metrics.in_flight += 1
                service.metrics.streams -= 1

    async def _end_with_reader(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._stream.end()

    async def _send_events(self, send: Send) -> None:
        stream, heartbeat = self._stream, self._call.service.settings.stream_heartbeat
        await _send(send, b"retry: %d\n\n" % random.randint(*_RETRY_MILLISECONDS))  # noqa: S311 - to spread load
        told = None
        beat_at = time.monotonic() + heartbeat
        while not stream.is_over():
            page = self._page
            events = b"".join(self._event(*item) for item in page.items)
            told = page.items[-1][0] if page.items else told
            if told != page.reached.number:
                # Sets the reader's last event id without an event: for one who has seen none, or after a gap.
                events += b"id: %b\n\n" % self._cursor(page.reached.number)
                told = page.reached.number
            if events:
                await _send(send, events)
                beat_at = time.monotonic() + heartbeat
            look = page.more
            while not look and not stream.is_over():
                look = await stream.wait(beat_at - time.monotonic())
                if time.monotonic() >= beat_at:
                    if not await self._may_go_on():
                        return
                    await _send(send, b":\n\n")
                    beat_at = time.monotonic() + heartbeat
            if stream.is_over() or not await self._look():
                return

    async def _look(self) -> bool:
        """Read what comes next; whether the stream can go on. While the database is away it waits."""
        self._stream.looks()
        try:
            self._page = await _read_after(self._call, self._page.reached, _STREAM_LIMIT, _STREAM_BYTES)
        except Unavailable:
            self._page = self._page._replace(items=[], more=False)
            self._stream.looks_again(self._call.service.settings.stream_poll)
        except (BadRequest, ChangesExpired):
            return False
        return True

    async def _may_go_on(self) -> bool:
        """Whether the token is still accepted: its key may have been withdrawn."""
        verifier, token = self._call.service.verifier, bearer_token(self._call)
        try:
            if verifier.recall(token) is None:
                await verifier.authenticate(token)
        except (Unauthenticated, AuthKeysUnavailable):
            return False
        return True

    def _event(self, number: int, kind: bytes, item: bytes) -> bytes:
        # In JSON a line's end is nothing but space.
        item = item.replace(b"\r", b" ").replace(b"\n", b" ")
        return b"id: %b\nevent: %b\ndata: %b\n\n" % (self._cursor(number), kind, item)

    def _cursor(self, number: int) -> bytes:
        place = self._page.reached._replace(number=number)
        return _encode_cursor(self._call.identity.user_id, place).encode()


async def _send(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _read(call: Call, since: str | None, limit: int, size: int) -> _Page:
    """A page that begins where the reader asks for."""
    if since is None:
        return await _read_after(call, None, limit, size)
    if since == _NOW:
        return await _read_after(call, _Place(TASK_ID_MAX, 0), limit, size)
    return await _read_after(call, _decode_cursor(call.identity.user_id, since), limit, size)


async def _read_after(call: Call, after: _Place | None, limit: int, size: int) -> _Page:
    """The changes after a place; None: all that are kept; the largest number there is: none.

    Changes are purged oldest first, so that none is missing after a number where the one behind it, or every
    later one, is still there.

    Raises:
        BadRequest: the number was never given out, or by a database that was replaced by an older copy.
        ChangesExpired: some of the changes after it have been purged, or its account was erased.
    """
    number = 0 if after is None else after.number
    row = await call.fetch(queries.READ_CHANGES, after=Int8(number), limit=Int8(limit), bytes=Int8(size))
    taken, life, oldest, body, last, more = row or (0, 0, None, None, None, False)
    if after is not None and number != TASK_ID_MAX:
        if after.life not in {0, life}:
            raise ChangesExpired
        if number > taken:
            raise BadRequest("The cursor is ahead of all changes; read the tasks again and start from now.")
        if number < (taken if oldest is None else oldest - 1):
            raise ChangesExpired
    items = []
    for each in body.split(queries.CHANGE_SEPARATOR) if body else ():
        number, kind, item = each.split(b" ", 2)
        items.append((int(number), kind, item))
    return _Page(items, _Place(last if more else taken, life), more)


def _wants_events(accept: str) -> bool:
    """Whether `Accept` asks for an event stream, and for nothing else rather (RFC 9110, section 12.5.1)."""
    weights = {}
    for media_range in accept.lower().split(","):
        name, *parameters = (part.strip() for part in media_range.split(";"))
        weight = next((each[2:] for each in parameters if each.startswith("q=")), "1")
        weights[name] = float(weight) if _WEIGHT.fullmatch(weight) else 0.0
    return weights.get(EVENT_STREAM, 0.0) > 0 and weights[EVENT_STREAM] >= weights.get(JSON, 0.0)


def _digest(user_id: str) -> bytes:
    return hashlib.sha256(user_id.encode("utf-8", "surrogatepass")).digest()[:8]


def _encode_cursor(user_id: str, place: _Place) -> str:
    packed = _CURSOR_BYTES.pack(place.number, _digest(user_id), place.life)
    return base64.urlsafe_b64encode(packed).decode("ascii")


def _decode_cursor(user_id: str, cursor: str) -> _Place:
    if _CURSOR.fullmatch(cursor):
        number, digest, life = _CURSOR_BYTES.unpack(base64.urlsafe_b64decode(cursor))
        if digest == _digest(user_id) and number < TASK_ID_MAX and (life or not number):
            return _Place(number, life)
    raise BadRequest("The cursor is not one that this server gave out to you; start again without it.")
