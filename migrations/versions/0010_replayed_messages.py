"""A replay may be of given messages alone."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from receiver.storage.schema import lock_tables

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    lock_tables(op.get_bind(), "replays")
    op.add_column("replays", sa.Column("message_ids", JSONB().with_variant(sa.Text(), "sqlite"), nullable=True))


def downgrade() -> None:
    op.drop_column("replays", "message_ids")
