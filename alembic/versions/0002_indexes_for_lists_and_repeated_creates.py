"""Indexes for lists by status and for repeated creates."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    # Outside a transaction, so that writes go on while the indexes are built. A build that was cut off
    # leaves an invalid index behind, which is dropped first: running this again is safe.
    with op.get_context().autocommit_block():
        _drop()
        op.create_index(
            "task_user_id_completed_id_idx",
            "task",
            ["user_id", "completed", "id"],
            postgresql_concurrently=True,
        )
        op.create_index(
            "task_user_id_idempotency_key_idx",
            "task",
            ["user_id", "idempotency_key"],
            unique=True,
            postgresql_where=sa.text("idempotency_key IS NOT NULL"),
            postgresql_concurrently=True,
        )


def downgrade() -> None:
    with op.get_context().autocommit_block():
        _drop()


def _drop() -> None:
    for name in ("task_user_id_completed_id_idx", "task_user_id_idempotency_key_idx"):
        op.drop_index(name, "task", if_exists=True, postgresql_concurrently=True)
