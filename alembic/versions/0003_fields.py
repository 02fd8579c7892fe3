"""Due dates, priorities, tags, projects, recurrence, trash, and the log of changes."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSON

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

CHECKS = {
    "due_at_range": "due_at >= '0001-01-01Z' AND due_at < '10000-01-01Z'",
    "due_all_day_is_midnight": "NOT due_all_day"
    " OR due_at AT TIME ZONE 'UTC' = date_trunc('day', due_at AT TIME ZONE 'UTC')",
    "due_all_day_has_day": "NOT due_all_day OR due_at IS NOT NULL",
    "priority_range": "priority BETWEEN 0 AND 3",
    "tags_list": "cardinality(tags) <= 32 AND coalesce(array_ndims(tags), 1) = 1"
    " AND array_position(tags, NULL) IS NULL",
    "tags_length": "array_to_string(tags, ' ') !~ '[^ ]{65}' AND array_position(tags, '') IS NULL",
    "project_length": "char_length(project) BETWEEN 1 AND 100",
    "project_one_line": r"project !~ '[\u0001-\u001F\u007F-\u009F]'",
    "recurrence_length": "char_length(recurrence) BETWEEN 1 AND 500",
    "recurrence_has_due": "recurrence IS NULL OR due_at IS NOT NULL",
    "time_zone_length": "char_length(time_zone) BETWEEN 1 AND 64",
    "extra_length": "octet_length(extra) <= 8192",
    "extra_object": "json_typeof(extra::json) = 'object'",
    "next_id_positive": "next_id >= 1",
}


def columns() -> tuple[sa.Column[Any], ...]:
    """What a task gains; a column object goes into one statement only."""
    return (
        sa.Column("due_at", sa.DateTime(timezone=True)),
        sa.Column("due_all_day", sa.Boolean, server_default=sa.text("false"), nullable=False),
        sa.Column("priority", sa.SmallInteger, server_default=sa.text("0"), nullable=False),
        sa.Column("tags", ARRAY(sa.Text), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("project", sa.Text),
        sa.Column("recurrence", sa.Text),
        sa.Column("time_zone", sa.Text),
        sa.Column("extra", sa.Text),
        sa.Column("next_id", sa.BigInteger),
        sa.Column("deleted_at", sa.DateTime(timezone=True)),
    )


def upgrade() -> None:
    op.create_table(
        "change",
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("number", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("task_id", sa.BigInteger, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("task", JSON, nullable=False),
        sa.PrimaryKeyConstraint("user_id", "number", name=op.f("change_pkey")),
        sa.CheckConstraint("number >= 1", name=op.f("change_number_positive")),
        sa.CheckConstraint(
            "type IN ('created', 'changed', 'completed', 'reopened', 'deleted', 'restored')",
            name=op.f("change_type_known"),
        ),
    )
    # Tells the purge where the oldest entries are; they are written in the order of time.
    op.create_index("change_at_idx", "change", ["at"], postgresql_using="brin")
    op.add_column(
        "account", sa.Column("last_change", sa.BigInteger, server_default=sa.text("0"), nullable=False)
    )
    op.create_check_constraint(op.f("account_last_change_positive"), "account", "last_change >= 0")
    for column in columns():
        op.add_column("task", column)
    # Checked for new rows at once, and for those that are there already without keeping writers out.
    for name, rule in CHECKS.items():
        op.create_check_constraint(op.f(f"task_{name}"), "task", rule, postgresql_not_valid=True)
    with op.get_context().autocommit_block():
        for name in CHECKS:
            op.execute(f"ALTER TABLE task VALIDATE CONSTRAINT task_{name}")


def downgrade() -> None:
    # What is in the trash would come back as an ordinary task; it goes, as it did before there was a trash.
    op.execute("DELETE FROM task WHERE deleted_at IS NOT NULL")
    for column in columns():
        op.drop_column("task", column.name)
    op.drop_column("account", "last_change")
    op.drop_table("change")
