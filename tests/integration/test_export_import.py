"""Export, import and reread on both databases: callbacks out, in again, and read once more."""

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text

from receiver.domain.callbacks import Callback
from receiver.domain.events import Api
from receiver.errors import StorageUnavailable
from receiver.intake import Intake, Judge
from receiver.metrics import Metrics
from receiver.reread import Reread, reread_ids, reread_selected
from receiver.storage import schema
from receiver.storage.database import Database
from receiver.storage.kept import Selection
from receiver.storage.tables import CallbackRow, EventRow, MessageRow
from receiver.tags import TagPolicy, sign
from receiver.transfer import BrokenLine, exported, from_line, import_lines, to_line
from receiver.web.callbacks import new_callback_id
from tests.events import at
from tests.posts import callback, v1_event, v2_event

pytestmark = pytest.mark.anyio


@pytest.fixture
async def intake(database: Database) -> AsyncIterator[Intake]:
    intake = Intake(database, observer=Metrics(), clock=lambda: at(0))
    await intake.start()
    yield intake
    await intake.stop()


@pytest.fixture
async def elsewhere(tmp_path: Path) -> AsyncIterator[Database]:
    """Another receiver's database."""
    database = Database(f"sqlite:///{tmp_path / 'elsewhere.db'}")
    await schema.migrate(database)
    yield database
    await database.close()


@pytest.fixture
async def intake_elsewhere(elsewhere: Database) -> AsyncIterator[Intake]:
    intake = Intake(elsewhere, observer=Metrics(), clock=lambda: at(0))
    await intake.start()
    yield intake
    await intake.stop()


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


@pytest.mark.parametrize("one", VARIETY, ids=lambda one: one.body[:12].decode("latin-1") or one.query[:12])
def test_a_callback_comes_back_from_its_line_byte_for_byte(one: Callback) -> None:
    line = to_line(one)
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    assert from_line(line) == one


GOOD = json.loads(to_line(VARIETY[0]))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        pytest.param(b"not json", "is not a JSON object", id="no json"),
        pytest.param(b"[]", "is not a JSON object", id="another value"),
        pytest.param(b"\xff", "is not a JSON object", id="no text"),
        pytest.param({**GOOD, "id": "../../etc"}, "id: String should match", id="an id that is none of ours"),
        pytest.param({**GOOD, "receivedTime": "2026-01-01T00:00:00"}, "receivedTime: ", id="a time without zone"),
        pytest.param({**GOOD, "api": "v3"}, "api: ", id="an unknown generation"),
        pytest.param({**GOOD, "route": "other"}, "route: ", id="an unknown route"),
        pytest.param({**GOOD, "body": "%%%", "bodyEncoding": "base64"}, "body: is not base64", id="broken base64"),
        pytest.param({**GOOD, "bodyEncoding": "latin-1"}, "bodyEncoding: ", id="an unknown encoding"),
        pytest.param({**GOOD, "headers": {"a": 1}}, "headers.a: ", id="a header that is no text"),
        pytest.param({name: GOOD[name] for name in GOOD if name != "id"}, "id: Field required", id="no id"),
    ],
)
def test_a_broken_line_says_what_is_wrong_and_nothing_of_what_is_in_it(line: Any, problem: str) -> None:
    raw = line if isinstance(line, bytes) else json.dumps(line).encode()
    with pytest.raises(BrokenLine) as caught:
        from_line(raw)
    assert str(caught.value).startswith(problem)
    assert "etc" not in str(caught.value)


def test_a_field_that_a_later_version_adds_is_passed_over() -> None:
    assert from_line(json.dumps({**GOOD, "colour": "blue"}).encode()) == VARIETY[0]


async def lines_of(database: Database, **selection: Any) -> list[bytes]:
    exported_bytes = b"".join([part async for part in exported(database, Selection(**selection))])
    return exported_bytes.splitlines(keepends=True)


async def columns(database: Database, *wanted: Any) -> list[tuple[Any, ...]]:
    async with database.reading() as connection:
        return sorted(tuple(row) for row in await connection.execute(select(*wanted)))


async def test_what_is_exported_and_imported_elsewhere_gives_the_same_messages(
    database: Database, intake: Intake, elsewhere: Database, intake_elsewhere: Intake
) -> None:
    for one in VARIETY:
        await intake.accept(one)
    lines = await lines_of(database)
    assert [from_line(line) for line in lines] == [one for one in VARIETY if one is not VARIETY[1]]
    done = await import_lines(intake_elsewhere, lines)
    assert (done.callbacks, done.events, done.duplicates, done.quarantined, done.problems) == (7, 6, 0, 2, [])
    for wanted in (
        (CallbackRow.id, CallbackRow.received_at, CallbackRow.body, CallbackRow.outcome),
        (EventRow.id, EventRow.received_at, EventRow.callback_id),
        (MessageRow.id, MessageRow.status, MessageRow.text, MessageRow.first_received_at),
    ):
        assert await columns(elsewhere, *wanted) == await columns(database, *wanted)


