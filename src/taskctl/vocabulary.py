"""Words and bounds that the command line, the API and the database share. Standard library only."""

from enum import StrEnum

API_PREFIX = "/api/v1"

TITLE_MAX = 200
"""Characters (code points) in a title, after trimming; at least one."""

DESCRIPTION_MAX = 10_000
"""Characters (code points) in a description."""

USER_ID_MAX = 255
"""Characters in a user id, which is a token's `sub`."""

TAGS_MAX = 32
"""Tags of a task."""

TAG_MAX = 64
"""Characters (code points) in a tag, after trimming; at least one."""

PROJECT_MAX = 100
"""Characters (code points) in a project's name, after trimming; at least one."""

RECURRENCE_MAX = 500
"""Characters in a recurrence rule."""

RECURRENCE_HAS_DUE = "recurrence_has_due"
"""The database's rule that a merge patch can break without its server knowing: the due date is in the row."""

TIME_ZONE_MAX = 64
"""Characters in a time zone's name."""

EXTRA_MAX = 8192
"""Bytes of what programs keep with a task, as compact JSON in UTF-8."""

IDEMPOTENCY_KEY_MAX = 255
"""Visible ASCII characters in an `Idempotency-Key`."""

TASK_ID_MAX = 2**63 - 1
"""The largest PostgreSQL `bigint`."""

QUOTA_MAX = 10**15
"""The largest quota, of tasks or of bytes."""

SEARCH_MAX = 200
"""Characters (code points) in what is searched for; at least one."""

BULK_MAX = 500
"""Operations of a bulk request."""

PAGE_LIMIT_MAX = 200
"""Tasks on one page of a list."""

PAGE_LIMIT_DEFAULT = 50

CHANGES_LIMIT_MAX = 500
"""Changes on one page of the log."""

CHANGES_LIMIT_DEFAULT = 100

HEARTBEAT_MAX = 30.0
"""Seconds for which a stream of changes is silent at the most, so that a client knows a dead one."""

MIN_SECRET_BYTES = 32
"""Shortest secret for HS256 (RFC 7518, section 3.2)."""


class Environment(StrEnum):
    """The profile that the server's defaults follow."""

    dev = "dev"
    test = "test"
    prod = "prod"


class Status(StrEnum):
    """Which tasks a list shows."""

    all = "all"
    pending = "pending"
    completed = "completed"
    deleted = "deleted"


class Priority(StrEnum):
    """How urgent a task is, least first; its place here is what the database keeps."""

    none = "none"
    low = "low"
    medium = "medium"
    high = "high"


class DueWord(StrEnum):
    """Due dates that a list can be asked for by name."""

    overdue = "overdue"
    today = "today"
    week = "week"
    none = "none"
    any = "any"


class Sort(StrEnum):
    """What a list is sorted by; tasks alike in it follow each other by id."""

    id = "id"
    due = "due"
    priority = "priority"
    updated = "updated"
    created = "created"
    title = "title"  # type: ignore[assignment] # as `str.title`, which nobody asks of it


class Order(StrEnum):
    """The direction of a list's order."""

    asc = "asc"
    desc = "desc"


class ChangeType(StrEnum):
    """What has become of a task."""

    created = "created"
    changed = "changed"
    completed = "completed"
    reopened = "reopened"
    deleted = "deleted"
    restored = "restored"


class Scope(StrEnum):
    """What a token's `scope` claim may allow (RFC 8693, section 4.2); write does not imply read."""

    read = "tasks:read"
    write = "tasks:write"


class Algorithm(StrEnum):
    """What a token may be signed with (RFC 7518, section 3.1; RFC 8037): a secret, or one kind of key."""

    HS256 = "HS256"
    EdDSA = "EdDSA"
    ES256 = "ES256"
    ES512 = "ES512"
    RS256 = "RS256"
    PS256 = "PS256"


class Trust(StrEnum):
    """What vouches for a token."""

    secret = "secret"  # noqa: S105 - a word
    key_set = "key_set"
