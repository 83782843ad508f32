"""Cells of all messages in the statistics, per hour and per day, without application, delivery code and carrier.

At ten million messages, the hours of 30 days are a million cells with them, and a tenth of it without.
"""

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

COLUMNS = (
    "grain, hour, api, direction, status, delivery_code, application_id, carrier_name, sender, bucket, "
    "deliveries, awaiting"
)
NO_CODE = -(2**63)
HOUR, ALL_HOUR, ALL_DAY = 0, 6, 7


def upgrade() -> None:
    for grain, hour, source in ((ALL_HOUR, "hour", HOUR), (ALL_DAY, "hour - ((hour % 24) + 24) % 24", ALL_HOUR)):
        op.execute(
            f"INSERT INTO statistics ({COLUMNS}) "  # noqa: S608
            f"SELECT {grain}, {hour}, api, direction, status, {NO_CODE}, '', '', '', bucket, "
            f"sum(deliveries), sum(awaiting) FROM statistics WHERE grain = {source} "
            "GROUP BY 2, api, direction, status, bucket ORDER BY 2"
        )


def downgrade() -> None:
    op.execute(f"DELETE FROM statistics WHERE grain IN ({ALL_HOUR}, {ALL_DAY})")  # noqa: S608
