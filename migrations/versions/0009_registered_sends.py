"""Registered sends, and by our clock when a delivery was reported: columns, also of the view `message_status`."""

import sqlalchemy as sa
from alembic import op

from receiver.storage.schema import lock_tables

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

moment = sa.DateTime(timezone=True).with_variant(sa.String(27), "sqlite")
FINAL = "'unconfirmed', 'delivered', 'failed', 'read', 'received'"
# column, expression, comment
COLUMNS = (
    ("api", "d.api", "v1 or v2"),
    ("message_id", "d.message_id", "Bandwidth's id of the message"),
    ("direction", "m.direction", "in or out"),
    ("sender", "m.sender", "the number that the message came from"),
    ("recipient", "d.recipient", "null where no number is known"),
    ("status", "d.status", "where this delivery stands"),
    ("state", "d.state", "v1's state, for v1 and v2"),
    ("delivery_state", "d.delivery_state", "v1's deliveryState, for v1 and v2"),
    ("delivery_code", "d.delivery_code", "Bandwidth's delivery code"),
    ("code_name", "c.name", "the code's name in the catalogue"),
    ("code_meaning", "c.description", "the code's description in the catalogue"),
    ("code_category", "c.category", "success, client, service, carrier-client, carrier-service or unknown"),
    ("retryable", "c.retryable", "whether sending again can help; null: Bandwidth does not say"),
    ("billable", "c.billable", "whether Bandwidth charges; null: Bandwidth does not say"),
    ("delivery_description", "d.delivery_description", "the text that came with the code"),
    ("contradicted", "d.contradicted", "delivered and failed were both reported"),
    ("message_status", "m.status", "the status of the message as a whole"),
    ("tag", "m.tag", "the tag without its signature"),
    ("tag_verdict", "m.tag_verdict", "valid, unsigned, forged, missing, unchecked or not-applicable"),
    ("application_id", "m.application_id", "the id of the application at Bandwidth"),
    ("owner", "m.owner", "the number of yours that the message belongs to"),
    ("segment_count", "m.segment_count", "the number of segments of an SMS"),
    ("channel", "m.channel", "SMS, MMS or RCS"),
    ("carrier_name", "m.carrier_name", "the carrier of the recipient"),
    ("priority", "m.priority", "default or high"),
    ("text", "m.text", "null after the retention of texts"),
    ("created_at", "m.created_at", "Bandwidth's clock; not indexed, filter by listed_at"),
    ("sent_at", "d.sent_at", "Bandwidth's clock; null for v1"),
    ("delivered_at", "d.delivered_at", "Bandwidth's clock; null for v1"),
    ("failed_at", "d.failed_at", "Bandwidth's clock; null for v1"),
    ("read_at", "d.read_at", "Bandwidth's clock; null for v1"),
    ("first_received_at", "m.first_received_at", "our clock: the first callback or registration of the message"),
    ("listed_at", "m.listed_at", "created_at, else first_received_at; indexed"),
    ("updated_at", "d.updated_at", "our clock: the last event of the delivery"),
    ("is_final", f"d.status IN ({FINAL})", "no further event is expected"),
    ("is_delivered", "d.status IN ('delivered', 'read')", "delivered, or read, which includes it"),
    ("awaiting_receipt", "m.awaiting_receipt", "a final event of the message is still expected"),
    (
        "delivered_received_at",
        "d.delivered_received_at",
        "our clock: the first event that says delivered or read; null for deliveries of versions before this column",
    ),
    ("registered_at", "m.registered_at", "our clock: when the sender registered the message; null: it did not"),
)
FROM = """
FROM deliveries AS d
JOIN messages AS m ON m.api = d.api AND m.direction = d.direction AND m.id = d.message_id
LEFT JOIN delivery_codes AS c ON c.api = d.api AND c.code = d.delivery_code
"""
ADDED = {
    "messages": (
        sa.Column("registered_at", moment),
        sa.Column("callback_url", sa.Text()),
        sa.Column("callback_timeout", sa.BigInteger()),
        sa.Column("fallback_url", sa.Text()),
        sa.Column("receipt_requested", sa.Text()),
    ),
    "deliveries": (sa.Column("delivered_received_at", moment),),
}


def upgrade() -> None:
    is_postgresql = op.get_bind().dialect.name == "postgresql"
    # Also what 0010 changes in the same transaction: nothing may wait for a lock while these are held.
    lock_tables(op.get_bind(), "messages", "deliveries", "replays", views=("message_status",))
    for table, columns in ADDED.items():
        for column in columns:
            op.add_column(table, column)
    shown = ", ".join(f"{expression} AS {name}" for name, expression, _ in COLUMNS)
    if not is_postgresql:
        op.execute("DROP VIEW message_status")
    # PostgreSQL adds the columns at the end of the view: the rights of reporting users and views made on it stay.
    op.execute(f"CREATE {'OR REPLACE ' if is_postgresql else ''}VIEW message_status AS SELECT {shown} {FROM}")
    if is_postgresql:
        op.execute("COMMENT ON VIEW message_status IS 'One row per delivery: a message and one of its recipients'")
        for name, _, comment in COLUMNS:
            quoted = comment.replace("'", "''")
            op.execute(f"COMMENT ON COLUMN message_status.{name} IS '{quoted}'")


def downgrade() -> None:
    raise RuntimeError("there is no way back from 0009: restore the backup made before the upgrade")