async def test_importing_a_second_time_adds_nothing(database: Database, intake: Intake) -> None:
    lines = [to_line(one) for one in VARIETY]
    await import_lines(intake, lines)
    before = await columns(database, CallbackRow.id, CallbackRow.outcome), await columns(database, EventRow.id)
    done = await import_lines(intake, lines)
    assert (done.events, done.problems) == (0, [])
    assert (
        await columns(database, CallbackRow.id, CallbackRow.outcome),
        await columns(database, EventRow.id),
    ) == before


async def test_broken_lines_are_named_by_their_number_and_stop_nobody(database: Database, intake: Intake) -> None:
    lines = [b"{}\n", to_line(VARIETY[0]), b"\n", b"not json\n", to_line(VARIETY[2])]
    done = await import_lines(intake, lines)
    assert (done.callbacks, done.events) == (2, 2)
    assert [problem.line for problem in done.problems] == [1, 4]


async def test_callbacks_that_are_imported_share_their_commits(database: Database) -> None:
    sizes: list[int] = []

    class Observer(Metrics):
        def committed(self, callbacks: int, seconds: float) -> None:
            sizes.append(callbacks)

    intake = Intake(database, observer=Observer(), clock=lambda: at(0))
    await intake.start()
    await import_lines(intake, [to_line(received([v2_event(f"m{number}")], number)) for number in range(600)])
    await intake.stop()
    assert sum(sizes) == 600
    assert len(sizes) < 10


async def test_an_import_that_the_database_refuses_says_where_it_stopped(database: Database, intake: Intake) -> None:
    async with database.writing() as connection:
        await connection.execute(text("ALTER TABLE callbacks RENAME TO hidden"))
    with pytest.raises(StorageUnavailable, match="stopped at line 1, "):
        await import_lines(intake, [to_line(VARIETY[3]), b"broken"])


async def test_an_export_is_narrowed_by_time_and_outcome(database: Database, intake: Intake) -> None:
    for one in VARIETY:
        await intake.accept(one)

    async def ids(**selection: Any) -> list[str]:
        return [from_line(line).id for line in await lines_of(database, **selection)]

    assert await ids(since=at(4), until=at(6)) == [VARIETY[4].id, VARIETY[5].id]
    assert await ids(outcome="quarantined") == [VARIETY[3].id, VARIETY[6].id]
    assert await ids(reason="unreadable") == [VARIETY[3].id]
    assert VARIETY[3].id not in await ids(outcome="accepted")
    assert await ids(until=at(0) - timedelta(days=365 * 200)) == []


# --- reread


def judge(*keys: str) -> Judge:
    return Judge(keys=dict.fromkeys(keys, "secret"), policy=TagPolicy.REQUIRE)


async def quarantine_some(database: Database) -> list[str]:
    """Callbacks whose tags were signed with a key that was not in the settings then, and one that nobody can read."""
    tag = sign("order", "secret", kid="new")
    intake = Intake(database, judge=judge("old"), observer=Metrics(), clock=lambda: at(0))
    await intake.start()
    callbacks = [received([v2_event(f"m{number}", message={"tag": tag})], number) for number in range(3)]
    callbacks.append(received(b"unreadable", 9))
    for one in callbacks:
        await intake.accept(one)
    await intake.stop()
    return [one.id for one in callbacks]


@pytest.fixture
async def intake_with_new_key(database: Database) -> AsyncIterator[Intake]:
    intake = Intake(database, judge=judge("new"), observer=Metrics(), clock=lambda: at(100))
    await intake.start()
    yield intake
    await intake.stop()


async def test_rereading_what_is_quarantined_takes_in_what_can_be_read_now(
    database: Database, intake_with_new_key: Intake
) -> None:
    await quarantine_some(database)
    done = await reread_selected(database, intake_with_new_key, Selection(outcome="quarantined"))
    assert done == Reread(callbacks=4, events=3, quarantined=1)
    outcomes = [outcome for _, outcome in await columns(database, CallbackRow.id, CallbackRow.outcome)]
    assert outcomes == ["accepted", "accepted", "accepted", "quarantined"]
    assert [row[0] for row in await columns(database, MessageRow.tag)] == ["order"] * 3
    again = await reread_selected(database, intake_with_new_key, Selection(outcome="quarantined"))
    assert again == Reread(callbacks=1, quarantined=1)


async def test_rereading_some_ids_leaves_the_others_alone(database: Database, intake_with_new_key: Intake) -> None:
    ids = await quarantine_some(database)
    done = await reread_ids(database, intake_with_new_key, [ids[1], "0" * 32])
    assert done == Reread(callbacks=1, events=1)
    assert [row[0] for row in await columns(database, MessageRow.id)] == ["m1"]


async def test_rereading_for_one_reason_leaves_the_others_alone(
    database: Database, intake_with_new_key: Intake
) -> None:
    await quarantine_some(database)
    done = await reread_selected(database, intake_with_new_key, Selection(reason="unreadable"))
    assert done == Reread(callbacks=1, quarantined=1)
