"""Statistics: deliveries counted per hour and per day, filled from the messages that are there.

Half a million messages, each in a cell of its own, took either database 20 s on a busy machine.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

KEY = (
    "grain",
    "hour",
    "api",
    "direction",
    "status",
    "delivery_code",
    "application_id",
    "carrier_name",
    "sender",
    "bucket",
)
HOUR, DAY, SENDER_HOUR, SENDER_DAY = range(4)
# grain, the SQL of the beginning of its time, the SQL of its sender
DERIVED = (
    (HOUR, "hour", "''"),
    (DAY, "hour - ((hour % 24) + 24) % 24", "''"),
    (SENDER_DAY, "hour - ((hour % 24) + 24) % 24", "sender"),
)
BOUNDS = [round(125_000 * 2 ** (step / 2)) for step in range(43)]
END = "coalesce(d.delivered_at, CASE WHEN d.status = 'delivered' THEN d.updated_at END)"


def upgrade() -> None:
    op.create_table(
        "statistics",
        sa.Column("grain", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("hour", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("api", sa.Text(), nullable=False),
        sa.Column("direction", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("delivery_code", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("application_id", sa.Text(), nullable=False),
        sa.Column("carrier_name", sa.Text(), nullable=False),
        sa.Column("sender", sa.Text(), nullable=False),
        sa.Column("bucket", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("deliveries", sa.BigInteger(), nullable=False),
        sa.Column("awaiting", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint(*KEY, name="pk_statistics"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "statistics_changes",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("hour", sa.Integer(), nullable=False),
        sa.Column("api", sa.Text(), nullable=False),
        sa.Column("direction", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("delivery_code", sa.BigInteger(), nullable=False),
        sa.Column("application_id", sa.Text(), nullable=False),
        sa.Column("carrier_name", sa.Text(), nullable=False),
        sa.Column("sender", sa.Text(), nullable=False),
        sa.Column("bucket", sa.Integer(), nullable=False),
        sa.Column("deliveries", sa.BigInteger(), nullable=False),
        sa.Column("awaiting", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_statistics_changes"),
    )
    columns = ", ".join((*KEY, "deliveries", "awaiting"))
    counted = counted_on_sqlite() if op.get_bind().dialect.name == "sqlite" else counted_on_postgresql()
    op.execute(sa.text(f"INSERT INTO statistics ({columns}) {counted}".replace(":", "\\:")))
    for grain, hour, sender in DERIVED:
        op.execute(
            f"INSERT INTO statistics ({columns}) "  # noqa: S608
            f"SELECT {grain}, {hour}, api, direction, status, delivery_code, application_id, carrier_name, {sender}, "
            "bucket, sum(deliveries), sum(awaiting) "
            f"FROM statistics WHERE grain = {SENDER_HOUR} GROUP BY 2, 3, 4, 5, 6, 7, 8, 9, 10 ORDER BY 2"
        )


def downgrade() -> None:
    raise RuntimeError("there is no way back from 0008: restore the backup made before the upgrade")


def counted_on_sqlite() -> str:
    seconds = [f"CAST(strftime('%s', substr({time}, 1, 19)) AS INTEGER)" for time in (END, "m.created_at")]
    fractions = [f"CAST(substr({time}, 21, 6) AS INTEGER)" for time in (END, "m.created_at")]
    micros = f"({seconds[0]} - {seconds[1]}) * 1000000 + {fractions[0]} - {fractions[1]}"
    hour = "CAST(strftime('%s', substr(m.listed_at, 1, 13) || ':00:00') AS INTEGER) / 3600"
    return counted(hour, micros, place("micros", BOUNDS))


def counted_on_postgresql() -> str:
    micros = f"CAST(extract(epoch FROM {END} - m.created_at) * 1000000 AS bigint)"
    hour = "CAST(floor(extract(epoch FROM date_trunc('hour', m.listed_at AT TIME ZONE 'UTC')) / 3600) AS integer)"
    bounds = ", ".join(map(str, BOUNDS))
    return counted(hour, micros, f"width_bucket(micros, CAST(ARRAY[{bounds}] AS bigint[]))")


def place(value: str, bounds: Sequence[int], first: int = 0) -> str:
    if not bounds:
        return str(first)
    middle = len(bounds) // 2
    below, above = place(value, bounds[:middle], first), place(value, bounds[middle + 1 :], first + middle + 1)
    return f"CASE WHEN {value} < {bounds[middle]} THEN {below} ELSE {above} END"


def counted(hour: str, micros: str, bucket: str) -> str:
    return (
        f"SELECT {SENDER_HOUR}, hour, api, direction, status, delivery_code, application_id, carrier_name, "  # noqa: S608
        "sender, "
        f"CASE WHEN micros IS NULL THEN -1 ELSE {bucket} END, count(*), sum(CASE WHEN awaiting_receipt "
        "AND status NOT IN ('unconfirmed', 'delivered', 'failed', 'read', 'received') THEN 1 ELSE 0 END) "
        f"FROM (SELECT {hour} AS hour, m.api, m.direction, d.status, m.awaiting_receipt, "
        f"coalesce(d.delivery_code, {-(2**63)}) AS delivery_code, "
        "substr(coalesce(m.application_id, ''), 1, 100) AS application_id, "
        "substr(coalesce(m.carrier_name, ''), 1, 100) AS carrier_name, "
        "CASE WHEN m.direction = 'out' THEN substr(coalesce(m.sender, ''), 1, 100) ELSE '' END AS sender, "
        f"CASE WHEN d.status IN ('delivered', 'read') THEN {micros} END AS micros "
        "FROM messages AS m "
        "JOIN deliveries AS d ON d.api = m.api AND d.direction = m.direction AND d.message_id = m.id) AS counted "
        "GROUP BY 2, 3, 4, 5, 6, 7, 8, 9, 10 ORDER BY 2"
    )
