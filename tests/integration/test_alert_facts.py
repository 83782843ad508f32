"""The rules of alerts over the real storage, on both databases: what they find, and the messages they name."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import count
from random import Random
from typing import Any

import pytest
from sqlalchemy import Insert, Update, insert, update
from sqlalchemy import text as sql

from receiver.alerts.evaluator import LogWatch
from receiver.alerts.rules import configure
from receiver.app import Receiver
from receiver.domain.alert_facts import hour_of
from receiver.domain.alert_rules import FactsUnreadable, evaluate
from receiver.domain.alerts import Alert, AlertChange, Condition, Rule, RuleType, Transition, advance
from receiver.domain.events import Callback
from receiver.intake.fold import TagChecker
from receiver.intake.refusals import Refusals
from receiver.models.alerts import ALERTING
from receiver.models.sinks import DEAD_LETTERS, RETRIES, SINKS
from receiver.settings import GivenSettings
from receiver.storage import alert_facts, event_counts, refusals
from receiver.storage.database import Database
from receiver.storage.sinks import register
from receiver.storage.status import StatusReader
from receiver.tags import TagPolicy, sign
from tests import rows
from tests.dispatching import append as append_events
from tests.dispatching import life
from tests.evaluating import Rounds, alert_entries, finding
from tests.factories import at, callback, v2_event
from tests.processing import append, drain, opened, process, select
from tests.waiting import eventually
from tests.web import client

pytestmark = pytest.mark.anyio

EPOCH = 1
EVERY = timedelta(minutes=5)


@pytest.fixture(autouse=True)
async def lease(database: Database) -> None:
    await write(database, update(ALERTING).values(epoch=EPOCH, cursor=0))


async def write(database: Database, *statements: Insert | Update) -> None:
    async with database.writing() as connection:
        for statement in statements:
            await connection.execute(statement)


async def add_sinks(database: Database, *names: str) -> None:
    for name in names:
        await register(database, name, start="end", fingerprint="1")


class Evaluation:
    """Rounds of evaluation over a database, at times of the test."""

    def __init__(self, database: Database, rules: Sequence[Rule]) -> None:
        self.database, self.rules, self.reader = database, rules, StatusReader(database)
        self.alerts: dict[str, Alert] = {}
        self.history: list[AlertChange] = []
        self.named: dict[str, list[str]] = {}
        self._ids = map(str, count(1))

    async def round(self, now: datetime) -> list[AlertChange]:
        since = await event_counts.note_round(self.database, EPOCH, now, EVERY)
        senders = event_counts.senders_of(self.rules)
        await event_counts.count(self.database, EPOCH, now, senders=senders)
        facts = await alert_facts.gather(self.reader, self.rules, now, sinks={"crm": "memory"})
        findings = {rule.name: evaluate(rule, facts, now) for rule in self.rules}
        changes = advance(
            self.rules, list(self.alerts.values()), findings, now, lambda: next(self._ids), watching_since=since
        )
        for change in changes:
            alert = change.alert
            if change.transition is Transition.FIRED:
                [rule] = [rule for rule in self.rules if rule.name == alert.name]
                [found] = await alert_facts.offending(self.database, [(rule, alert.group)], facts, now, seconds=60)
                self.named.setdefault(alert.name, found)
            if change.transition in (Transition.FORGOTTEN, Transition.RESOLVED):
                self.alerts.pop(alert.id)
            else:
                self.alerts[alert.id] = alert
        self.history += changes
        return changes

    def fired(self) -> list[tuple[str, str | None]]:
        return [
            (change.alert.name, change.alert.group) for change in self.history if change.transition is Transition.FIRED
        ]


def callback_id(seconds: float, number: int = 0) -> str:
    """The id of a callback that was received at a time."""
    return f"{round(at(seconds).timestamp() * 1_000_000):014x}{number:018x}"


def message_time(seconds: float) -> str:
    return at(seconds).isoformat().replace("+00:00", "Z")


def callbacks(random: Random, seconds: int, number: int, *, blocks: bool = False, prefix: str = "m") -> list[Callback]:
    """The callbacks of messages sent within a minute, of two carriers; with `blocks` T-Mobile refuses most of them."""
    found = []
    for place in range(number):
        message_id, sent = f"{prefix}{seconds}-{place}", seconds + random.random() * 50
        carrier = "T-Mobile" if place % 2 else "Verizon"
        message = {"time": message_time(sent), "applicationId": "a-1"}
        fails = random.random() < (0.8 if blocks and carrier == "T-Mobile" else 0.02)
        more: dict[str, Any] = {"errorCode": 4720} if fails else {}
        kind = "message-failed" if fails else "message-delivered"
        event = v2_event(message_id, kind, time=message_time(sent + 3), message=message, carrierName=carrier, **more)
        found.append(callback([event], received=sent + 3))
    return found


async def test_hours_of_traffic_with_a_trouble(database: Database) -> None:
    """Two quiet hours, some minutes in which a carrier blocks, and what follows, through journal and event log."""
    evaluation = Evaluation(database, configure([]))
    random = Random(3)
    await add_sinks(database, "crm")
    # Nobody publishes in this test: the sink is behind.
    evaluation.rules = [rule for rule in evaluation.rules if rule.type is not RuleType.SINK_BEHIND]
    for minute in range(0, 120, 5):
        await process(database, *callbacks(random, minute * 60, 16))
        await evaluation.round(at(minute * 60 + 300))
    assert evaluation.history == []
    for minute in range(120, 140, 5):
        await process(database, *callbacks(random, minute * 60, 30, blocks=True))
        await evaluation.round(at(minute * 60 + 300))
    assert evaluation.fired() == [("failure-rate", "T-Mobile")]
    [alert] = evaluation.alerts.values()
    assert alert.evidence.before is not None
    assert alert.evidence.before < 0.1
    assert "4720" in alert.summary
    named = evaluation.named["failure-rate"]
    assert len(named) == 10
    failed = await select(database, "SELECT message_id FROM events WHERE status = 'failed' ORDER BY position DESC")
    of_carrier = [row.message_id for row in failed if int(row.message_id.rpartition("-")[2]) % 2]
    assert set(named) <= set(of_carrier)
    for minute in range(140, 185, 5):
        await process(database, *callbacks(random, minute * 60, 16))
        await evaluation.round(at(minute * 60 + 300))
    assert [change.transition for change in evaluation.history if change.transition is not Transition.UPDATED] == [
        Transition.FIRED,
        Transition.RESOLVED,
    ]


async def evaluated(database: Database, now: datetime, *tables: dict[str, Any]) -> Evaluation:
    evaluation = Evaluation(database, configure(tables))
    await evaluation.round(now)
    return evaluation


async def test_spam_codes_contradictions_and_forged_tags_name_their_messages(database: Database) -> None:
    checker = TagChecker(keys={"k1": "secret-secret-secret"}, policy=TagPolicy.RECORD)
    forged = {"tag": sign("order", "another-secret-secret", kid="k1")}
    spam = [
        callback([v2_event(f"s{number}", "message-failed", errorCode=4470)], received=number) for number in range(12)
    ]
    contradicted = [
        callback([v2_event("c1", "message-delivered"), v2_event("c1", "message-failed", errorCode=4720)], received=20)
    ]
    await process(database, *spam, *contradicted, checker=checker)
    await process(database, callback([v2_event("f1", message=forged)], received=30), checker=checker)
    evaluation = await evaluated(
        database,
        at(60),
        {"rule": "code-spike", "by": "from"},
        {"rule": "contradictions", "above": 0},
        {"rule": "forged-tags"},
    )
    assert evaluation.fired() == [("code-spike", "+15559999"), ("contradictions", None), ("forged-tags", None)]
    assert evaluation.named["code-spike"] == [f"s{number}" for number in reversed(range(2, 12))]
    assert evaluation.named["contradictions"] == ["c1"]
    assert evaluation.named["forged-tags"] == ["f1"]


async def test_failures_that_are_over_are_known_to_be_in_the_same_hour(database: Database) -> None:
    evaluation = Evaluation(database, configure([{"rule": "failure-rate", "by": "deliveryCode"}]))
    failed = (v2_event(f"f{number}", "message-failed", errorCode=4470) for number in range(30))
    await process(database, *(callback([event], received=10) for event in failed))
    await evaluation.round(at(60))
    assert evaluation.fired() == [("failure-rate", "4470")]
    for minute in range(5, 31, 5):
        delivered = (v2_event(f"d{minute}-{number}") for number in range(30))
        await process(database, *(callback([event], received=60 * minute - 30) for event in delivered))
        await evaluation.round(at(60 * minute))
    [resolved] = [change.alert for change in evaluation.history if change.transition is Transition.RESOLVED]
    assert resolved.summary.startswith("0 of 90 deliveries with code 4470 failed")


async def test_messages_of_many_alerts_are_searched_once_and_in_bounded_time(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_counts, "BATCH", 10)
    await process(
        database,
        *(
            callback([v2_event(f"m{number}", "message-failed", errorCode=4470, carrierName=f"c{number % 3}")])
            for number in range(90)
        ),
    )
    [rule] = configure([{"rule": "failure-rate", "by": "carrierName"}])
    facts = await alert_facts.gather(StatusReader(database), [rule], at(60), sinks={})
    searches = []
    newest = event_counts.newest

    def searched(*arguments: Any) -> Any:
        searches.append(arguments)
        return newest(*arguments)

    monkeypatch.setattr(event_counts, "newest", searched)
    sought = [(rule, f"c{number}") for number in range(3)]
    found = await alert_facts.offending(database, sought, facts, at(60), seconds=60)
    assert found == [[f"m{number}" for number in range(87 + place, 57 + place, -3)] for place in range(3)]
    assert len(searches) == 1
    # When the time is over, one batch was searched.
    [first, *_] = await alert_facts.offending(database, sought, facts, at(60), seconds=-1)
    assert first == []
    assert await alert_facts.offending(database, sought, facts, at(60), is_stopping=lambda: True) == [[], [], []]


async def test_senders_beyond_those_that_are_counted_are_known_to_be_missing(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_counts, "MOST_SENDERS", 1)
    rules = configure([{"rule": "awaiting-receipt", "by": "from"}])
    senders = event_counts.senders_of(rules)
    await process(database, callback([v2_event("m1")]))
    await event_counts.count(database, EPOCH, at(60), senders=senders)
    assert (await alert_facts.gather(StatusReader(database), rules, at(60), sinks={})).partial == frozenset()
    await process(database, callback([v2_event("m2", message={"from": "+15550007"})]))
    await event_counts.count(database, EPOCH, at(60), senders=senders)
    assert len((await alert_facts.gather(StatusReader(database), rules, at(60), sinks={})).partial) == 1


async def test_late_and_fallback_callbacks_name_their_messages(database: Database) -> None:
    late = [callback([v2_event(f"m{number}", time="2026-01-01T00:10:00Z")], received=600) for number in range(20)]
    await process(database, *late, callback([v2_event("b1")], received=610, route="fallback"))
    await write(database, update(ALERTING).values(watching_since_at=at(-7200), evaluated_at=at(660)))
    evaluation = await evaluated(database, at(660), {"rule": "slow-delivery"}, {"rule": "fallback-used"})
    assert evaluation.fired() == [("slow-delivery", None), ("fallback-used", None)]
    assert set(evaluation.named["slow-delivery"]) < {f"m{number}" for number in range(20)}
    assert evaluation.named["fallback-used"] == ["b1"]


async def test_messages_that_wait_too_long_are_named_and_old_ones_are_not(database: Database) -> None:
    hours = timedelta(hours=1)
    waiting = [
        rows.message(f"w{number}", status="sending", at=at(0), awaiting_receipt=True, application_id="a-1")
        for number in range(12)
    ]
    old = [rows.message(f"o{number}", status="sending", at=at(-90_000), awaiting_receipt=True) for number in range(50)]
    await rows.insert(database, *waiting, *old)
    table = {"rule": "awaiting-receipt", "by": "applicationId"}
    assert (await evaluated(database, at(0) + hours, table)).fired() == []
    evaluation = await evaluated(database, at(1) + hours, table)
    assert evaluation.fired() == [("awaiting-receipt", "a-1")]
    assert len(evaluation.named["awaiting-receipt"]) == 10
    assert (await evaluated(database, at(1) + 7 * hours, table)).fired() == []


async def test_quarantined_elements_are_counted_by_the_time_in_their_callbacks_ids(database: Database) -> None:
    def quarantined(seconds: float, number: int) -> Callback:
        event = v2_event(f"q{number}", "message-unheard-of")
        return callback([event], received=seconds, id=callback_id(seconds, number))

    await process(database, *(quarantined(-7200, 90 + number) for number in range(9)))
    assert (await evaluated(database, at(0), {"rule": "quarantine"})).fired() == []
    await process(database, *(quarantined(number, number) for number in range(6)))
    evaluation = await evaluated(database, at(60), {"rule": "quarantine"})
    assert evaluation.fired() == [("quarantine", None)]
    assert evaluation.named["quarantine"] == [f"q{number}" for number in reversed(range(6))]


async def test_all_elements_of_a_callback_are_counted_by_their_reasons(database: Database) -> None:
    checker = TagChecker(keys={"k1": "secret-secret-secret"}, policy=TagPolicy.REQUIRE)
    unknown = [v2_event(f"u{number}", "message-unheard-of") for number in range(150)]
    unsigned = [v2_event(f"t{number}", message={"tag": "order"}) for number in range(250)]
    forged = [v2_event("f1", message={"tag": sign("order", "another-secret-secret", kid="k1")})]
    many = callback([*unknown[:30], *unsigned, *unknown[30:]], received=10, id=callback_id(10))
    await process(database, many, callback(forged, received=20, id=callback_id(20)), checker=checker)
    facts = await alert_facts.gather(StatusReader(database), configure([{"rule": "quarantine"}]), at(60), sinks={})
    assert list(facts.quarantined.values()) == [{"unknown-type": 150, "tag-unsigned": 250, "tag-forged": 1}]
    evaluation = await evaluated(database, at(60), {"rule": "quarantine"}, {"rule": "forged-tags"})
    of_tags, of_types = sorted(evaluation.history, key=lambda change: change.alert.name)
    assert (of_tags.alert.evidence.value, of_types.alert.evidence.value) == (251, 150)
    assert "251 were quarantined for their tags" in of_tags.alert.summary
    # Of a callback a hundred elements are listed.
    assert evaluation.named["forged-tags"][0] == "f1"
    assert set(evaluation.named["forged-tags"][1:]) < {f"t{number}" for number in range(250)}
    assert set(evaluation.named["quarantine"]) < {f"u{number}" for number in range(30)}


@pytest.mark.parametrize("signed", [True, False])
async def test_messages_without_a_tag_are_named_where_all_senders_sign(database: Database, signed: bool) -> None:
    keys = {"k1": "secret-secret-secret"}
    checker = TagChecker(keys=keys, policy=TagPolicy.RECORD)
    tag = {"tag": sign("order", keys["k1"], kid="k1")} if signed else {}
    usual = [callback([v2_event(f"u{number}", message=tag)], received=-36_000 + number) for number in range(200)]
    await process(database, *usual, checker=checker)
    forged = {"tag": sign("order", "another-secret-secret", kid="k1")}
    found = [callback([v2_event("n1")], received=10), callback([v2_event("f1", message=forged)], received=20)]
    await process(database, *found, checker=checker)
    evaluation = await evaluated(database, at(60), {"rule": "forged-tags"})
    assert evaluation.named == {"forged-tags": ["f1", "n1"] if signed else ["f1"]}


async def test_waiting_callbacks_are_seen(database: Database) -> None:
    await append(database, callback([v2_event()], received=0))
    table = {"rule": "processor-behind", "for": "0s"}
    assert (await evaluated(database, at(30), table)).fired() == []
    assert (await evaluated(database, at(61), table)).fired() == [("processor-behind", None)]
    await drain(database)
    assert (await evaluated(database, at(120), table)).fired() == []


async def test_a_sink_that_is_down_or_behind_is_named(database: Database) -> None:
    await add_sinks(database, "crm", "removed")
    await process(database, callback([v2_event()], received=0))
    await write(database, update(SINKS).values(down_since_at=at(0), last_error="connection refused"))
    evaluation = await evaluated(
        database, at(16 * 60), {"rule": "sink-down", "for": "0s"}, {"rule": "sink-behind", "for": "0s"}
    )
    assert evaluation.fired() == [("sink-down", "crm"), ("sink-behind", "crm")]


async def test_events_that_wait_for_a_retry_are_counted_as_waiting_for_the_sink(database: Database) -> None:
    await add_sinks(database, "crm")
    entries = await append_events(database, life("m1"))
    position = entries[-1].position
    retry = {"sink": "crm", "position": position, "ordering_key": "v2:m1", "state": "due", "due_at": at(60)}
    await write(
        database, update(SINKS).values(cursor=position), insert(RETRIES).values(**retry, attempts=1, first_at=at(0))
    )
    evaluation = await evaluated(database, at(16 * 60), {"rule": "sink-behind", "for": "0s"})
    [alert] = evaluation.alerts.values()
    assert alert.evidence.volume == 1
    assert alert.summary.startswith("1 event waits for sink crm, for 1")


def letter(sink: str, entry: Any, *, died: float = 0) -> dict[str, Any]:
    return {
        "sink": sink,
        "position": entry.position,
        "event_id": entry.event.id,
        "ordering_key": entry.ordering_key,
        "reason": "refused",
        "detail": "",
        "attempts": 1,
        "first_at": at(died),
        "died_at": at(died),
    }


async def test_new_dead_letters_are_counted_by_sink(database: Database) -> None:
    await add_sinks(database, "crm")
    entries = await append_events(database, life("m1"))
    await write(database, insert(DEAD_LETTERS).values(**letter("crm", entries[-1])))
    evaluation = await evaluated(database, at(60), {"rule": "dead-letters"})
    assert (evaluation.fired(), evaluation.named) == ([("dead-letters", "crm")], {"dead-letters": ["m1"]})
    assert (await evaluated(database, at(3700), {"rule": "dead-letters"})).fired() == []


async def test_many_dead_letters_of_a_sink_do_not_hide_those_of_another(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alert_facts, "_MOST_DEAD_LETTERS", 2)
    await add_sinks(database, "crm", "erp")
    entries = (await append_events(database, [one for number in range(4) for one in life(f"m{number}")]))[:4]
    letters = [letter("crm", entries[0]), *(letter("erp", entry) for entry in entries)]
    await write(database, insert(DEAD_LETTERS).values(letters))
    for above, expected in ((0, {"crm": 1, "erp": 2}), (3, {"crm": 1, "erp": 4})):
        rules = configure([{"rule": "dead-letters", "above": above}])
        facts = await alert_facts.gather(
            StatusReader(database), rules, at(60), sinks={"crm": "memory", "erp": "memory"}
        )
        assert facts.dead_letters == {rules[0].window: expected}


async def test_dead_letters_of_alerts_bring_no_alert(database: Database) -> None:
    """A sink that refuses alert events would else get one about each of its refusals."""
    await add_sinks(database, "crm")
    rounds = Rounds(database)
    await rounds.round(0, finding(Condition.BREACHED))
    [entry] = await alert_entries(database)
    await write(database, insert(DEAD_LETTERS).values(**letter("crm", entry)), update(ALERTING).values(epoch=EPOCH))
    evaluation = await evaluated(database, at(60), {"rule": "dead-letters"})
    assert evaluation.fired() == []


async def test_history_begins_when_counting_began(database: Database) -> None:
    """An old event, imported or reprocessed, does not say that anything was counted in the weeks since."""
    now = at(40 * 86_400)
    rules = configure([{"rule": "receipts-stopped"}])
    await event_counts.note_round(database, EPOCH, now, EVERY)
    await process(database, callback([v2_event("o")], received=8 * 86_400))
    await event_counts.count(database, EPOCH, now)
    facts = await alert_facts.gather(StatusReader(database), rules, now, sinks={})
    assert facts.history_since == hour_of(now) + 1
    assert facts.history == {}


async def test_counts_after_now_are_in_no_window(database: Database) -> None:
    """The clock was set back."""
    await process(database, callback([v2_event("m1")], received=7200))
    await event_counts.count(database, EPOCH, at(7200))
    rules = configure([{"rule": "failure-rate"}, {"rule": "failure-rate", "name": "long", "window": "3h"}])
    facts = await alert_facts.gather(StatusReader(database), rules, at(0), sinks={})
    assert set(map(len, facts.cells.values())) == {0}


async def test_space_of_an_embedded_database_is_known(database: Database) -> None:
    facts = await alert_facts.gather(StatusReader(database), configure([{"rule": "storage"}]), at(0), sinks={})
    assert (facts.storage is not None) == database.is_sqlite


async def test_sinks_that_cannot_be_read_in_time_are_a_failure_and_not_health(postgres_url: str) -> None:
    """Rounds wait for one read, however many they are: each more would take a connection."""
    waiting = sql("SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'retries'::regclass")
    rules = configure([{"rule": type_} for type_ in ("sink-down", "sink-behind", "dead-letters")])
    async with opened(postgres_url) as database, opened(postgres_url) as other:
        await register(database, "crm", start="end", fingerprint="1")
        watch = LogWatch(database)
        async with other.writing() as connection:
            await connection.execute(sql("LOCK TABLE retries IN ACCESS EXCLUSIVE MODE"))
            for _ in range(2):
                facts = await watch.gather(rules, at(0), {"crm": "memory"})
                for rule in rules[:2]:
                    with pytest.raises(FactsUnreadable, match="what waits for the sinks: no answer within"):
                        watch.evaluate(rule, facts, at(0))
                [letters] = watch.evaluate(rules[2], facts, at(0))
                assert (letters.group, letters.condition) == ("crm", Condition.CLEAR)
            assert await connection.scalar(waiting) == 1
        await eventually(lambda: is_readable(watch, rules))


async def is_readable(watch: LogWatch, rules: Sequence[Rule]) -> bool:
    return (await watch.gather(rules, at(0), {"crm": "memory"})).sinks is not None


# --- refusals ---


class NoObserver:
    def rejected(self, reason: str) -> None: ...


async def test_refusals_of_two_processes_add_up_and_are_removed_after_a_day(database: Database) -> None:
    for _ in range(2):
        counter = Refusals(NoObserver(), lambda counts, now: refusals.add(database, counts, now), clock=lambda: at(30))
        for _ in range(12):
            counter.rejected("wrong-credentials")
            counter.rejected("no-credentials")
        await counter.stop()
    assert [tuple(row) for row in await select(database, "SELECT reason, requests FROM refusals")] == [
        ("wrong-credentials", 24)
    ]
    assert (await evaluated(database, at(60), {"rule": "wrong-credentials"})).fired() == [("wrong-credentials", None)]
    assert (await evaluated(database, at(1200), {"rule": "wrong-credentials"})).fired() == []
    await refusals.add(database, {(refusals.minute_of(at(100_000)), "method"): 1}, at(100_000))
    assert [row.reason for row in await select(database, "SELECT reason FROM refusals")] == ["method"]


async def test_what_a_clock_that_was_ahead_has_stored_is_in_no_window(database: Database) -> None:
    await register(database, "crm", start="end", fingerprint="1")
    entries = await append_events(database, life("m1"))
    async with database.writing() as connection:
        await connection.execute(insert(DEAD_LETTERS).values(**letter("crm", entries[-1], died=3600)))
    event = v2_event("q1", "message-unheard-of")
    await process(database, callback([event], received=3600, id=callback_id(3600)))
    await refusals.add(database, {(refusals.minute_of(at(3600)), "wrong-credentials"): 100}, at(3600))
    rules = configure([{"rule": type_, "above": 0} for type_ in ("dead-letters", "quarantine", "wrong-credentials")])
    for minutes, expected in ((0, Condition.CLEAR), (61, Condition.BREACHED)):
        facts = await alert_facts.gather(StatusReader(database), rules, at(60 * minutes), sinks=["crm"])
        found = {
            rule.name: [finding.condition for finding in evaluate(rule, facts, at(60 * minutes))] for rule in rules
        }
        assert found == {rule.name: [expected] for rule in rules}
    # The minutes to come are removed with the next refusal: they would be recent once these have come.
    await refusals.add(database, {(refusals.minute_of(at(0)), "wrong-credentials"): 1}, at(0))
    [row] = await select(database, "SELECT minute FROM refusals")
    assert row.minute == refusals.minute_of(at(0))


async def test_refusals_that_cannot_be_written_are_written_later() -> None:
    written: list[dict[tuple[int, str], int]] = []
    fails = True

    async def write(counts: Any, _: datetime) -> None:
        if fails:
            raise OSError("no database")
        written.append(dict(counts))

    counter = Refusals(NoObserver(), write, clock=lambda: at(0))
    counter.rejected("wrong-credentials")
    await counter.stop()
    counter.rejected("wrong-credentials")
    fails = False
    await counter.stop()
    assert written == [{(refusals.minute_of(at(0)), "wrong-credentials"): 2}]


async def test_a_web_process_counts_wrong_credentials_beside_the_request_path(database_url: str) -> None:
    settings = GivenSettings(
        database_url=database_url, worker="none", callback_credentials=["bandwidth:right-password"], api_tokens=["t"]
    )
    receiver = Receiver(settings)
    async with receiver.running(), client(receiver.app, headers={}) as web:
        for auth in (("bandwidth", "wrong"), ("bandwidth", "guess"), None):
            answer = await web.post("/callbacks/bandwidth/v2", json=[v2_event()], auth=auth)
            assert answer.status_code == 401
    async with opened(database_url) as database:
        counted = await select(database, "SELECT reason, sum(requests) AS requests FROM refusals GROUP BY reason")
    assert [(row.reason, int(row.requests)) for row in counted] == [("wrong-credentials", 2)]
