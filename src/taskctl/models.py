"""What goes over the wire: plain pydantic models, and nothing but pydantic.

Bounds are written once, in the `Annotated` aliases, and hold in the API, its OpenAPI document and the
database's constraints (`server.tables`).
"""

import re
from datetime import UTC, datetime
from typing import Annotated, Any

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
)

from taskctl.vocabulary import (
    DESCRIPTION_MAX,
    PAGE_LIMIT_DEFAULT,
    PAGE_LIMIT_MAX,
    TITLE_MAX,
    Order,
    Status,
    Trust,
)

_CONTROL = frozenset(map(chr, [*range(0x20), *range(0x7F, 0xA0)]))
"""Unicode category Cc: C0, DEL and C1."""

_CONTROL_RANGE = r"\u0000-\u001F\u007F-\u009F"

_LINE_BREAKS = frozenset("\t\n\r")


def _refuse(text: str, refused: frozenset[str]) -> str:
    found = next((character for character in text if character in refused), None)
    if found is not None:
        raise ValueError(f"must not contain the control character U+{ord(found):04X}")
    return text


def _one_line(text: str) -> str:
    return text if text.isprintable() else _refuse(text, _CONTROL)


def _many_lines(text: str) -> str:
    return text if text.isprintable() else _refuse(text, _CONTROL - _LINE_BREAKS)


def _title_schema(schema: dict[str, Any]) -> None:
    """Say in JSON Schema what is accepted: the bounds hold for what trimming leaves."""
    space = r"\t-\r \u0085\u00A0\u1680\u2000-\u200A\u2028\u2029\u202F\u205F\u3000"
    visible = f"[^{space}{_CONTROL_RANGE}]"
    schema.pop("minLength", None)
    schema.pop("maxLength", None)
    schema["pattern"] = f"^[{space}]*{visible}([^{_CONTROL_RANGE}]{{0,{TITLE_MAX - 2}}}{visible})?[{space}]*$"


Title = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=TITLE_MAX),
    AfterValidator(_one_line),
    Field(
        description="One line, trimmed.",
        examples=["Buy milk"],
        json_schema_extra=_title_schema,
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


def rfc3339(moment: datetime) -> str:
    """A moment as the API writes it: UTC, microseconds, `Z` (RFC 3339), as PostgreSQL's own JSON has it."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


Timestamp = Annotated[
    AwareDatetime,
    PlainSerializer(rfc3339, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]


class Body(BaseModel):
    """A request body. An unknown member is an error: a typo must not pass silently."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class TaskContent(Body):
    """All that a client may write of a task; what is left out takes its default."""

    title: Title
    description: Description | None = None
    completed: StrictBool = False


def _without_defaults(schema: dict[str, Any]) -> None:
    for member in schema["properties"].values():
        member.pop("default")


class TaskPatch(Body):
    """A JSON merge patch (RFC 7396): left out means unchanged, null clears the description.

    A title and a completion have no empty state, so null is refused for them. Which members were sent
    is in `model_fields_set`; the defaults here are never used, nor shown in the schema.
    """

    model_config = ConfigDict(json_schema_extra=_without_defaults)

    title: Title = ""
    description: Description | None = None
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
    completed: bool
    completed_at: Timestamp | None
    version: int = Field(ge=1, description="One more after every change.")
    created_at: Timestamp
    updated_at: Timestamp


class Task(TaskFields):
    """A task as the API returns it."""


class TaskPage(BaseModel):
    """One page of a list."""

    items: list[Task]
    next_cursor: str | None = Field(description="Send it as `cursor` for the next page; null on the last.")


def _digits(value: Any) -> Any:
    """Refuse what Python takes for a whole number and JSON Schema does not: `1_0`, `+5`, `5.0`."""
    if isinstance(value, str) and not re.fullmatch(r"-?[0-9]+", value, re.ASCII):
        raise ValueError("not a whole number")
    return value


class ListQuery(Body):
    """The parameters of a list. An unknown one is an error: a typo must never return everything."""

    status: Status = Status.all
    limit: Annotated[int, BeforeValidator(_digits)] = Field(PAGE_LIMIT_DEFAULT, ge=1, le=PAGE_LIMIT_MAX)
    cursor: str | None = Field(None, description="The `next_cursor` of the page before.")
    order: Order = Field(Order.asc, description="By id.")


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
