"""Export, import and reprocessing on both databases: callbacks out, in again, and processed once more."""

import json
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from receiver.domain.delivery import FinalConflict
from receiver.domain.events import Api, Callback
from receiver.errors import StorageUnavailable
from receiver.intake import transfer
from receiver.intake.endpoint import new_callback_id
from receiver.intake.fold import TagChecker
from receiver.intake.transfer import (
    BrokenLine,
    Imported,
    Importing,
    ImportStopped,
    Reprocessed,
    Reprocessing,
    exported,
    from_line,
    import_lines,
    to_line,
)
from receiver.models.callbacks import CallbackRow, QuarantineRow
from receiver.models.events import EventRow
from receiver.models.messages import MessageRow
from receiver.models.queries import CallbackQuery
from receiver.storage import callbacks, journal, schema
from receiver.storage.database import Database
from receiver.tags import TagPolicy, sign
from tests.factories import at, callback, v1_event, v2_event
from tests.processing import append, drain, now, process

pytestmark = pytest.mark.anyio


@pytest.fixture
async def elsewhere(tmp_path: Path) -> AsyncIterator[Database]:
    """Another receiver's database."""
    database = Database(f"sqlite:///{tmp_path / 'elsewhere.db'}")
    await schema.migrate(database)
    yield database
    await database.close()


def received(body: Any, seconds: float, **more: Any) -> Callback:
    """A callback with an id as the callback routes make it."""
    return callback(body, received=seconds, id=new_callback_id(at(seconds)), **more)


VARIETY = [
    received([v2_event("m1")], 0, headers={"user-agent": "BandwidthAPI/2.0"}, remote="192.0.2.1"),
    received([v2_event("m1")], 1),
    received([v2_event("m2", "message-received", message={"direction": "in", "text": "h\u00e9 \U0001f600\0"})], 2),
    received(b"\xff\xfe not utf-8", 3),
    received([v1_event("m-1")], 4, api=Api.V1, route="fallback"),
    received(
        b"", 5, api=Api.V1, method="GET", query="eventType=sms&direction=in&messageId=m-2&state=received&text=a%00"
    ),
    received([v2_event("m3"), {"type": "what"}], 6),
    received(b"\xef\xbb\xbf" + json.dumps([v2_event("m4")]).encode(), 7),
]


# --- lines


@pytest.mark.parametrize("one", VARIETY, ids=lambda one: one.body[:12].decode("latin-1") or one.query[:12])
def test_a_callback_comes_back_from_its_line_byte_for_byte(one: Callback) -> None:
    line = to_line(one)
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    assert from_line(line, now=at(100)) == one


GOOD = json.loads(to_line(VARIETY[0]))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        pytest.param(b"not json", "is not a JSON object", id="no json"),
        pytest.param(b"[]", "is not a JSON object", id="another value"),
        pytest.param(b"\xff", "is not a JSON object", id="no text"),
        pytest.param({**GOOD, "id": "../../etc"}, "id: String should match", id="an id that is none of ours"),
        pytest.param({**GOOD, "id": "f" * 32}, "id: begins with a time", id="an id of a time to come"),
        pytest.param({**GOOD, "receivedTime": "2026-01-01T00:00:00"}, "receivedTime: ", id="a time without zone"),
        pytest.param({**GOOD, "receivedTime": "0001-01-01T00:00:00+23:59"}, "receivedTime: must be", id="year 0"),
        pytest.param({**GOOD, "receivedTime": "1969-12-31T23:59:59Z"}, "receivedTime: must be", id="before 1970"),
        pytest.param({**GOOD, "receivedTime": "9999-12-31T23:59:59-23:59"}, "receivedTime: must be", id="after 9999"),
        pytest.param({**GOOD, "receivedTime": "2026-01-02T00:02:00Z"}, "receivedTime: must be", id="a day ahead"),
        pytest.param({**GOOD, "remote": "x" * 101}, "remote: String should have at most", id="a long remote"),
        pytest.param({**GOOD, "api": "v3"}, "api: ", id="an unknown version"),
        pytest.param({**GOOD, "route": "other"}, "route: ", id="an unknown route"),
        pytest.param({**GOOD, "body": "%%%", "bodyEncoding": "base64"}, "body: is not base64", id="broken base64"),
        pytest.param({**GOOD, "bodyEncoding": "latin-1"}, "bodyEncoding: ", id="an unknown encoding"),
        pytest.param({**GOOD, "headers": {"a": 1}}, "headers.a: ", id="a header that is no text"),
        pytest.param({name: GOOD[name] for name in GOOD if name != "id"}, "id: Field required", id="no id"),
        pytest.param({**GOOD, "query": "\ud800"}, "is not a JSON object", id="half a surrogate pair"),
    ],
)
def test_a_broken_line_says_what_is_wrong_and_nothing_of_what_is_in_it(line: Any, problem: str) -> None:
    raw = line if isinstance(line, bytes) else json.dumps(line).encode()
    with pytest.raises(BrokenLine) as caught:
        from_line(raw, now=at(100))
    assert str(caught.value).startswith(problem)
    assert "etc" not in str(caught.value)


