"""Alerts: their rows, the state of their evaluation, what it counts, and notifications of people."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

moment = sa.DateTime(timezone=True).with_variant(sa.String(27), "sqlite")
position = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
json = sa.Text().with_variant(sa.dialects.postgresql.JSONB(), "postgresql")
COUNTED = ("grain", "start", "measure", "api", "direction", "application_id", "carrier_name", "sender")


def only_where(condition: str) -> dict[str, sa.TextClause]:
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


def upgrade() -> None:
    op.create_table(
        "alerts",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("severity", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("group_value", sa.Text()),
        sa.Column("summary", sa.Text(), nullable=False),
        sa.Column("evidence", json, nullable=False),
        sa.Column("messages", json, nullable=False),
        sa.Column("targets", json, nullable=False),
        sa.Column("began_at", moment, nullable=False),
        sa.Column("clear_since", moment),
        sa.Column("unknown_since", moment),
        sa.Column("announced_at", moment),
        sa.Column("ends_at", moment),
        sa.Column("fired_at", moment),
        sa.Column("updated_at", moment, nullable=False),
        sa.Column("resolved_at", moment),
        sa.Column("acknowledged_at", moment),
        sa.Column("muted_until", moment),
        sa.PrimaryKeyConstraint("id", name="pk_alerts"),
        sa.CheckConstraint("status IN ('pending', 'firing', 'resolved')", name="status"),
    )
    op.create_index("ix_alerts_open", "alerts", ["name", "group_value"], **only_where("status <> 'resolved'"))
    op.create_index("ix_alerts_fired_at", "alerts", ["fired_at", "id"])
    op.create_index("ix_alerts_muted_until", "alerts", ["muted_until"], **only_where("muted_until IS NOT NULL"))
    op.create_table(
        "alerting",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("lease_holder", sa.Text()),
        sa.Column("lease_until", moment),
        sa.Column("cursor", position, nullable=False),
        sa.Column("counting_since_at", moment),
        sa.Column("evaluated_at", moment),
        sa.Column("watching_since_at", moment),
        sa.Column("failing_since_at", moment),
        sa.Column("last_error", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_alerting"),
        sa.CheckConstraint("id = 1", name="one_row"),
    )
    op.execute("INSERT INTO alerting (id, epoch, cursor) SELECT 1, 0, coalesce((SELECT max(position) FROM events), 0)")
    op.create_table(
        "event_counts",
        *(sa.Column(name, sa.Integer() if name == "start" else sa.Text(), nullable=False) for name in COUNTED),
        sa.Column("delivery_code", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("bucket", sa.Integer(), nullable=False),
        sa.Column("events", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint(*COUNTED, "delivery_code", "bucket", name="pk_event_counts"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "refusals",
        sa.Column("minute", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("minute", "reason", name="pk_refusals"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "notifications",
        sa.Column("id", position, autoincrement=True, nullable=False),
        sa.Column("alert_id", sa.Text(), nullable=False),
        sa.Column("transition", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("due_at", moment, nullable=False),
        sa.Column("under_way_until", moment),
        sa.Column("sent_at", moment),
        sa.Column("last_error", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_notifications"),
        sa.ForeignKeyConstraint(["alert_id"], ["alerts.id"], ondelete="CASCADE", name="fk_notifications_alerts"),
        sa.CheckConstraint("transition IN ('fired', 'resolved')", name="transition"),
        sa.CheckConstraint("state IN ('due', 'sent', 'failed', 'withdrawn')", name="state"),
        sqlite_autoincrement=True,
    )
    op.create_index("uq_notifications_alert_id", "notifications", ["alert_id", "target", "transition"], unique=True)
    op.create_index("ix_notifications_due", "notifications", ["due_at"], **only_where("state = 'due'"))


def downgrade() -> None:
    raise RuntimeError("there is no way back from 0013: restore the backup made before the upgrade")
