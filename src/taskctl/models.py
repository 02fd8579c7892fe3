"""What goes over the wire: plain pydantic models, and nothing but pydantic.

Bounds are written once, in the `Annotated` aliases, and hold in the API, its OpenAPI document and the
database's constraints (`server.tables`).
"""

import json
import re
import unicodedata
import zoneinfo
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StrictBool,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import TypeAliasType

from taskctl.dates import OTHER_ZONES, rfc3339, zone_of
from taskctl.recurrence import check
from taskctl.vocabulary import (
    CHANGES_LIMIT_DEFAULT,
    CHANGES_LIMIT_MAX,
    DESCRIPTION_MAX,
    EXTRA_MAX,
    PROJECT_MAX,
    RECURRENCE_MAX,
    TAG_MAX,
    TAGS_MAX,
    TITLE_MAX,
    ChangeType,
    Priority,
    Trust,
)

_CONTROL = frozenset(map(chr, [*range(0x20), *range(0x7F, 0xA0)]))
"""Unicode category Cc: C0, DEL and C1."""

CONTROL_RANGE = r"\u0000-\u001F\u007F-\u009F"

_LINE_BREAKS = frozenset("\t\n\r")


def _refuse(text: str, refused: frozenset[str]) -> str:
    found = next((character for character in text if character in refused), None)
    if found is not None:
        raise ValueError(f"must not contain the control character U+{ord(found):04X}")
    return text


def one_line(text: str) -> str:
    """A text as it is, where it has no control character; raises ValueError."""
    return text if text.isprintable() else _refuse(text, _CONTROL)


def _many_lines(text: str) -> str:
    return text if text.isprintable() else _refuse(text, _CONTROL - _LINE_BREAKS)


_SPACE = r"\t-\r \u0085\u00A0\u1680\u2000-\u200A\u2028\u2029\u202F\u205F\u3000"


def _trimmed_schema(longest: int) -> Callable[[dict[str, Any]], None]:
    """Say in JSON Schema what is accepted: the bounds hold for what trimming leaves."""
    visible = f"[^{_SPACE}{CONTROL_RANGE}]"

    def amend(schema: dict[str, Any]) -> None:
        schema.pop("minLength", None)
        schema.pop("maxLength", None)
        schema["pattern"] = (
            f"^[{_SPACE}]*{visible}([^{CONTROL_RANGE}]{{0,{longest - 2}}}{visible})?[{_SPACE}]*$"
        )

    return amend


Title = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=TITLE_MAX),
    AfterValidator(one_line),
    Field(
        description="One line, trimmed.",
        examples=["Buy milk"],
        json_schema_extra=_trimmed_schema(TITLE_MAX),
    ),
]

Description = Annotated[
    str,
    StringConstraints(max_length=DESCRIPTION_MAX),
    AfterValidator(_many_lines),
    Field(
        description="Free text; tab, newline and carriage return are its only control characters.",
        json_schema_extra={"pattern": r"^[^\u0000-\u0008\u000B\u000C\u000E-\u001F\u007F-\u009F]*$"},
    ),
]


Project = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=PROJECT_MAX),
    AfterValidator(one_line),
    Field(description="One line, trimmed.", json_schema_extra=_trimmed_schema(PROJECT_MAX)),
]


def _tag(text: str) -> str:
    tag = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text.strip()).lower())
    if not 1 <= len(tag) <= TAG_MAX:
        raise ValueError(f"a tag has 1 to {TAG_MAX} characters")
    if any(each.isspace() or each == "," or each in _CONTROL or "\ud800" <= each <= "\udfff" for each in tag):
        raise ValueError("a tag has no white space, comma, control character or lone surrogate in it")
    return tag


Tags = Annotated[
    list[
        Annotated[
            str,
            AfterValidator(_tag),
            Field(json_schema_extra={"pattern": f"^[^{_SPACE},{CONTROL_RANGE}]{{1,{TAG_MAX // 2}}}$"}),
        ]
    ],
    Field(
        max_length=TAGS_MAX,
        description=f"Each at most {TAG_MAX} characters, no white space or comma; lower case, once, sorted.",
        examples=[["home", "urgent"]],
    ),
    AfterValidator(lambda tags: sorted(set(tags))),
]

_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
_INSTANT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})",
    re.ASCII,
)


def due(value: Any) -> date | datetime:
    """A due date as the wire has it: a day (RFC 3339 `full-date`), or an instant with its offset, in UTC.

    Raises:
        ValueError: it is neither, or lies outside the years 1 to 9999 in UTC.
    """
    if isinstance(value, date):
        return value
    try:
        if isinstance(value, str) and _DATE.fullmatch(value):
            return date.fromisoformat(value)
        if isinstance(value, str) and _INSTANT.fullmatch(value):
            return datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError("there is no such date or time") from error
    raise ValueError("write a date as 2026-11-30, or a time with its offset as 2026-11-30T17:00:00+01:00")


