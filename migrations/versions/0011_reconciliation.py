"""Reconciliation: the APIs that are queried, and when each message was looked up."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

moment = sa.DateTime(timezone=True).with_variant(sa.String(27), "sqlite")


def upgrade() -> None:
    op.create_table(
        "reconcilers",
        sa.Column("api", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("lease_holder", sa.Text()),
        sa.Column("lease_until", moment),
        sa.Column("day", sa.Text()),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("requested_at", moment),
        sa.Column("is_exhausted", sa.Boolean(), nullable=False),
        sa.Column("failures", sa.BigInteger(), nullable=False),
        sa.Column("failing_since_at", moment),
        sa.Column("answer", sa.Text()),
        sa.Column("last_error", sa.Text()),
        sa.Column("paused_until_at", moment),
        sa.PrimaryKeyConstraint("api", name="pk_reconcilers"),
    )
    op.create_table(
        "reconciliations",
        sa.Column("api", sa.Text(), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("tries", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("asked_at", moment, nullable=False),
        sa.Column("due_at", moment, nullable=False),
        sa.PrimaryKeyConstraint("message_id", "api", name="pk_reconciliations"),
    )


def downgrade() -> None:
    raise RuntimeError("there is no way back from 0011: restore the backup made before the upgrade")
