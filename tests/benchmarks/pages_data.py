"""A PostgreSQL database as months of traffic leave it: messages of 90 days, and all that pages show of them.

The server makes the rows: ten million messages with their deliveries, events, callbacks and statistics take some
minutes. Values are drawn from hashes of the number of a message, so they are the same in every run; times end now.
The indexes are built after the rows, so they are smaller than those of a database that has grown.
"""

import asyncio
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg

from receiver.storage import statistics_cells as cells
from tests.benchmarks.statistics import DERIVED

DAYS: Final = 90
# What retention keeps of callbacks and texts.
JOURNAL_DAYS: Final = 30
SENDERS: Final = 3_000
CUSTOMERS: Final = 2_000_000
# What begins so many messages before the end has events of many recipients.
LARGE_GROUP: Final = 100
TEST_HANDSET: Final = "+13035550100"
_LARGE_GROUP_EVERY: Final = 1_000_000

CARRIERS: Final = (
    "AT&T", "Verizon", "T-Mobile", "US Cellular", "Bandwidth", "Sinch", "Cricket", "Other",
)  # fmt: skip
CODES: Final = (
    4720, 4770, 4750, 4470, 4403, 5106, 4775, 4432, 5600, 4405, 4780, 4781, 4721, 4740, 4730, 4772, 5620, 4790, 4795,
    5999,
)  # fmt: skip


def _drawn(seed: int, of: str = "n") -> str:
    """A number from 0 to 1 that depends on a number alone."""
    return f"((hashint8extended({of}, {seed}) & 1048575) / 1048576.0::float8)"


def _one_of(values: tuple[Any, ...], chance: str) -> str:
    """One of these values, the first ones more often."""
    array = ", ".join(f"'{value}'" if isinstance(value, str) else str(value) for value in values)
    return f"(ARRAY[{array}])[1 + floor({len(values)} * power({chance}, 2))::int]"


