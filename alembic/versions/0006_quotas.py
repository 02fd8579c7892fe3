"""Quotas, and what is counted for them."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

COLUMNS = ("tasks", "bytes", "counted", "quota_tasks", "quota_bytes")


def upgrade() -> None:
    # The release before this one writes on without counting; `counted` then stays behind `last_change`.
    for name, default in {"tasks": "0", "bytes": "0", "counted": "-1"}.items():
        op.add_column(
            "account", sa.Column(name, sa.BigInteger, server_default=sa.text(default), nullable=False)
        )
    for name in ("quota_tasks", "quota_bytes"):
        op.add_column("account", sa.Column(name, sa.BigInteger))
        op.create_check_constraint(op.f(f"account_{name}_positive"), "account", f"{name} >= 0")


def downgrade() -> None:
    for name in COLUMNS:
        op.drop_column("account", name)
