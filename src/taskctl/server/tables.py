"""The tables, as SQLModel declares them: the source of the DDL and of Alembic's autogenerate.

Every key, and every index that a request uses, starts with `user_id`: there is no way to reach a task by its
id alone, and a database distributed by user routes each statement to one shard. A check constraint repeats
each bound of the wire models, so that what is stored can always be served.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    DDL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Index,
    LargeBinary,
    MetaData,
    SmallInteger,
    Text,
    event,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSON
from sqlmodel import Field, SQLModel

from taskctl.models import TaskFields
from taskctl.server import functions
from taskctl.vocabulary import (
    DESCRIPTION_MAX,
    EXTRA_MAX,
    IDEMPOTENCY_KEY_MAX,
    PROJECT_MAX,
    RECURRENCE_HAS_DUE,
    RECURRENCE_MAX,
    TAG_MAX,
    TAGS_MAX,
    TIME_ZONE_MAX,
    TITLE_MAX,
    USER_ID_MAX,
)

metadata = MetaData(
    naming_convention={"ck": "%(table_name)s_%(constraint_name)s", "pk": "%(table_name)s_pkey"},
)
"""Names are fixed, so that a violation says which rule it broke and a migration can name it."""


for function in functions.ALL:
    event.listen(metadata, "before_create", DDL(function))  # type: ignore[no-untyped-call] # of SQLAlchemy


def _column(*args: Any, **options: Any) -> Any:
    return Field(sa_column=Column(*args, **options))


def _now() -> Any:
    return _column(DateTime(timezone=True), nullable=False, server_default=text("now()"))


def _sorted(name: str, *key: Any) -> Index:
    return Index(
        f"task_user_id_{name}_idx",
        "user_id",
        "completed",
        *key,
        postgresql_where=text("deleted_at IS NULL"),
    )


class AccountRow(SQLModel, table=True):
    """Hands out the numbers of a user's tasks and changes, and counts the tasks outside the trash."""

    __tablename__ = "account"
    metadata = metadata
    __table_args__ = (
        CheckConstraint(f"char_length(user_id) BETWEEN 1 AND {USER_ID_MAX}", name="user_id_length"),
        CheckConstraint("last_task_id >= 0", name="last_task_id_positive"),
        CheckConstraint("last_change >= 0", name="last_change_positive"),
        CheckConstraint("quota_tasks >= 0", name="quota_tasks_positive"),
        CheckConstraint("quota_bytes >= 0", name="quota_bytes_positive"),
    )

    user_id: str = _column(Text, primary_key=True)
    last_task_id: int = _column(BigInteger, nullable=False)
    created_at: datetime = _now()
    last_change: int = _column(BigInteger, nullable=False, server_default=text("0"))
    tasks: int = _column(BigInteger, nullable=False, server_default=text("0"))
    bytes: int = _column(BigInteger, nullable=False, server_default=text("0"))
    """Of their texts, as `queries.octets` has it."""
    counted: int = _column(BigInteger, nullable=False, server_default=text("-1"))
    """Tasks and bytes are right where this is `last_change`."""
    quota_tasks: int | None = _column(BigInteger)
    """How many tasks this user may have; null for what all may, 0 for as many as they like."""
    quota_bytes: int | None = _column(BigInteger)