def _wire_due(value: date | datetime) -> str:
    return rfc3339(value) if isinstance(value, datetime) else value.isoformat()


DueAt = Annotated[
    date | datetime,
    BeforeValidator(due),
    PlainSerializer(_wire_due, when_used="json"),
    WithJsonSchema(
        {
            "type": "string",
            "anyOf": [{"format": "date"}, {"format": "date-time"}],
            "description": "A date, which is all of that day wherever its user is, or an instant (RFC 3339).",
            "examples": ["2026-11-30", "2026-11-30T17:00:00+01:00"],
        }
    ),
]

Recurrence = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=RECURRENCE_MAX),
    Field(
        description="An RRULE (RFC 5545, section 3.3.10), without its name.",
        examples=["FREQ=WEEKLY;BYDAY=MO"],
        json_schema_extra={"pattern": f"^[{_SPACE}]*[A-Za-z]+=[^;=]+(;[A-Za-z]+=[^;=]+)*[{_SPACE}]*$"},
    ),
    AfterValidator(check),
]


def _zone_name(name: str) -> str:
    return zone_of(name).key


def _zone_schema(schema: dict[str, Any]) -> None:
    names = sorted(zoneinfo.available_timezones() - OTHER_ZONES)
    schema["pattern"] = f"^({'|'.join(map(re.escape, names))})$"


# An alias of its own, so that the OpenAPI document has all the names once.
TimeZone = TypeAliasType(
    "TimeZone",
    Annotated[
        str,
        AfterValidator(_zone_name),
        Field(
            description="A name of the IANA database, such as Europe/Berlin.", json_schema_extra=_zone_schema
        ),
    ],
)


def _small(value: dict[str, Any]) -> dict[str, Any]:
    try:
        size = len(compact(value).encode())
    except UnicodeEncodeError:  # whose message is the codec's
        raise ValueError("must not contain a lone surrogate, which is no character") from None
    if size > EXTRA_MAX:
        raise ValueError(f"has more than {EXTRA_MAX} bytes as JSON")
    return value


def compact(value: Any) -> str:
    """A value as JSON without white space."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


Extra = Annotated[
    dict[str, Any],
    AfterValidator(_small),
    Field(description=f"Kept for programs and never looked into; at most {EXTRA_MAX} bytes."),
]


Timestamp = Annotated[
    AwareDatetime,
    PlainSerializer(rfc3339, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]


class Body(BaseModel):
    """A request body. An unknown member is an error: a typo must not pass silently."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


def _recurs_from_a_date(schema: dict[str, Any]) -> None:
    dated = {"properties": {"due_at": {"type": "string"}}, "required": ["due_at"]}
    # In these words and not with `if`, which Redoc cannot show.
    schema["not"] = {
        "properties": {"recurrence": {"type": "string"}},
        "required": ["recurrence"],
        "not": dated,
    }


class TaskContent(Body):
    """All that a client may write of a task; what is left out takes its default."""

    model_config = ConfigDict(json_schema_extra=_recurs_from_a_date)

    title: Title
    description: Description | None = None
    due_at: DueAt | None = None
    priority: Priority = Priority.none
    tags: Tags = []
    project: Project | None = None
    recurrence: Recurrence | None = Field(None, description="Needs a `due_at`.")
    time_zone: TimeZone | None = Field(
        None, description="Where a recurrence keeps its time of day; null: UTC."
    )
    extra: Extra | None = None
    completed: StrictBool = False

    @model_validator(mode="after")
    def _recurs_from_a_date(self) -> Self:
        if self.recurrence is not None and self.due_at is None:
            raise ValueError(RECURRENCE_NEEDS_DUE)
        return self


RECURRENCE_NEEDS_DUE = "A task that recurs has a due date"


def without_defaults(schema: dict[str, Any]) -> None:
    """Leave out of a JSON Schema the defaults, where what is left out is not the same as its default."""
    for member in schema["properties"].values():
        member.pop("default", None)


class TaskPatch(Body):
    """A JSON merge patch (RFC 7396): left out means unchanged, null clears what can be empty.

    Null is refused where it would not be a value: `title`, `priority` (its empty state is `none`), `tags`
    (`[]`) and `completed`. `extra` is replaced as a whole. Which members were sent is in
    `model_fields_set`; the defaults here are never used, nor shown in the schema.
    """

    model_config = ConfigDict(json_schema_extra=without_defaults)

    title: Title = ""
    description: Description | None = None
    due_at: DueAt | None = None
    priority: Priority = Priority.none
    tags: Tags = []
    project: Project | None = None
    recurrence: Recurrence | None = None
    time_zone: TimeZone | None = None
    extra: Extra | None = None
    completed: StrictBool = False


