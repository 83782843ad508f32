"""The index of the tags serves prefixes too: on PostgreSQL with the operator class for patterns."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

TAG_START = "substr(tag, 1, 200)"


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    op.drop_index("ix_messages_tag", table_name="messages")
    op.create_index(
        "ix_messages_tag",
        "messages",
        [sa.text(f"{TAG_START} text_pattern_ops"), "listed_at"],
        postgresql_where=sa.text(f"{TAG_START} IS NOT NULL"),
    )


def downgrade() -> None:
    raise RuntimeError("there is no way back from 0007: restore the backup made before the upgrade")