class TaskRow(TaskFields, SQLModel, table=True):
    """A task. Adds to the wire's fields what makes a repeated create safe."""

    __tablename__ = "task"
    metadata = metadata
    __table_args__ = (
        CheckConstraint("id >= 1", name="id_positive"),
        CheckConstraint(f"char_length(user_id) BETWEEN 1 AND {USER_ID_MAX}", name="user_id_length"),
        CheckConstraint(f"char_length(title) BETWEEN 1 AND {TITLE_MAX}", name="title_length"),
        CheckConstraint(r"title !~ '[\u0001-\u001F\u007F-\u009F]'", name="title_one_line"),
        CheckConstraint(f"char_length(description) <= {DESCRIPTION_MAX}", name="description_length"),
        CheckConstraint(
            r"description !~ '[\u0001-\u0008\u000B\u000C\u000E-\u001F\u007F-\u009F]'", name="description_text"
        ),
        CheckConstraint("completed = (completed_at IS NOT NULL)", name="completed_at_matches"),
        CheckConstraint("version >= 1", name="version_positive"),
        CheckConstraint(
            f"char_length(idempotency_key) BETWEEN 1 AND {IDEMPOTENCY_KEY_MAX}", name="idempotency_key_length"
        ),
        CheckConstraint(
            "(idempotency_key IS NULL) = (idempotency_digest IS NULL)", name="idempotency_digest_matches"
        ),
        CheckConstraint("due_at >= '0001-01-01Z' AND due_at < '10000-01-01Z'", name="due_at_range"),
        CheckConstraint(
            "NOT due_all_day OR due_at AT TIME ZONE 'UTC' = date_trunc('day', due_at AT TIME ZONE 'UTC')",
            name="due_all_day_is_midnight",
        ),
        CheckConstraint("NOT due_all_day OR due_at IS NOT NULL", name="due_all_day_has_day"),
        CheckConstraint("priority BETWEEN 0 AND 3", name="priority_range"),
        CheckConstraint(
            f"cardinality(tags) <= {TAGS_MAX} AND coalesce(array_ndims(tags), 1) = 1"
            " AND array_position(tags, NULL) IS NULL",
            name="tags_list",
        ),
        CheckConstraint(
            f"array_to_string(tags, ' ') !~ '[^ ]{{{TAG_MAX + 1}}}' AND array_position(tags, '') IS NULL",
            name="tags_length",
        ),
        CheckConstraint(f"char_length(project) BETWEEN 1 AND {PROJECT_MAX}", name="project_length"),
        CheckConstraint(r"project !~ '[\u0001-\u001F\u007F-\u009F]'", name="project_one_line"),
        CheckConstraint(f"char_length(recurrence) BETWEEN 1 AND {RECURRENCE_MAX}", name="recurrence_length"),
        CheckConstraint("recurrence IS NULL OR due_at IS NOT NULL", name=RECURRENCE_HAS_DUE),
        CheckConstraint(f"char_length(time_zone) BETWEEN 1 AND {TIME_ZONE_MAX}", name="time_zone_length"),
        CheckConstraint(f"octet_length(extra) <= {EXTRA_MAX}", name="extra_length"),
        CheckConstraint("json_typeof(extra::json) = 'object'", name="extra_object"),
        CheckConstraint("next_id >= 1", name="next_id_positive"),
        # Each sort's, in the order of its pages; of lists that the trash is no part of.
        _sorted("completed_id_live", "id"),
        _sorted("completed_due", text("coalesce(due_at, 'infinity')"), "id"),
        _sorted("completed_priority", "priority", "id"),
        _sorted("completed_updated", "updated_at", "id"),
        _sorted("completed_title", text('task_title_key(title COLLATE "C")'), "id"),
        Index(
            "task_user_id_completed_at_idx",
            "user_id",
            "completed_at",
            "id",
            postgresql_where=text("completed AND deleted_at IS NULL"),
        ),
        Index("task_user_id_trash_idx", "user_id", "id", postgresql_where=text("deleted_at IS NOT NULL")),
        # Words, tags, projects and priorities; of one user and state each, as all terms begin with both.
        Index(
            "task_terms_idx",
            text("task_terms(user_id, completed, deleted_at, title, description, tags, project, priority)"),
            postgresql_using="gin",
        ),
        Index(
            "task_user_id_idempotency_key_idx",
            "user_id",
            "idempotency_key",
            unique=True,
            postgresql_where=text("idempotency_key IS NOT NULL"),
        ),
    )

    user_id: str = _column(Text, primary_key=True)
    id: int = _column(BigInteger, primary_key=True, autoincrement=False)
    title: str = _column(Text, nullable=False)
    description: str | None = _column(Text)
    completed: bool = _column(Boolean, nullable=False)
    completed_at: datetime | None = _column(DateTime(timezone=True))
    version: int = _column(BigInteger, nullable=False)
    created_at: datetime = _now()
    updated_at: datetime = _now()
    idempotency_key: str | None = _column(Text)
    idempotency_digest: bytes | None = _column(LargeBinary)
    due_at: datetime | None = _column(DateTime(timezone=True))
    due_all_day: bool = _column(Boolean, nullable=False, server_default=text("false"))
    """Whether `due_at` is a date, kept as its midnight in UTC."""
    priority: int = _column(SmallInteger, nullable=False, server_default=text("0"))  # type: ignore[assignment]
    """Its place in `vocabulary.Priority`."""
    tags: list[str] = _column(ARRAY(Text), nullable=False, server_default=text("'{}'"))
    project: str | None = _column(Text)
    recurrence: str | None = _column(Text)
    time_zone: str | None = _column(Text)
    extra: str | None = _column(Text)  # type: ignore[assignment]
    """JSON, kept as it goes over the wire."""
    next_id: int | None = _column(BigInteger)
    deleted_at: datetime | None = _column(DateTime(timezone=True))


class ChangeRow(SQLModel, table=True):
    """A change of a task, with the task as it then was. Numbered per user in the order of the commits."""

    __tablename__ = "change"
    metadata = metadata
    __table_args__ = (
        CheckConstraint("number >= 1", name="number_positive"),
        CheckConstraint(
            "type IN ('created', 'changed', 'completed', 'reopened', 'deleted', 'restored')",
            name="type_known",
        ),
        # For the purge, which is about all users at once.
        Index("change_at_idx", "at", postgresql_using="brin"),
    )

    user_id: str = _column(Text, primary_key=True)
    number: int = _column(BigInteger, primary_key=True, autoincrement=False)
    type: str = _column(Text, nullable=False)
    task_id: int = _column(BigInteger, nullable=False)
    at: datetime = _now()
    task: Any = _column(JSON, nullable=False)


class BulkRow(SQLModel, table=True):
    """The answer to a bulk request that had a key: what the same request is answered again."""

    __tablename__ = "bulk"
    metadata = metadata
    __table_args__ = (
        CheckConstraint(f"char_length(key) BETWEEN 1 AND {IDEMPOTENCY_KEY_MAX}", name="key_length"),
    )

    user_id: str = _column(Text, primary_key=True)
    key: str = _column(Text, primary_key=True)
    digest: bytes = _column(LargeBinary, nullable=False)
    answer: str = _column(Text, nullable=False)
    created_at: datetime = _now()
