"""Ordering keys and decisions by the words that the documents use: `ordering_key` for `lane`, `retry` for `again`."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

WORDS = {"again": "retry", "dead": "dead_letter"}
# Earlier migrations gave these names without `op.f`, so the naming convention was applied to them once more.
CHECKS = {
    "retries": ("ck_retries_ck_retries_ck_retries_state", "ck_retries_state"),
    "replays": ("ck_replays_ck_replays_state", "ck_replays_state"),
}


def upgrade() -> None:
    for table in ("retries", "dead_letters"):
        op.execute(f"ALTER TABLE {table} RENAME COLUMN lane TO ordering_key")
    op.drop_index("ix_retries_lane", "retries")
    op.create_index(op.f("ix_retries_ordering_key"), "retries", ["sink", "ordering_key", "position"])
    translate(WORDS)
    # SQLite renames a constraint only by rebuilding its table; nothing there depends on the name.
    if op.get_bind().dialect.name == "postgresql":
        for table, (old, new) in CHECKS.items():
            op.execute(f"ALTER TABLE {table} RENAME CONSTRAINT {old} TO {new}")


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        for table, (old, new) in CHECKS.items():
            op.execute(f"ALTER TABLE {table} RENAME CONSTRAINT {new} TO {old}")
    translate({new: old for old, new in WORDS.items()})
    op.drop_index(op.f("ix_retries_ordering_key"), "retries")
    for table in ("retries", "dead_letters"):
        op.execute(f"ALTER TABLE {table} RENAME COLUMN ordering_key TO lane")
    op.create_index("ix_retries_lane", "retries", ["sink", "lane", "position"])


def translate(words: dict[str, str]) -> None:
    attempts = sa.table("attempts", sa.column("decision", sa.Text))
    for old, new in words.items():
        op.execute(attempts.update().where(attempts.c.decision == old).values(decision=new))