def test_a_field_that_a_later_version_adds_is_ignored() -> None:
    assert from_line(json.dumps({**GOOD, "colour": "blue"}).encode(), now=at(100)) == VARIETY[0]


# --- export and import


async def lines_of(database: Database, **query: Any) -> list[bytes]:
    exported_bytes = b"".join([part async for part in exported(database, CallbackQuery(**query))])
    return exported_bytes.splitlines(keepends=True)


async def columns(database: Database, *wanted: Any) -> list[tuple[Any, ...]]:
    async with database.reading() as connection:
        return sorted(tuple(row) for row in await connection.execute(select(*wanted)))


async def imported(database: Database, lines: Sequence[bytes], **how: Any) -> Imported:
    writer = journal.journal_writer(database)
    try:
        return await import_lines(writer, lines, Importing(**{"clock": now, **how}))
    finally:
        await writer.close()


async def test_what_is_exported_and_imported_elsewhere_gives_the_same_messages(
    database: Database, elsewhere: Database
) -> None:
    for one in VARIETY:
        await process(database, one)
    lines = await lines_of(database)
    # the second one is a repeat of the first
    assert [from_line(line, now=now()) for line in lines] == [one for one in VARIETY if one is not VARIETY[1]]
    done = await imported(elsewhere, lines)
    assert (done.callbacks, done.known, done.broken) == (7, 0, 0)
    await drain(elsewhere)
    for wanted in (
        (CallbackRow.id, CallbackRow.received_at, CallbackRow.body),
        (QuarantineRow.callback_id, QuarantineRow.element, QuarantineRow.reason),
        (EventRow.id, EventRow.received_at, EventRow.callback_id),
        (MessageRow.id, MessageRow.status, MessageRow.text, MessageRow.first_received_at),
    ):
        assert await columns(elsewhere, *wanted) == await columns(database, *wanted)


async def test_an_import_is_idempotent(database: Database) -> None:
    lines = [to_line(one) for one in VARIETY]
    assert (await imported(database, lines)).callbacks == 8
    await drain(database)
    before = await columns(database, EventRow.id)
    again = await imported(database, lines)
    # the processor has removed the repeat; what is appended a second time is one again
    assert (again.callbacks, again.known) == (1, 7)
    await drain(database)
    assert await columns(database, EventRow.id) == before


async def test_a_line_with_a_known_id_is_left_alone_entirely(database: Database) -> None:
    await process(database, VARIETY[0])
    other = received([v2_event("other")], 0)
    done = await imported(database, [to_line(Callback(**{**_fields(other), "id": VARIETY[0].id}))])
    assert (done.callbacks, done.known) == (0, 1)
    await drain(database)
    assert await columns(database, MessageRow.id) == [("m1",)]
    assert await columns(database, CallbackRow.body) == [(VARIETY[0].body,)]


def _fields(one: Callback) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__struct_fields__}


async def test_broken_lines_are_named_by_their_number_and_stop_no_other(database: Database) -> None:
    early = json.dumps({**GOOD, "receivedTime": "0001-01-01T00:00:00+23:59"}).encode()
    lines = [b"{}\n", to_line(VARIETY[0]), b"\n", b"not json\n", early, to_line(VARIETY[2])]
    broken: list[int] = []
    done = await imported(database, lines, on_broken=lambda number, _: broken.append(number))
    assert (done.lines, done.callbacks, done.known, done.broken) == (6, 2, 0, 3)
    assert broken == [1, 4, 5]


class FailingWriter:
    """A journal's writer that fails for a while, and keeps what it was given."""

    def __init__(self, failures: Sequence[bool]) -> None:
        self._failures = iter(failures)
        self.batches: list[int] = []

    async def append(self, callbacks: Sequence[Callback]) -> int:
        if next(self._failures, False):
            raise StorageUnavailable("the disk is full")
        self.batches.append(len(callbacks))
        return len(callbacks)

    async def probe(self) -> None: ...
    async def close(self) -> None: ...


class Clock:
    """A monotonic clock that only sleeping moves."""

    seconds = 0.0

    async def sleep(self, seconds: float) -> None:
        self.seconds += seconds

    def __call__(self) -> float:
        return self.seconds


async def test_an_append_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_BATCH_LINES", 2)
    writer, clock = FailingWriter([False, True, True, True]), Clock()
    how = Importing(clock=now, monotonic=clock, sleep=clock.sleep)
    done = await import_lines(writer, [to_line(one) for one in VARIETY[:5]], how)
    assert (done.callbacks, writer.batches) == (5, [2, 2, 1])
    assert 0.5 < clock.seconds < 2


async def test_an_import_stops_after_a_minute_and_names_the_first_line_that_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transfer, "_BATCH_LINES", 2)
    writer, clock = FailingWriter([False, *[True] * 1000]), Clock()
    how = Importing(clock=now, monotonic=clock, sleep=clock.sleep)
    lines = [to_line(VARIETY[0]), b"broken", b"\n", b"broken", to_line(VARIETY[1]), to_line(VARIETY[2])]
    with pytest.raises(ImportStopped, match=r"stopped at line 5: .*the disk is full") as caught:
        await import_lines(writer, lines, how)
    assert (caught.value.line, caught.value.done.callbacks, caught.value.done.lines) == (5, 1, 2)
    assert 50 < clock.seconds <= 60


