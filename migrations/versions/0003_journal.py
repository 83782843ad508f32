"""The journal and its processor; messages known by version, direction and id; indexes that earn their place.

On SQLite the callbacks have moved to the journal's own file before this runs (`receiver.storage.schema`), and tables
whose keys change are rebuilt as https://www.sqlite.org/lang_altertable.html describes, with foreign keys off.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

position = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
moment = sa.DateTime(timezone=True).with_variant(sa.String(27), "sqlite")
json = JSONB().with_variant(sa.Text(), "sqlite")

# The first version stored every problem of a callback; one callback had half a million of them.
MAX_ELEMENTS = 100


def where(condition: str) -> dict[str, Any]:
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


def upgrade() -> None:
    op.execute("DROP VIEW message_status")
    create_processor()
    if op.get_bind().dialect.name == "sqlite":
        upgrade_sqlite()
    else:
        upgrade_postgresql()
    create_indexes()
    op.execute(MESSAGE_STATUS)


def downgrade() -> None:
    raise RuntimeError("there is no way back from 0003: restore the backup made before the upgrade")


def create_processor() -> None:
    op.create_table(
        "processor",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("cursor", position, nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("lease_holder", sa.Text(), nullable=True),
        sa.Column("lease_until", moment, nullable=True),
        sa.Column("backend", sa.Integer(), nullable=True),
        sa.Column("callbacks", sa.BigInteger(), nullable=False),
        sa.Column("repeats", sa.BigInteger(), nullable=False),
        sa.Column("last_callbacks", json, nullable=False),
        sa.Column("failing_since_at", moment, nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_processor"),
    )
    op.create_table(
        "quarantine",
        sa.Column("callback_id", sa.Text(), nullable=False),
        sa.Column("element", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=True),
        sa.Column("reprocessed_at", moment, nullable=True),
        sa.PrimaryKeyConstraint("callback_id", "element", name="pk_quarantine"),
    )
    op.create_index("ix_quarantine_reason", "quarantine", ["reason", "callback_id"])
    op.create_index("ix_quarantine_message", "quarantine", ["message_id"], **where("message_id IS NOT NULL"))


def create_indexes() -> None:
    op.create_index("ix_messages_listed", "messages", ["listed_at", "api", "direction", "id"])
    op.create_index(
        "ix_messages_status", "messages", ["status", "listed_at"], **where("status NOT IN ('delivered', 'received')")
    )
    op.create_index(
        "ix_messages_awaiting", "messages", ["listed_at", "api", "direction", "id"], **where("awaiting_receipt")
    )
    op.create_index(
        "ix_messages_contradicted", "messages", ["listed_at", "api", "direction", "id"], **where("contradicted")
    )
    op.create_index(
        "ix_messages_tag_verdict",
        "messages",
        ["tag_verdict", "listed_at"],
        **where("tag_verdict NOT IN ('unchecked', 'not-applicable')"),
    )
    # The event log no longer has an index on event ids alone.
    op.create_index("ix_dead_letters_event", "dead_letters", ["event_id"])


# --- PostgreSQL ---


def upgrade_postgresql() -> None:
    op.execute(
        f"""
        INSERT INTO quarantine (callback_id, element, reason, detail, reprocessed_at)
        SELECT c.id, (p.problem->>'index')::integer, p.problem->>'reason', coalesce(p.problem->>'detail', ''),
            c.reread_at
        FROM callbacks AS c, jsonb_array_elements(c.problems) WITH ORDINALITY AS p (problem, place)
        WHERE c.outcome = 'quarantined' AND p.place <= {MAX_ELEMENTS}
        """  # noqa: S608
    )
    op.drop_index("ix_callbacks_quarantined", "callbacks")
    for column in ("outcome", "reason", "problems", "events", "duplicates", "reread_at"):
        op.drop_column("callbacks", column)
    op.drop_constraint(op.f("pk_callbacks"), "callbacks")
    op.execute("ALTER TABLE callbacks ADD COLUMN sequence BIGSERIAL")
    op.create_primary_key(op.f("pk_callbacks"), "callbacks", ["sequence"])
    op.create_unique_constraint(op.f("uq_callbacks_id"), "callbacks", ["id"])
    op.create_table(
        "pending_callbacks",
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_pending_callbacks"),
    )
    # A queue: rows live for milliseconds, so autovacuum must run long before a fifth of the table is dead.
    op.execute(
        "ALTER TABLE pending_callbacks SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, "
        "autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 50000)"
    )
    op.execute(
        "INSERT INTO processor (id, cursor, epoch, callbacks, repeats, last_callbacks) "
        "SELECT 1, coalesce(max(sequence), 0), 0, 0, 0, '{}' FROM callbacks"
    )
    op.add_column("deliveries", sa.Column("direction", sa.Text(), nullable=True))
    op.execute(
        "UPDATE deliveries AS d SET direction = coalesce("
        "(SELECT m.direction FROM messages AS m WHERE m.api = d.api AND m.id = d.message_id), 'out')"
    )
    op.alter_column("deliveries", "direction", nullable=False)
    op.drop_constraint(op.f("pk_deliveries"), "deliveries")
    op.create_primary_key(op.f("pk_deliveries"), "deliveries", ["message_id", "api", "direction", "recipient_key"])
    op.drop_constraint(op.f("pk_messages"), "messages")
    op.create_primary_key(op.f("pk_messages"), "messages", ["id", "api", "direction"])
    op.drop_constraint(op.f("uq_events_id"), "events")
    op.drop_index("ix_events_message_id", "events")
    op.create_unique_constraint(op.f("uq_events_message_id"), "events", ["message_id", "id"])
    for index in ("listed", "status", "awaiting", "contradicted", "distrusted"):
        op.drop_index(f"ix_messages_{index}", "messages")


# --- SQLite ---


def upgrade_sqlite() -> None:
    op.execute(
        f"""
        INSERT INTO quarantine (callback_id, element, reason, detail, reprocessed_at)
        SELECT c.id, json_extract(p.value, '$.index'), json_extract(p.value, '$.reason'),
            coalesce(json_extract(p.value, '$.detail'), ''), c.reread_at
        FROM callbacks AS c, json_each(c.problems) AS p
        WHERE c.outcome = 'quarantined' AND p.key < {MAX_ELEMENTS}
        """  # noqa: S608
    )
    op.drop_table("callbacks")
    # `receiver.storage.schema` knows the last sequence of the journal's file, and writes the cursor.
    op.execute(
        "INSERT INTO processor (id, cursor, epoch, callbacks, repeats, last_callbacks) VALUES (1, 0, 0, 0, 0, '{}')"
    )
    rebuild_events()
    rebuild_messages()
    rebuild_deliveries()


def rebuild_events() -> None:
    op.create_table(
        "new_events",
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
        sa.UniqueConstraint("message_id", "id", name="uq_events_message_id"),
        sqlite_autoincrement=True,
    )
    names = column_names("events")
    op.execute(f"INSERT INTO new_events ({names}) SELECT {names} FROM events")  # noqa: S608
    # A pruned position must not be reused: the counter moves to the new table.
    op.execute("DELETE FROM sqlite_sequence WHERE name = 'new_events'")
    op.execute(
        "INSERT INTO sqlite_sequence (name, seq) SELECT 'new_events', seq FROM sqlite_sequence WHERE name = 'events'"
    )
    replace("events")


def rebuild_messages() -> None:
    op.create_table(
        "new_messages",
        sa.Column("api", sa.Text(), nullable=False),
        sa.Column("direction", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
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
        sa.PrimaryKeyConstraint("id", "api", "direction", name="pk_messages"),
    )
    names = column_names("messages")
    op.execute(f"INSERT INTO new_messages ({names}) SELECT {names} FROM messages")  # noqa: S608
    replace("messages")
    op.create_index("ix_messages_sender", "messages", ["sender_key", "listed_at"])
    op.create_index(
        "ix_messages_application", "messages", ["application_id", "listed_at"], **where("application_id IS NOT NULL")
    )
    op.create_index(
        "ix_messages_state", "messages", ["state", "listed_at"], **where("state IN ('queued', 'sending', 'error')")
    )
    op.create_index(
        "ix_messages_delivery_state",
        "messages",
        ["delivery_state", "listed_at"],
        **where("delivery_state IN ('waiting', 'not-delivered')"),
    )
    tag_start = "substr(tag, 1, 200)"
    op.create_index(
        "ix_messages_tag", "messages", [sa.text(tag_start), "listed_at"], **where(f"{tag_start} IS NOT NULL")
    )
    op.create_index("ix_messages_text", "messages", ["listed_at"], **where("text IS NOT NULL OR media IS NOT NULL"))


def rebuild_deliveries() -> None:
    op.create_table(
        "new_deliveries",
        sa.Column("api", sa.Text(), nullable=False),
        sa.Column("direction", sa.Text(), nullable=False),
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
        sa.PrimaryKeyConstraint("message_id", "api", "direction", "recipient_key", name="pk_deliveries"),
    )
    names = column_names("deliveries")
    op.execute(
        f"INSERT INTO new_deliveries (direction, {names}) SELECT coalesce("  # noqa: S608
        "(SELECT m.direction FROM messages AS m WHERE m.api = d.api AND m.id = d.message_id), 'out'), "
        f"{names} FROM deliveries AS d"
    )
    replace("deliveries")
    op.create_index(
        "ix_deliveries_code", "deliveries", ["delivery_code", "listed_at"], **where("delivery_code IS NOT NULL")
    )
    op.create_index("ix_deliveries_recipient", "deliveries", ["recipient_key", "listed_at"])


def column_names(table: str) -> str:
    return ", ".join(column["name"] for column in sa.inspect(op.get_bind()).get_columns(table))


def replace(table: str) -> None:
    op.drop_table(table)
    op.rename_table(f"new_{table}", table)


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
JOIN messages AS m ON m.api = d.api AND m.direction = d.direction AND m.id = d.message_id
LEFT JOIN delivery_codes AS c ON c.api = d.api AND c.code = d.delivery_code
"""
