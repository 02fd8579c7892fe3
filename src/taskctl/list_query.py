"""The parameters of a list of tasks, checked, and what its date filters mean."""

from datetime import date, datetime
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, WithJsonSchema
from pydantic.json_schema import SkipJsonSchema

from taskctl.models import CONTROL_RANGE, Body, DueAt, Project, Tags, TimeZone, digits, due, one_line
from taskctl.vocabulary import (
    PAGE_LIMIT_DEFAULT,
    PAGE_LIMIT_MAX,
    SEARCH_MAX,
    DueWord,
    Order,
    Priority,
    Sort,
    Status,
)


class DueRange(NamedTuple):
    """Due dates between two bounds, or one. A day as the last belongs to it, an instant does not."""

    first: date | datetime | None
    last: date | datetime | None


def _due_filter(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value in set(DueWord):
        return DueWord(value)
    first, dots, last = value.partition("..")
    if not dots or not (first or last):
        raise ValueError(f"is one of {', '.join(DueWord)}, or a range such as 2026-11-01..2026-11-30")
    return DueRange(due(first) if first else None, due(last) if last else None)


_A_DAY = r"[12][0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])"
_A_MOMENT = rf"{_A_DAY}(T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{{1,6}})?(Z|[+-]0[0-9]:[0-5][0-9]))?"

DueFilter = Annotated[
    DueWord | DueRange,
    BeforeValidator(_due_filter),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": rf"^({'|'.join(DueWord)}|{_A_MOMENT}\.\.({_A_MOMENT})?|\.\.{_A_MOMENT})$",
            "description": "`overdue` (and pending), `today`, `week` (seven days from today), `none`, `any`,"
            " or `FROM..TO`, either of which may be left out: dates (both included) or instants (TO not).",
            "examples": ["today", "2026-11-01..2026-11-30"],
        }
    ),
]


class ListQuery(Body):
    """The parameters of a list. An unknown one is an error: a typo must never return everything."""

    status: Status = Status.all
    q: (
        Annotated[
            str,
            StringConstraints(min_length=1, max_length=SEARCH_MAX),
            AfterValidator(one_line),
            Field(json_schema_extra={"pattern": f"^[^{CONTROL_RANGE}]*$"}),
        ]
        | SkipJsonSchema[None]
    ) = Field(None, description="Words that title and description must have, or begin a word of theirs.")
    tag: Tags = Field([], description="Sent several times: tags that a task must have all.")
    project: Project | SkipJsonSchema[None] = Field(None, description="The project's whole name.")
    priority: Priority | SkipJsonSchema[None] = None
    due: DueFilter | SkipJsonSchema[None] = None
    completed_after: DueAt | SkipJsonSchema[None] = Field(
        None, description="At this instant or later; a date stands for its beginning."
    )
    completed_before: DueAt | SkipJsonSchema[None] = Field(
        None, description="Before this instant; a date stands for its beginning."
    )
    tz: TimeZone = Field("UTC", description="Where today and the dates of the filters are.")
    sort: Sort = Field(
        Sort.id, description="What is alike in it, by id. Without a due date is later than any."
    )
    order: Order = Order.asc
    limit: Annotated[int, BeforeValidator(digits)] = Field(PAGE_LIMIT_DEFAULT, ge=1, le=PAGE_LIMIT_MAX)
    cursor: str | SkipJsonSchema[None] = Field(
        None,
        description="The `next_cursor` of the page before, in the same list.",
        json_schema_extra={"pattern": "^[A-Za-z0-9_-]{7,1000}$"},
    )
    count: Literal["exact"] | SkipJsonSchema[None] = Field(
        None, description="Have all tasks of the list counted, which takes longer the more there are."
    )
