"""The view `message_status` for BI: whether a delivery is final, delivered or awaited, by an indexed time.

`listed_at` comes from `messages`, where an index has it: a day of it no longer reads every delivery.
"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

FINAL = "'unconfirmed', 'delivered', 'failed', 'read', 'received'"
# column, expression, comment; the order of the columns before this revision, then the new ones
COLUMNS = (
    ("api", "d.api", "v1 or v2"),
    ("message_id", "d.message_id", "Bandwidth's id of the message"),
    ("direction", "m.direction", "in or out"),
    ("sender", "m.sender", None),
    ("recipient", "d.recipient", "null where no number is known"),
    ("status", "d.status", "where this delivery stands"),
    ("state", "d.state", "v1's state, for v1 and v2"),
    ("delivery_state", "d.delivery_state", "v1's deliveryState, for v1 and v2"),
    ("delivery_code", "d.delivery_code", "Bandwidth's delivery code"),
    ("code_name", "c.name", "the code's name in the catalogue"),
    ("code_meaning", "c.description", None),
    ("code_category", "c.category", None),
    ("retryable", "c.retryable", "whether sending again can help; null: Bandwidth does not say"),
    ("billable", "c.billable", "whether Bandwidth charges; null: Bandwidth does not say"),
    ("delivery_description", "d.delivery_description", "the text that came with the code"),
    ("contradicted", "d.contradicted", "delivered and failed were both reported"),
    ("message_status", "m.status", "the status of the message as a whole"),
    ("tag", "m.tag", None),
    ("tag_verdict", "m.tag_verdict", None),
    ("application_id", "m.application_id", None),
    ("owner", "m.owner", None),
    ("segment_count", "m.segment_count", None),
    ("channel", "m.channel", None),
    ("carrier_name", "m.carrier_name", None),
    ("priority", "m.priority", None),
    ("text", "m.text", None),
    ("created_at", "m.created_at", "Bandwidth's clock; not indexed, filter by listed_at"),
    ("sent_at", "d.sent_at", "Bandwidth's clock; null for v1"),
    ("delivered_at", "d.delivered_at", "Bandwidth's clock; null for v1"),
    ("failed_at", "d.failed_at", "Bandwidth's clock; null for v1"),
    ("read_at", "d.read_at", "Bandwidth's clock; null for v1"),
    ("first_received_at", "m.first_received_at", "our clock: the first callback of the message"),
    ("listed_at", "m.listed_at", "created_at, else first_received_at; indexed"),
    ("updated_at", "d.updated_at", "our clock: the last event of the delivery"),
    ("is_final", f"d.status IN ({FINAL})", "no further event is expected"),
    ("is_delivered", "d.status IN ('delivered', 'read')", "delivered, or read, which includes it"),
    ("awaiting_receipt", "m.awaiting_receipt", "a final event of the message is still expected"),
)
FROM = """
FROM deliveries AS d
JOIN messages AS m ON m.api = d.api AND m.direction = d.direction AND m.id = d.message_id
LEFT JOIN delivery_codes AS c ON c.api = d.api AND c.code = d.delivery_code
"""


def upgrade() -> None:
    op.execute("DROP VIEW message_status")
    columns = ", ".join(f"{expression} AS {name}" for name, expression, _ in COLUMNS)
    op.execute(f"CREATE VIEW message_status AS SELECT {columns} {FROM}")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("COMMENT ON VIEW message_status IS 'One row per delivery: a message and one of its recipients'")
        for name, _, comment in COLUMNS:
            if comment is not None:
                quoted = comment.replace("'", "''")
                op.execute(f"COMMENT ON COLUMN message_status.{name} IS '{quoted}'")


def downgrade() -> None:
    raise RuntimeError("there is no way back from 0005: restore the backup made before the upgrade")