# Every customer writes with one sender, most of them with one of the few large ones; one of 200 messages goes to a
# handset for tests, and one of a hundred goes to several recipients.
_NUMBERS: Final = f"""
    SELECT n, :start + n * :apart AS at,
        CASE WHEN {_drawn(1)} < 0.005 THEN -1 - n % 3
            ELSE floor({CUSTOMERS} * power({_drawn(2)}, 1.5))::bigint END AS buyer,
        {_drawn(3)} < 0.08 AS inbound, {_drawn(4)} < 0.05 AS first_api, {_drawn(5)} AS outcome, {_drawn(6)} AS chance,
        {_drawn(7)} AS tagged, {_drawn(8)} AS slow, {_drawn(9)} AS verdict,
        CASE WHEN (:count - n) % {_LARGE_GROUP_EVERY} = 5000 THEN {LARGE_GROUP}
            WHEN {_drawn(10)} < 0.01 AND {_drawn(3)} >= 0.08 THEN 3 + n % 6 ELSE 1 END AS recipients
    FROM generate_series(:first::bigint, :last - 1) AS n
"""
_DRAWN: Final = f"""
    SELECT n, at, recipients, chance, tagged, verdict, CASE WHEN first_api THEN 'v1' ELSE 'v2' END AS api,
        CASE WHEN inbound AND recipients = 1 THEN 'in' ELSE 'out' END AS direction,
        CASE WHEN first_api THEN 'm-' || translate(substr(md5(n::text), 1, 24), '01234567', 'ghijklmn')
            ELSE (extract(epoch FROM at) * 1000)::bigint || 'lo'
                || translate(substr(md5(n::text), 1, 14), '0123456789', 'ghijklmnop') END AS id,
        CASE WHEN buyer < 0 THEN -1 - buyer
            ELSE floor({SENDERS} * power({_drawn(11, "buyer")}, 3))::bigint END AS own,
        CASE WHEN buyer < 0 THEN '{TEST_HANDSET}' ELSE '+1' || (3040000000 + buyer) END AS customer,
        CASE WHEN inbound AND recipients = 1 THEN 'received'
            WHEN outcome < 0.0005 OR (outcome < 0.004 AND at > :end - interval '36 hours') THEN 'sending'
            WHEN outcome < 0.05 THEN 'failed' WHEN outcome < 0.07 THEN 'unconfirmed' WHEN outcome < 0.075 THEN 'read'
            ELSE 'delivered' END AS of_message,
        {_one_of(CODES, "chance")} AS failure, {_one_of(CARRIERS, _drawn(12, "buyer"))} AS served_by,
        CASE WHEN tagged < 0.25 THEN NULL WHEN tagged < 0.55 THEN 'campaign-' || floor(40 * power(chance, 2))
            ELSE 'order ' || (100000000 + n) END AS tag,
        interval '0.8 s' * exp(4 * power(slow, 2)) AS delay
    FROM numbers
"""
_OTHER: Final = "'+1' || (3040000000 + (hashint8extended(n * 128 + place, 13) & 1048575))"
# A row for each recipient.
_EACH: Final = f"""
    SELECT n, at, place, recipients, api, direction, id, customer, own_number, tag, of_message, verdict,
        CASE WHEN direction = 'in' THEN customer ELSE own_number END AS sender,
        CASE WHEN api = 'v2' THEN application END AS application,
        CASE WHEN api = 'v2' AND direction = 'out' AND of_message <> 'sending' THEN served_by END AS carrier,
        CASE WHEN direction = 'in' THEN own_number WHEN place = 0 THEN customer ELSE {_OTHER} END AS recipient,
        CASE WHEN place > 0 AND of_message = 'failed' THEN 'delivered' ELSE of_message END AS status,
        CASE WHEN place > 0 AND of_message = 'failed' THEN NULL WHEN of_message = 'failed' THEN failure
            WHEN of_message = 'unconfirmed' THEN 9902 END AS code,
        CASE WHEN direction = 'in' THEN 'not-applicable' WHEN at < :end - interval '30 days' THEN 'unchecked'
            WHEN tag IS NULL THEN 'missing' WHEN verdict < 0.001 THEN 'forged' WHEN verdict < 0.02 THEN 'unsigned'
            ELSE 'valid' END AS tag_verdict,
        verdict < 0.0003 AND of_message = 'failed' AS contradicted, delay, at + delay AS ended_at,
        (n % 7 = 0 OR recipients > 1) AND direction = 'out' AS has_sending
    FROM (
        SELECT *, '+1919555' || lpad(own::text, 4, '0') AS own_number,
            'a7c1de22-' || lpad((own % 12)::text, 4, '0') || '-4e07-948d-329f4b722ee1' AS application
        FROM drawn
    ) AS numbered CROSS JOIN LATERAL generate_series(0, recipients - 1) AS place
"""
# The rows of a batch; all tables are filled from it.
_BATCH: Final = f"CREATE UNLOGGED TABLE :batch AS WITH numbers AS ({_NUMBERS}), drawn AS ({_DRAWN}) {_EACH}"
_STATE: Final = "CASE {0} WHEN 'received' THEN 'received' WHEN 'sending' THEN 'sending' ELSE 'sent' END"
_DELIVERY_STATE: Final = (
    "CASE {0} WHEN 'delivered' THEN 'delivered' WHEN 'read' THEN 'delivered' WHEN 'failed' THEN 'not-delivered' "
    "WHEN 'unconfirmed' THEN 'waiting' END"
)
_DESCRIPTION: Final = (
    "CASE {0} WHEN 'failed' THEN 'rejected-by-carrier' WHEN 'unconfirmed' THEN 'delivery-receipt-expired' "
    "WHEN 'delivered' THEN 'ok' END"
)
_MESSAGES: Final = f"""
    INSERT INTO messages (api, id, direction, sender, sender_key, recipients, owner, application_id, text, tag,
        tag_verdict, segment_count, channel, carrier_name, created_at, listed_at, status, state, delivery_state,
        delivery_code, delivery_description, contradicted, awaiting_receipt, first_received_at, updated_at)
    SELECT api, id, direction, sender, substr(sender, 2),
        CASE WHEN recipients = 1 THEN jsonb_build_array(recipient) ELSE (
            SELECT jsonb_agg(CASE WHEN place = 0 THEN customer ELSE {_OTHER} END ORDER BY place)
            FROM generate_series(0, recipients - 1) AS place
        ) END,
        own_number, application, CASE WHEN direction = 'in' AND at > :end - interval '{JOURNAL_DAYS} days'
            THEN 'Thank you, I will be there at ' || n % 12 || ' o''clock.' END,
        tag, tag_verdict, 1 + n % 2, CASE WHEN recipients > 1 THEN 'mms' ELSE 'sms' END, carrier, at, at,
        rolled, {_STATE.format("rolled")}, {_DELIVERY_STATE.format("rolled")},
        CASE WHEN rolled <> 'partial' THEN code END, CASE WHEN rolled <> 'partial' THEN {_DESCRIPTION.format("rolled")}
        END, contradicted, status = 'sending', at + interval '0.2 s', ended_at
    FROM (
        SELECT *, CASE WHEN recipients > 1 AND of_message = 'failed' THEN 'partial' ELSE of_message END AS rolled
        FROM :batch WHERE place = 0
    ) AS rolled
"""
_DELIVERIES: Final = f"""
    INSERT INTO deliveries (api, message_id, recipient_key, recipient, place, listed_at, status, state, delivery_state,
        delivery_code, delivery_description, sent_at, delivered_at, failed_at, read_at, contradicted, updated_at,
        direction, delivered_received_at)
    SELECT api, id, substr(recipient, 2), recipient, place, at, status, {_STATE.format("status")},
        {_DELIVERY_STATE.format("status")}, code, {_DESCRIPTION.format("status")},
        CASE WHEN direction = 'out' THEN at + interval '0.3 s' END,
        CASE WHEN status IN ('delivered', 'read') THEN ended_at END, CASE WHEN status = 'failed' THEN ended_at END,
        CASE WHEN status = 'read' THEN ended_at + interval '1 minute' END, contradicted,
        ended_at + interval '0.1 s', direction,
        CASE WHEN status IN ('delivered', 'read') THEN ended_at + interval '0.1 s' END
    FROM :batch
"""
# The last event of each delivery and, of one of seven, an earlier one.
_EVENTS_OF_BATCH: Final = """
    SELECT *, occurred_at + interval '0.1 s' AS received_at, md5(n || ':' || place || event) AS digest,
        CASE WHEN event IN ('failed', 'unconfirmed') THEN code END AS event_code,
        to_char(at, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS created
    FROM :batch CROSS JOIN LATERAL (
        SELECT 'sending' AS event, at + interval '0.3 s' AS occurred_at, NULL AS previous
        WHERE has_sending AND status <> 'sending'
        UNION ALL
        SELECT status, ended_at, CASE WHEN has_sending AND status <> 'sending' THEN 'sending' END
    ) AS events_of_delivery
"""
_CALLBACK_ID: Final = "lpad(to_hex((extract(epoch FROM {0}) * 1000000)::bigint), 14, '0') || substr({1}, 1, 18)"
_EVENTS: Final = f"""
    INSERT INTO events (id, api, message_id, recipient, direction, type, status, occurred_at, received_at, code,
        description, tag_verdict, route, callback_id, previous_status, changed, facts, delivery)
    SELECT digest, api, id, recipient, direction, 'message-' || event, event, occurred_at, received_at, event_code,
        {_DESCRIPTION.format("event")}, tag_verdict, 'primary',
        {_CALLBACK_ID.format("received_at", "digest")}, previous,
        TRUE,
        ('{{"sender": "' || sender || '", "owner": "' || own_number || '", "recipients": ["' || recipient
            || '"], "created_at": "' || created || '", "segment_count": ' || 1 + n % 2
            || coalesce(', "application_id": "' || application || '"', '') || coalesce(', "tag": "' || tag || '"', '')
            || coalesce(', "carrier_name": "' || carrier || '"', '') || '}}')::jsonb,
        ('{{"status": "' || event || '", "state": "' || {_STATE.format("event")} || '", "delivery_state": '
            || coalesce('"' || {_DELIVERY_STATE.format("event")} || '"', 'null') || ', "code": '
            || coalesce(event_code::text, 'null') || ', "description": '
            || coalesce('"' || {_DESCRIPTION.format("event")} || '"', 'null') || ', "contradicted": false}}')::jsonb
    FROM ({_EVENTS_OF_BATCH}) AS of_batch
"""
_CALLBACKS: Final = f"""
    INSERT INTO callbacks (id, received_at, api, route, method, remote, query, headers, body)
    SELECT {_CALLBACK_ID.format("received_at", "digest")}, received_at, api, 'primary', 'POST',
        '203.0.113.' || n % 250, '',
        '{{"content-type": "application/json", "user-agent": "BandwidthAPI/2.0", "host": "receiver.example.com"}}',
        convert_to('[{{"type": "message-' || event || '", "time": "' || to_char(occurred_at,
            'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') || '", "to": "' || recipient || '", "description": ""'
            || coalesce(', "errorCode": ' || event_code, '') || coalesce(', "carrierName": "' || carrier || '"', '')
            || ', "message": {{"id": "' || id || '", "owner": "' || own_number || '", "applicationId": "'
            || coalesce(application, '') || '", "time": "' || created || '", "segmentCount": 1, "direction": "'
            || direction || '", "to": ["' || recipient || '"], "from": "' || sender || '", "text": ""'
            || coalesce(', "tag": "' || tag || '"', '') || '}}}}]', 'UTF8')
    FROM ({_EVENTS_OF_BATCH}) AS of_batch WHERE received_at > :end - interval '{JOURNAL_DAYS} days'
"""
# One of a thousand callbacks cannot be parsed.
_QUARANTINED: Final = f"""
    WITH bad AS (
        INSERT INTO callbacks (id, received_at, api, route, method, remote, query, headers, body)
        SELECT {_CALLBACK_ID.format("at", "md5('bad' || n)")}, at, 'v2', 'primary', 'POST', '203.0.113.7', '',
            '{{"content-type": "application/json"}}',
            convert_to('[{{"type": "message-' || n % 50 || '", "message": {{"id": "' || id || '"}}}}]', 'UTF8')
        FROM :batch WHERE n % 1000 = 7 AND place = 0 AND at > :end - interval '{JOURNAL_DAYS} days'
        RETURNING id
    )
    INSERT INTO quarantine (callback_id, element, reason, detail, message_id)
    SELECT id, 0, (ARRAY['unknown-type', 'unreadable', 'tag-forged', 'no-message-id'])[1 + (hashtext(id) & 3)],
        'the type is not known', NULL FROM bad
"""
_BOUNDS: Final = ", ".join(map(str, cells.BUCKET_BOUNDS))
_CELLS: Final = f"""
    CREATE UNLOGGED TABLE :batch_cells AS
    SELECT {cells.SENDER_HOUR} AS grain, floor(extract(epoch FROM at) / 3600)::integer AS hour, api, direction,
        status, coalesce(code, {cells.NO_CODE}) AS delivery_code, coalesce(application, '') AS application_id,
        coalesce(carrier, '') AS carrier_name, CASE WHEN direction = 'out' THEN sender ELSE '' END AS sender,
        CASE WHEN status IN ('delivered', 'read')
            THEN width_bucket((extract(epoch FROM delay) * 1000000)::bigint, ARRAY[{_BOUNDS}]::bigint[])
            ELSE {cells.NO_BUCKET} END AS bucket,
        count(*) AS deliveries, count(*) FILTER (WHERE status = 'sending') AS awaiting
    FROM :batch GROUP BY 2, 3, 4, 5, 6, 7, 8, 9, 10
"""
_OF_BATCH: Final = (
    _BATCH,
    _MESSAGES,
    _DELIVERIES,
    _EVENTS,
    _CALLBACKS,
    _QUARANTINED,
    _CELLS,
    *(
        f"INSERT INTO :batch_cells SELECT {grain}, {hour}, api, direction, status, {details}, {sender}, {bucket}, "
        f"sum(deliveries), sum(awaiting) FROM :batch_cells WHERE grain = {source} GROUP BY 2, 3, 4, 5, 6, 7, 8, 9, 10"
        for grain, source, hour, details, sender, bucket in DERIVED
    ),
    "INSERT INTO statistics SELECT * FROM :batch_cells ORDER BY grain, hour, sender",
    "DROP TABLE :batch, :batch_cells",
)
# Sinks: one that works, one that is paused with a backlog, and one that the settings do not have any more.
_SINKS: Final = """
    INSERT INTO sinks (name, cursor, epoch, revision, paused, fingerprint, failures, last_success_at, last_error,
        seen_at)
    SELECT name, (SELECT max(position) FROM events) - backlog, 1, 1, paused, '', 0, now() - interval '1 minute', error,
        now()
    FROM (VALUES ('archive', 0, FALSE, NULL), ('crm', 200000, TRUE, 'the sink answered 503'),
        ('old', 5000000, FALSE, NULL)) AS sinks (name, backlog, paused, error)
"""
_ATTEMPTS: Final = """
    INSERT INTO attempts (sink, position, event_id, started_at, ended_at, outcome, decision, reason, response_code,
        response)
    SELECT 'crm', position, id, received_at + interval '0.2 s', received_at + interval '0.25 s',
        CASE WHEN position % 50 = 0 THEN 'retry' ELSE 'published' END,
        CASE WHEN position % 50 = 0 THEN 'retry' ELSE 'done' END, NULL, 200, 'ok'
    FROM events WHERE position <= (SELECT cursor FROM sinks WHERE name = 'crm')
    ORDER BY position DESC LIMIT :attempts
"""
_DEAD_LETTERS: Final = """
    INSERT INTO dead_letters (sink, position, ordering_key, event_id, reason, detail, attempts, response_code, response,
        first_at, died_at)
    SELECT CASE WHEN position % 4 = 0 THEN 'old' ELSE 'crm' END, position, api || ':' || message_id, id,
        CASE WHEN position % 3 = 0 THEN 'expired' ELSE 'refused' END, 'the sink answered 422', 7, 422, 'no such order',
        received_at, received_at + interval '1 day'
    FROM events WHERE position % 500 = 0 ORDER BY position
"""
_RETRIES: Final = """
    INSERT INTO retries (sink, position, ordering_key, state, attempts, due_at, first_at)
    SELECT DISTINCT ON (api, message_id) 'crm', position, api || ':' || message_id, 'due', 3,
        now() + interval '2 hours', received_at
    FROM events WHERE position > (SELECT max(position) FROM events) - :retries * 4 AND position % 4 = 1
"""
_ALERTS: Final = """
    INSERT INTO alerts (id, rule, name, severity, status, group_value, summary, evidence, messages, targets, began_at,
        fired_at, updated_at, resolved_at)
    SELECT lpad(to_hex(n), 32, '0'), 'external', 'disk-' || n % 40,
        (ARRAY['info', 'warning', 'critical'])[1 + n % 3], CASE WHEN n < 20 THEN 'firing' ELSE 'resolved' END,
        'host-' || n, 'The disk of host ' || n || ' is nearly full.', '{"value": 0.91, "threshold": 0.9}', '[]', '[]',
        now() - n * interval '30 minutes', now() - n * interval '30 minutes', now() - n * interval '30 minutes',
        CASE WHEN n < 20 THEN NULL ELSE now() - n * interval '30 minutes' + interval '10 minutes' END
    FROM generate_series(1, 4000) AS n
"""
# Alerts count what came since two days ago, as if they had been on.
_STATE_ROWS: Final = (
    """
    UPDATE processor SET cursor = (SELECT coalesce(max(sequence), 0) FROM callbacks),
        callbacks = (SELECT max(position) FROM events),
        last_callbacks = jsonb_build_object('v2/primary', to_char(now(), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
    """,
    """
    UPDATE alerting SET counting_since_at = now() - interval '2 days',
        cursor = (SELECT max(position) * 87 / 90 FROM events)
    """,
)
_WEEK: Final = timedelta(hours=cells.WEEK_HOURS)
_SETTINGS: Final = {"synchronous_commit": "off", "jit": "off", "maintenance_work_mem": "1GB", "work_mem": "512MB"}


