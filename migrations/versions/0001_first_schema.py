"""The first schema: callbacks, the event log, the status table, and the state of the sinks."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

position = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
moment = sa.DateTime(timezone=True).with_variant(sa.String(27), "sqlite")
json = JSONB().with_variant(sa.Text(), "sqlite")


def where(condition: str) -> dict[str, Any]:
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


def upgrade() -> None:
    op.create_table(
        "callbacks",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("received_at", moment, nullable=False),
        sa.Column("api", sa.Text(), nullable=False),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("remote", sa.Text(), nullable=True),
        sa.Column("query", sa.Text(), nullable=False),
        sa.Column("headers", json, nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("problems", json, nullable=True),
        sa.Column("events", sa.Integer(), nullable=False),
        sa.Column("duplicates", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("reread_at", moment, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_callbacks"),
    )
    op.create_index("ix_callbacks_quarantined", "callbacks", ["id"], **where("outcome = 'quarantined'"))
    op.create_table(
        "events",
        sa.Column("position", position, nullable=False, autoincrement=True),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("api", sa.Text(), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("recipient", sa.Text(), nullable=True),
        sa.Column("direction", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("occurred_at", moment, nullable=True),
        sa.Column("received_at", moment, nullable=False),
        sa.Column("code", sa.BigInteger(), nullable=True),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("tag_verdict", sa.Text(), nullable=False),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("callback_id", sa.Text(), nullable=False),
        sa.Column("previous_status", sa.Text(), nullable=True),
        sa.Column("changed", sa.Boolean(), nullable=False),
        sa.Column("facts", json, nullable=False),
        sa.Column("delivery", json, nullable=False),
        sa.PrimaryKeyConstraint("position", name="pk_events"),
        sa.UniqueConstraint("id", name="uq_events_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_events_message_id", "events", ["message_id"])
    op.create_table(
        "messages",
        sa.Column("api", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("direction", sa.Text(), nullable=False),
        sa.Column("sender", sa.Text(), nullable=True),
        sa.Column("sender_key", sa.Text(), nullable=True),
        sa.Column("recipients", json, nullable=False),
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("application_id", sa.Text(), nullable=True),
        sa.Column("text", sa.Text(), nullable=True),
        sa.Column("media", json, nullable=True),
        sa.Column("tag", sa.Text(), nullable=True),
        sa.Column("tag_verdict", sa.Text(), nullable=False),
        sa.Column("segment_count", sa.BigInteger(), nullable=True),
        sa.Column("channel", sa.Text(), nullable=True),
        sa.Column("carrier_name", sa.Text(), nullable=True),
        sa.Column("priority", sa.Text(), nullable=True),
        sa.Column("created_at", moment, nullable=True),
        sa.Column("listed_at", moment, nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=True),
        sa.Column("delivery_state", sa.Text(), nullable=True),
        sa.Column("delivery_code", sa.BigInteger(), nullable=True),
        sa.Column("delivery_description", sa.Text(), nullable=True),
        sa.Column("contradicted", sa.Boolean(), nullable=False),
        sa.Column("awaiting_receipt", sa.Boolean(), nullable=False),
        sa.Column("first_received_at", moment, nullable=False),
        sa.Column("updated_at", moment, nullable=False),
        sa.Column("events_forgotten", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.PrimaryKeyConstraint("api", "id", name="pk_messages"),
    )
    op.create_index(
        "ix_messages_application",
        "messages",
        ["application_id", "listed_at"],
        **where("application_id IS NOT NULL"),
    )
    op.create_index("ix_messages_awaiting", "messages", ["listed_at", "api", "id"], **where("awaiting_receipt"))
    op.create_index("ix_messages_contradicted", "messages", ["listed_at", "api", "id"], **where("contradicted"))
    op.create_index(
        "ix_messages_delivery_state",
        "messages",
        ["delivery_state", "listed_at"],
        **where("delivery_state IN ('waiting', 'not-delivered')"),
    )
    op.create_index(
        "ix_messages_distrusted",
        "messages",
        ["tag_verdict", "listed_at"],
        **where("tag_verdict IN ('forged', 'unsigned', 'missing')"),
    )
    op.create_index("ix_messages_listed", "messages", ["listed_at", "api", "id"])
    op.create_index("ix_messages_sender", "messages", ["sender_key", "listed_at"])
    op.create_index(
        "ix_messages_state", "messages", ["state", "listed_at"], **where("state IN ('queued', 'sending', 'error')")
    )
    op.create_index("ix_messages_status", "messages", ["status", "listed_at"])
    tag_start = "substr(tag, 1, 200)"
    op.create_index(
        "ix_messages_tag", "messages", [sa.text(tag_start), "listed_at"], **where(f"{tag_start} IS NOT NULL")
    )
    op.create_index("ix_messages_text", "messages", ["listed_at"], **where("text IS NOT NULL OR media IS NOT NULL"))
    op.create_table(
        "deliveries",
        sa.Column("api", sa.Text(), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("recipient_key", sa.Text(), nullable=False),
        sa.Column("recipient", sa.Text(), nullable=True),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("listed_at", moment, nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=True),
        sa.Column("delivery_state", sa.Text(), nullable=True),
        sa.Column("delivery_code", sa.BigInteger(), nullable=True),
        sa.Column("delivery_description", sa.Text(), nullable=True),
        sa.Column("sent_at", moment, nullable=True),
        sa.Column("delivered_at", moment, nullable=True),
        sa.Column("failed_at", moment, nullable=True),
        sa.Column("read_at", moment, nullable=True),
        sa.Column("contradicted", sa.Boolean(), nullable=False),
        sa.Column("updated_at", moment, nullable=True),
        sa.PrimaryKeyConstraint("api", "message_id", "recipient_key", name="pk_deliveries"),
    )
    op.create_index(
        "ix_deliveries_code", "deliveries", ["delivery_code", "listed_at"], **where("delivery_code IS NOT NULL")
    )
    op.create_index("ix_deliveries_recipient", "deliveries", ["recipient_key", "listed_at"])
    op.create_table(
        "delivery_codes",
        sa.Column("api", sa.Text(), nullable=False),
        sa.Column("code", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("category", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("retryable", sa.Boolean(), nullable=True),
        sa.Column("billable", sa.Boolean(), nullable=True),
        sa.PrimaryKeyConstraint("api", "code", name="pk_delivery_codes"),
    )
    op.create_table(
        "sinks",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("cursor", position, nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("lease_holder", sa.Text(), nullable=True),
        sa.Column("lease_until", moment, nullable=True),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("down_since_at", moment, nullable=True),
        sa.Column("last_success_at", moment, nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("seen_at", moment, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_sinks"),
    )
    op.create_table(
        "retries",
        sa.Column("sink", sa.Text(), nullable=False),
        sa.Column("position", position, nullable=False),
        sa.Column("lane", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("due_at", moment, nullable=True),
        sa.Column("first_at", moment, nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("sink", "position", name="pk_retries"),
        sa.ForeignKeyConstraint(["position"], ["events.position"], name="fk_retries_events"),
        sa.CheckConstraint("state IN ('due', 'held', 'parked')", name="ck_retries_ck_retries_state"),
        sa.ForeignKeyConstraint(["sink"], ["sinks.name"], name="fk_retries_sinks", ondelete="CASCADE"),
    )
    op.create_index("ix_retries_due", "retries", ["sink", "due_at"], **where("state = 'due'"))
    op.create_index("ix_retries_lane", "retries", ["sink", "lane", "position"])
    op.create_index("ix_retries_position", "retries", ["position"])
    op.create_index("uq_retries_head", "retries", ["sink", "lane"], unique=True, **where("state <> 'parked'"))
    op.create_table(
        "attempts",
        sa.Column("id", position, nullable=False, autoincrement=True),
        sa.Column("sink", sa.Text(), nullable=False),
        sa.Column("position", position, nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("started_at", moment, nullable=False),
        sa.Column("ended_at", moment, nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("decision", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("response_code", sa.Integer(), nullable=True),
        sa.Column("response", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_attempts"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_attempts_position", "attempts", ["position"])
    op.create_table(
        "dead_letters",
        sa.Column("id", position, nullable=False, autoincrement=True),
        sa.Column("sink", sa.Text(), nullable=False),
        sa.Column("position", position, nullable=False),
        sa.Column("lane", sa.Text(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("response_code", sa.Integer(), nullable=True),
        sa.Column("response", sa.Text(), nullable=True),
        sa.Column("first_at", moment, nullable=False),
        sa.Column("died_at", moment, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_dead_letters"),
        sa.UniqueConstraint("sink", "position", name="uq_dead_letters_sink_position"),
        sa.ForeignKeyConstraint(["position"], ["events.position"], name="fk_dead_letters_events"),
        sa.ForeignKeyConstraint(["sink"], ["sinks.name"], name="fk_dead_letters_sinks"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_dead_letters_position", "dead_letters", ["position"])
    op.execute(MESSAGE_STATUS)


def downgrade() -> None:
    op.execute("DROP VIEW message_status")
    for table in ("dead_letters", "attempts", "retries", "sinks", "delivery_codes", "deliveries", "messages"):
        op.drop_table(table)
    op.drop_table("events")
    op.drop_table("callbacks")


# One row for each delivery, for people and BI tools.
MESSAGE_STATUS = """
CREATE VIEW message_status AS
SELECT
    d.api,
    d.message_id,
    m.direction,
    m.sender,
    d.recipient,
    d.status,
    d.state,
    d.delivery_state,
    d.delivery_code,
    c.name AS code_name,
    c.description AS code_meaning,
    c.category AS code_category,
    c.retryable,
    c.billable,
    d.delivery_description,
    d.contradicted,
    m.status AS message_status,
    m.tag,
    m.tag_verdict,
    m.application_id,
    m.owner,
    m.segment_count,
    m.channel,
    m.carrier_name,
    m.priority,
    m.text,
    m.created_at,
    d.sent_at,
    d.delivered_at,
    d.failed_at,
    d.read_at,
    m.first_received_at,
    d.listed_at,
    d.updated_at
FROM deliveries AS d
JOIN messages AS m ON m.api = d.api AND m.id = d.message_id
LEFT JOIN delivery_codes AS c ON c.api = d.api AND c.code = d.delivery_code
"""
