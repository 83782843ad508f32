"""Totals in the statistics: cells of one sender without delivery code and carrier, per day and per week.

Half a million cells of senders per day took PostgreSQL 8 s on a busy machine.
"""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

COLUMNS = (
    "grain, hour, api, direction, status, delivery_code, application_id, carrier_name, sender, bucket, "
    "deliveries, awaiting"
)
NO_CODE = -(2**63)
SENDER_DAY, TOTALS_DAY, TOTALS_WEEK = 3, 4, 5
WEEK_HOURS = 168


def upgrade() -> None:
    start_of_week = f"hour - ((hour % {WEEK_HOURS}) + {WEEK_HOURS}) % {WEEK_HOURS}"
    for grain, hour, source in ((TOTALS_DAY, "hour", SENDER_DAY), (TOTALS_WEEK, start_of_week, TOTALS_DAY)):
        op.execute(
            f"INSERT INTO statistics ({COLUMNS}) "  # noqa: S608
            f"SELECT {grain}, {hour}, api, direction, status, {NO_CODE}, application_id, '', sender, bucket, "
            f"sum(deliveries), sum(awaiting) FROM statistics WHERE grain = {source} "
            "GROUP BY 2, api, direction, status, application_id, sender, bucket ORDER BY 2"
        )


def downgrade() -> None:
    op.execute(f"DELETE FROM statistics WHERE grain IN ({TOTALS_DAY}, {TOTALS_WEEK})")  # noqa: S608