async def fill(url: str, count: int, connections: int = 3) -> None:
    """Fills a migrated database without data with so many messages, over some connections at once."""
    async with asyncpg.create_pool(url, min_size=1, max_size=connections, server_settings=_SETTINGS) as pool:
        if await pool.fetchval("SELECT EXISTS (SELECT FROM messages)"):
            raise RuntimeError("the database has messages already")
        indexes = await _without_indexes(pool)
        end = datetime.now(UTC).replace(microsecond=0)
        start, apart = end - timedelta(days=DAYS), timedelta(days=DAYS) / count
        values = {"count": count, "end": end, "start": start}
        values["apart"] = f"interval '{DAYS * 86_400_000_000 / count} microseconds'"
        weeks = list(_weeks(start, apart, count))
        # The last week comes last: the log ends with its events.
        await _all(pool, [_statements({**values, **week}) for week in weeks[:-1]])
        await _all(pool, [_statements({**values, **weeks[-1]})])
        _note("rows")
        await _all(pool, [[definition] for definition in indexes])
        _note("indexes")
        values["attempts"], values["retries"] = count // 10, count // 1000
        await _all(pool, [_statements(values, (_SINKS, _ATTEMPTS, _DEAD_LETTERS, _RETRIES, _ALERTS, *_STATE_ROWS))])
        tables = await pool.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        await _all(pool, [[f"VACUUM (ANALYZE) {table['tablename']}"] for table in tables])
        await pool.execute("CHECKPOINT")
        _note("vacuum")


