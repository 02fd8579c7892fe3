"""Cursors: where the next page of a list starts, as a text that only this server reads.

A list by id without filters has `asc:17`. Any other adds a digest of its parameters, so
that a cursor of another list is refused, and what the list is sorted by at that place: it stays a place in
the list when the task there is changed or deleted.
"""

import base64
import hashlib
import json
import re
from datetime import UTC, datetime
from typing import NamedTuple

from taskctl.dates import rfc3339
from taskctl.errors import BadRequest
from taskctl.list_query import ListQuery
from taskctl.vocabulary import TASK_ID_MAX, Sort

_LENGTH_MAX = 1000
"""More than any cursor has: a key is at most 100 characters."""

_TEXT = re.compile(r"(asc|desc):([1-9][0-9]{0,18})(?::([0-9a-f]{12}):(.*))?", re.DOTALL)


class Place(NamedTuple):
    """The first task of a page: its id, and the text of what the list is sorted by, if not the id alone."""

    id: int
    key: str | None


def encode(place: Place, query: ListQuery) -> str:
    """The cursor of a place in this list."""
    text = f"{query.order}:{place.id}"
    if not _is_plain(query):
        text += f":{_digest(query)}:{place.key or ''}"
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def decode(cursor: str, query: ListQuery) -> Place:
    """The place that a cursor stands for.

    Raises:
        BadRequest: it is none, or belongs to another list.
    """
    match = None
    if cursor.isascii() and len(cursor) <= _LENGTH_MAX:
        try:
            raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
            canonical = base64.urlsafe_b64encode(raw).rstrip(b"=").decode() == cursor
            match = _TEXT.fullmatch(raw.decode()) if canonical else None
        except ValueError:
            match = None
    if match is None or int(match[2]) > TASK_ID_MAX:
        raise BadRequest("The cursor is not one that this server gave out; start again without it.")
    order, number, digest, key = match.groups()
    if order != query.order:
        raise BadRequest(f"The cursor belongs to a list with order={order}; start again without it.")
    if digest != (None if _is_plain(query) else _digest(query)):
        raise BadRequest("The cursor belongs to a list with other parameters; start again without it.")
    if key and not _is_key(key, query.sort):
        raise BadRequest("The cursor is not one that this server gave out; start again without it.")
    # A title of nothing but accents is sorted by an empty text.
    return Place(int(number), key if query.sort is Sort.title else key or None)


def _is_plain(query: ListQuery) -> bool:
    return query.model_fields_set.isdisjoint(_FILTERS) and query.sort in (Sort.id, Sort.created)


_FILTERS = ListQuery.model_fields.keys() - {"status", "sort", "order", "limit", "cursor", "count", "tz"}


def _digest(query: ListQuery) -> str:
    members = {name: getattr(query, name) for name in (*sorted(_FILTERS), "status", "sort", "tz")}
    return hashlib.sha256(json.dumps(members, default=str).encode()).hexdigest()[:12]


def _is_key(text: str, sort: Sort) -> bool:
    """Whether a statement that sorts so can take the text."""
    match sort:
        case Sort.priority:
            return text in {"0", "1", "2", "3"}
        case Sort.title:
            return "\0" not in text
        case Sort.due | Sort.updated:
            return text == "infinity" or _is_moment(text)
        case _:
            return False


def _is_moment(text: str) -> bool:
    try:
        moment = datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
    except ValueError:
        return False
    return rfc3339(moment) == text