async def test_batches_are_bounded_by_lines_and_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_BATCH_LINES", 3)
    monkeypatch.setattr(transfer, "_BATCH_BYTES", 5000)
    writer, clock = FailingWriter([]), Clock()
    sizes = [0, 0, 0, 0, 6000, 6000, 0]
    lines = [to_line(received(b"x" * size, number)) for number, size in enumerate(sizes)]
    await import_lines(writer, lines, Importing(clock=now, monotonic=clock, sleep=clock.sleep))
    assert writer.batches == [3, 2, 1, 1]


async def test_callbacks_with_many_events_are_imported_and_processed(database: Database) -> None:
    """What stopped an import once: many callbacks with 50 events each (2,596 of them; here fewer)."""
    lines = [
        to_line(received([v2_event(f"m{number}-{element}") for element in range(50)], number)) for number in range(60)
    ]
    done = await imported(database, lines)
    assert (done.callbacks, done.known, done.broken) == (60, 0, 0)
    await drain(database)
    assert len(await columns(database, EventRow.id)) == 3000


async def test_an_export_is_narrowed_by_time_outcome_reason_and_message(database: Database) -> None:
    for one in VARIETY:
        await process(database, one)
    late = received([v2_event("m9")], 50)
    await append(database, late)

    async def ids(**query: Any) -> list[str]:
        return [from_line(line, now=now()).id for line in await lines_of(database, **query)]

    assert await ids(since=at(4), until=at(6)) == [VARIETY[4].id, VARIETY[5].id]
    assert await ids(outcome="quarantined") == [VARIETY[3].id, VARIETY[6].id]
    assert await ids(reason="unreadable") == [VARIETY[3].id]
    assert await ids(outcome="pending") == [late.id]
    assert await ids(message_id="m3") == [VARIETY[6].id]
    assert VARIETY[3].id not in await ids(outcome="accepted")
    assert await ids(until=at(0) - timedelta(days=365 * 200)) == []


async def test_the_journal_is_exported_while_it_is_written(tmp_path: Path, elsewhere: Database) -> None:
    """A reader holds nothing open between two pages, so that SQLite's checkpoints come through."""
    await append(elsewhere, *(received([v2_event(f"m{number}")], number) for number in range(250)))
    pages = exported(elsewhere, CallbackQuery())
    await anext(pages)
    with closing(sqlite3.connect(tmp_path / "elsewhere-callbacks.db")) as connection:
        [busy, *_] = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    assert not busy
    assert len([page async for page in pages]) == 2


# --- reprocessing


def checker(*keys: str) -> TagChecker:
    return TagChecker(keys=dict.fromkeys(keys, "secret"), policy=TagPolicy.REQUIRE)


async def quarantine_some(database: Database) -> list[str]:
    """Callbacks whose tags were signed with a key that was not in the settings then, and an unreadable one."""
    tag = sign("order", "secret", kid="new")
    callbacks = [received([v2_event(f"m{number}", message={"tag": tag})], number) for number in range(3)]
    callbacks.append(received(b"unreadable", 9))
    await process(database, *callbacks, checker=checker("old"))
    return [one.id for one in callbacks]


@pytest.fixture
def again(database: Database) -> Reprocessing:
    """Reprocessing with the key that was missing."""
    return Reprocessing(
        database=database,
        checker=checker("new"),
        conflict=FinalConflict.FAILED_WINS,
        clock=lambda: datetime(2026, 1, 2, tzinfo=UTC),
    )


async def test_reprocessing_what_is_quarantined_takes_in_what_can_be_parsed_now(
    database: Database, again: Reprocessing
) -> None:
    ids = await quarantine_some(database)
    done = await again.query(CallbackQuery(outcome="quarantined"))
    assert done == Reprocessed(callbacks=4, events=3, quarantined=1)
    assert await columns(database, QuarantineRow.callback_id) == [(ids[3],)]
    assert [row[0] for row in await columns(database, MessageRow.tag)] == ["order"] * 3
    once_more = await again.query(CallbackQuery(outcome="quarantined"))
    assert once_more == Reprocessed(callbacks=1, quarantined=1)
    view = (await callbacks.find(database, CallbackQuery(outcome="quarantined"))).items[0]
    assert (view.id, view.reprocessed_at) == (ids[3], datetime(2026, 1, 2, tzinfo=UTC))


async def test_reprocessing_some_ids_leaves_the_others_alone(database: Database, again: Reprocessing) -> None:
    ids = await quarantine_some(database)
    assert await again.ids([ids[1], "0" * 32]) == Reprocessed(callbacks=1, events=1)
    assert [row[0] for row in await columns(database, MessageRow.id)] == ["m1"]


async def test_reprocessing_for_one_reason_leaves_the_others_alone(database: Database, again: Reprocessing) -> None:
    await quarantine_some(database)
    assert await again.query(CallbackQuery(reason="unreadable")) == Reprocessed(callbacks=1, quarantined=1)
