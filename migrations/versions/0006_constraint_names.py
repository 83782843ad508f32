"""The CHECK constraints of retries and replays on SQLite have the names of the models, as on PostgreSQL since 0004.

SQLite renames a constraint only by copying its table.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

OLD_NAMES = {"retries": "ck_retries_ck_retries_ck_retries_state", "replays": "ck_replays_ck_replays_state"}
STATES = {
    "retries": "state IN ('due', 'held', 'parked')",
    "replays": "state IN ('running', 'paused', 'cancelled', 'finished', 'expired')",
}


def upgrade() -> None:
    connection = op.get_bind()
    if connection.dialect.name != "sqlite":
        return
    highest = connection.scalar(sa.text("SELECT seq FROM sqlite_sequence WHERE name = 'replays'"))
    for table, condition in STATES.items():
        with op.batch_alter_table(
            table, recreate="always", table_kwargs={"sqlite_autoincrement": table == "replays"}
        ) as batch:
            batch.drop_constraint(op.f(OLD_NAMES[table]), type_="check")
            batch.create_check_constraint(op.f(f"ck_{table}_state"), condition)
    if highest is not None:
        # The copy begins behind the rows that are left, and would give the id of a removed replay to another one.
        remove = sa.text("DELETE FROM sqlite_sequence WHERE name = 'replays'")
        connection.execute(remove)
        connection.execute(
            sa.text("INSERT INTO sqlite_sequence (name, seq) VALUES ('replays', :seq)"), {"seq": highest}
        )


def downgrade() -> None:
    """Leaves the names: no earlier revision depends on them."""
