"""Replays: an operator can have old events published to a sink again; an attempt names the replay it belongs to."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

position = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
moment = sa.DateTime(timezone=True).with_variant(sa.String(27), "sqlite")

OPEN = sa.text("state IN ('running', 'paused')")


def upgrade() -> None:
    op.create_table(
        "replays",
        sa.Column("id", position, nullable=False, autoincrement=True),
        sa.Column("sink", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("after_position", position, nullable=False),
        sa.Column("to_position", position, nullable=False),
        sa.Column("position", position, nullable=False),
        sa.Column("published", sa.BigInteger(), nullable=False),
        sa.Column("dead_letters", sa.BigInteger(), nullable=False),
        sa.Column("requested_at", moment, nullable=False),
        sa.Column("ended_at", moment, nullable=True),
        sa.CheckConstraint(
            "state IN ('running', 'paused', 'cancelled', 'finished', 'expired')", name="ck_replays_state"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_replays"),
        sa.ForeignKeyConstraint(["sink"], ["sinks.name"], name="fk_replays_sinks", ondelete="CASCADE"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_replays_open", "replays", ["sink", "id"], sqlite_where=OPEN, postgresql_where=OPEN)
    op.create_index("ix_dead_letters_sink", "dead_letters", ["sink", "id"])
    op.add_column("attempts", sa.Column("replay_id", position, nullable=True))


def downgrade() -> None:
    op.drop_column("attempts", "replay_id")
    op.drop_index("ix_dead_letters_sink", "dead_letters")
    op.drop_table("replays")