def _weeks(start: datetime, apart: timedelta, count: int) -> Iterator[dict[str, Any]]:
    """The numbers of the messages of each week of the statistics: no cell is in two batches."""
    first = 0
    while first < count:
        hour = cells.hour_of(start + apart * first + timedelta(milliseconds=1))
        ends_at = cells.start_of(hour - hour % cells.WEEK_HOURS) + _WEEK
        last = min(count, -(-(ends_at - start) // apart))
        yield {"first": first, "last": last, "batch": f"bench_{first}"}
        first = last


def _statements(values: Mapping[str, Any], statements: Sequence[str] = _OF_BATCH) -> list[str]:
    """The statements with these values."""
    names = "|".join(values)

    def literal(found: re.Match[str]) -> str:
        value = values[found[1]]
        return f"'{value.isoformat()}'::timestamptz" if isinstance(value, datetime) else str(value)

    return [re.sub(rf"(?<!:):({names})(?![a-z])", literal, statement) for statement in statements]


async def _all(pool: Any, tasks: Sequence[Sequence[str]]) -> None:
    """Runs lists of statements, several lists at once."""

    async def run(statements: Sequence[str]) -> None:
        async with pool.acquire() as connection:
            for statement in statements:
                await connection.execute(statement)
        _note(statements[0].strip().partition(" AS ")[0][:80])

    await asyncio.gather(*(run(statements) for statements in tasks))


async def _without_indexes(pool: Any) -> list[str]:
    """Drops the indexes of the large tables; returns the statements that make them again."""
    tables = ["messages", "deliveries", "events", "callbacks", "statistics"]
    keys = await pool.fetch(
        "SELECT conrelid::regclass::text AS of_table, conname AS name, pg_get_constraintdef(oid) AS definition "
        "FROM pg_constraint WHERE conrelid::regclass::text = ANY($1) AND contype IN ('p', 'u') "
        "AND conname <> 'pk_events'",
        tables,
    )
    for key in keys:
        await pool.execute(f"ALTER TABLE {key['of_table']} DROP CONSTRAINT {key['name']}")
    others = await pool.fetch(
        "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = ANY($1) AND indexname <> 'pk_events'", tables
    )
    for other in others:
        await pool.execute(f"DROP INDEX {other['indexname']}")
    return [
        *(f"ALTER TABLE {key['of_table']} ADD CONSTRAINT {key['name']} {key['definition']}" for key in keys),
        *(other["indexdef"] for other in others),
    ]


_BEGUN: Final = time.monotonic()


def _note(what: str) -> None:
    print(f"{time.monotonic() - _BEGUN:6.0f} s: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    asyncio.run(fill(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 10_000_000))
