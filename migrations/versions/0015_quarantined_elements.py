"""How many elements a row of the quarantine stands for: of very many of one callback only the first are listed."""

import sqlalchemy as sa
from alembic import op

from receiver.storage.schema import lock_tables

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    lock_tables(op.get_bind(), "quarantine")
    op.add_column("quarantine", sa.Column("elements", sa.Integer(), nullable=False, server_default="1"))


def downgrade() -> None:
    op.drop_column("quarantine", "elements")
