"""Accounts and tasks."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "account",
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("last_task_id", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("user_id", name=op.f("account_pkey")),
        sa.CheckConstraint("char_length(user_id) BETWEEN 1 AND 255", name=op.f("account_user_id_length")),
        sa.CheckConstraint("last_task_id >= 0", name=op.f("account_last_task_id_positive")),
    )
    op.create_table(
        "task",
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("id", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("description", sa.Text),
        sa.Column("completed", sa.Boolean, nullable=False),
        sa.Column("completed_at", sa.DateTime(timezone=True)),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("idempotency_digest", sa.LargeBinary),
        sa.PrimaryKeyConstraint("user_id", "id", name=op.f("task_pkey")),
        sa.CheckConstraint("id >= 1", name=op.f("task_id_positive")),
        sa.CheckConstraint("char_length(user_id) BETWEEN 1 AND 255", name=op.f("task_user_id_length")),
        sa.CheckConstraint("char_length(title) BETWEEN 1 AND 200", name=op.f("task_title_length")),
        sa.CheckConstraint(r"title !~ '[\u0001-\u001F\u007F-\u009F]'", name=op.f("task_title_one_line")),
        sa.CheckConstraint("char_length(description) <= 10000", name=op.f("task_description_length")),
        sa.CheckConstraint(
            r"description !~ '[\u0001-\u0008\u000B\u000C\u000E-\u001F\u007F-\u009F]'",
            name=op.f("task_description_text"),
        ),
        sa.CheckConstraint("completed = (completed_at IS NOT NULL)", name=op.f("task_completed_at_matches")),
        sa.CheckConstraint("version >= 1", name=op.f("task_version_positive")),
        sa.CheckConstraint(
            "char_length(idempotency_key) BETWEEN 1 AND 255", name=op.f("task_idempotency_key_length")
        ),
        sa.CheckConstraint(
            "(idempotency_key IS NULL) = (idempotency_digest IS NULL)",
            name=op.f("task_idempotency_digest_matches"),
        ),
    )


def downgrade() -> None:
    op.drop_table("task")
    op.drop_table("account")