class Completion(Body):
    """Whether a task is done. No body at all means that it is."""

    completed: StrictBool = True


class TaskFields(BaseModel):
    """What the wire and the table have in common."""

    id: int = Field(ge=1, description="Counted per user from 1; never used again.")
    user_id: str
    title: Title
    description: Description | None
    due_at: DueAt | None
    priority: Priority
    tags: list[str]
    project: str | None
    recurrence: str | None
    time_zone: str | None
    extra: dict[str, Any] | None
    completed: bool
    completed_at: Timestamp | None
    next_id: int | None = Field(description="The task that completing this one has created, if it recurs.")
    deleted_at: Timestamp | None = Field(description="When it went to the trash.")
    version: int = Field(ge=1, description="One more after every change.")
    created_at: Timestamp
    updated_at: Timestamp


class Task(TaskFields):
    """A task as the API returns it."""


class TaskPage(BaseModel):
    """One page of a list."""

    items: list[Task]
    next_cursor: str | None = Field(description="Send it as `cursor` for the next page; null on the last.")
    count: int | SkipJsonSchema[None] = Field(
        None,
        ge=0,
        description="With `count=exact`: tasks on all pages.",
        exclude_if=lambda count: count is None,
    )


def digits(value: Any) -> Any:
    """Refuse what Python takes for a whole number and JSON Schema does not: `1_0`, `+5`, `5.0`."""
    if isinstance(value, str) and not re.fullmatch(r"-?[0-9]+", value, re.ASCII):
        raise ValueError("not a whole number")
    return value


class Change(BaseModel):
    """A change of a task."""

    number: int = Field(ge=1, description="Counted per user in the order of the changes; there may be gaps.")
    type: ChangeType
    at: Timestamp
    task: Task = Field(description="The task as this change has left it.")


class ChangePage(BaseModel):
    """Changes in their order."""

    items: list[Change]
    next_cursor: str = Field(description="Send it as `since` to go on after these.")
    more: bool = Field(description="Whether there are changes after these already.")


class ChangesQuery(Body):
    """The parameters of the log of changes."""

    since: str | SkipJsonSchema[None] = Field(
        None,
        description="A `next_cursor`, or `now`: from this moment on. Left out: from the oldest that is kept.",
        json_schema_extra={"pattern": "^(now|[A-Za-z0-9_-]{20})$"},
    )
    limit: Annotated[int, BeforeValidator(digits)] = Field(
        CHANGES_LIMIT_DEFAULT, ge=1, le=CHANGES_LIMIT_MAX, description="A page of long tasks holds fewer."
    )


class Invalid(BaseModel):
    """One thing that is wrong with a request."""

    loc: list[str | int] = Field(description="Where: body, query, path or header, then the member's path.")
    msg: str
    type: str


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str = Field(json_schema_extra={"format": "uri-reference"})
    title: str
    status: int
    detail: str
    instance: str
    code: str = Field(description="Stable; for programs.")
    request_id: str = Field(description="The same as in the X-Request-ID header and the server's log.")
    errors: list[Invalid] = Field(default=[], description="With validation_failed: each thing that is wrong.")
    current_version: int | None = Field(None, description="With version_conflict: the task's version.")
    checks: dict[str, Any] = Field(default={}, description="With not_ready: what was checked.")
    results: list[dict[str, Any]] = Field(
        default=[], description="With bulk_refused: as in the answer of a bulk request."
    )


class VerifiedBy(BaseModel):
    """What vouches for a token."""

    trust: Trust = Field(description="This server's secret, or the issuer's key set.")
    algorithm: str
    key_id: str | None = Field(description="The name of the issuer's key.")


class Me(BaseModel):
    """Whom a token speaks for."""

    user_id: str
    issuer: str | None = Field(description="The token's `iss`.")
    scopes: list[str] = Field(description="What it may do; words of other services included.")
    expires_at: Timestamp
    verified_by: VerifiedBy


class KeySetHealth(BaseModel):
    """The state of the issuer's key set."""

    state: str = Field(description="fresh, stale (the issuer is away), or none.")
    keys: int
    age_seconds: float | None = Field(description="Time since it was fetched.")
    last_fetch: str | None = Field(description="ok, or why the last fetch failed.")


class Liveness(BaseModel):
    """The process runs."""

    status: str = "ok"


class Readiness(BaseModel):
    """The server takes requests."""

    status: str = "ready"
    checks: dict[str, str]


class Health(BaseModel):
    """The details, for people."""

    status: str = Field(description="ok, or what keeps the server from being ready.")
    version: str
    environment: str
    uptime_seconds: float
    database: dict[str, Any] = Field(description="Reachable, latency in milliseconds, schema revision.")
    pool: dict[str, int] = Field(description="Connections: the most, open, idle; requests that wait.")
    key_set: KeySetHealth | None = Field(None, description="Null where only a secret is trusted.")
