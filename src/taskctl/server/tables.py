"""The tables, as SQLModel declares them: the source of the DDL and of Alembic's autogenerate.

Every key and index starts with `user_id`: there is no way to reach a task by its id alone, and a database
distributed by user routes each statement to one shard. A check constraint repeats each bound of the wire
models, so that what is stored can always be served.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Index,
    LargeBinary,
    MetaData,
    Text,
    text,
)
from sqlmodel import Field, SQLModel

from taskctl.models import TaskFields
from taskctl.vocabulary import DESCRIPTION_MAX, IDEMPOTENCY_KEY_MAX, TITLE_MAX, USER_ID_MAX

metadata = MetaData(
    naming_convention={"ck": "%(table_name)s_%(constraint_name)s", "pk": "%(table_name)s_pkey"},
)
"""Names are fixed, so that a violation says which rule it broke and a migration can name it."""


def _column(*args: Any, **options: Any) -> Any:
    return Field(sa_column=Column(*args, **options))


def _now() -> Any:
    return _column(DateTime(timezone=True), nullable=False, server_default=text("now()"))


class AccountRow(SQLModel, table=True):
    """Hands out a user's task ids; made by the user's first task and never deleted."""

    __tablename__ = "account"
    metadata = metadata
    __table_args__ = (
        CheckConstraint(f"char_length(user_id) BETWEEN 1 AND {USER_ID_MAX}", name="user_id_length"),
        CheckConstraint("last_task_id >= 0", name="last_task_id_positive"),
    )

    user_id: str = _column(Text, primary_key=True)
    last_task_id: int = _column(BigInteger, nullable=False)
    created_at: datetime = _now()


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
        # Serves the pending and the completed list, each in the order of its pages.
        Index("task_user_id_completed_id_idx", "user_id", "completed", "id"),
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
