"""What each rule of alerts finds at its edges, and the settings of rules."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from receiver.alerts.rules import DEFAULTS, TYPES, configure
from receiver.domain.alert_facts import (
    Cell,
    Facts,
    Measure,
    ProcessorFacts,
    Receipts,
    SinkFacts,
    Span,
    StorageFacts,
    Waiting,
    hour_of,
    reference_hours,
)
from receiver.domain.alert_rules import FactsUnreadable, evaluate, expected_receipts, lower_bound
from receiver.domain.alerts import Alert, Condition, Finding, Rule, RuleType, Severity, Transition, advance
from receiver.errors import SettingsError
from receiver.settings import GivenSettings, dump, restore
from receiver.worker import configured_rules

# A Thursday.
NOW = datetime(2026, 3, 19, 10, 30, tzinfo=UTC)
LONG_AGO = NOW - timedelta(days=40)
GIB = 1024**3
BREACHED, NEAR, CLEAR, UNKNOWN = Condition.BREACHED, Condition.NEAR, Condition.CLEAR, Condition.UNKNOWN


def rule(type_: str, **fields: Any) -> Rule:
    [found] = configure([{"rule": type_, **fields}], sinks=["crm", "ops"])
    return found


def cell(measure: Measure, events: int, **values: Any) -> Cell:
    defaults = {
        "api": "v2",
        "direction": "out",
        "application_id": "a-1",
        "carrier_name": "T-Mobile",
        "sender": "",
        "code": None,
        "seconds": None,
    }
    return Cell(measure=measure, events=events, **(defaults | values))


def facts(given: Rule, now: Iterable[Cell] = (), before: Iterable[Cell] = (), **more: Any) -> Facts:
    span = Span(given.window, by_sender=given.by == "from" or "from" in given.where)
    return Facts(
        cells={span: list(now)},
        before={span: list(before)},
        watching_since=more.pop("watching_since", LONG_AGO),
        processor=more.pop("processor", ProcessorFacts(pending=0, oldest_seconds=0)),
        code_name=lambda api, code: {4470: "rejected-spam-detected"}.get(code, f"{api}-{code}"),
        category=lambda _, code: "client" if code < 4700 else "carrier-client",
        **more,
    )


def one(given: Rule, known: Facts) -> Finding:
    [found] = evaluate(given, known, NOW)
    return found


def outcomes(failed: int, delivered: int, **values: Any) -> list[Cell]:
    code = values.pop("code", 4720)
    return [cell(Measure.FAILED, failed, code=code, **values), cell(Measure.DELIVERED, delivered, **values)]


# --- failure-rate ---


def test_failure_rate_says_what_failed_and_what_is_usual() -> None:
    given = rule("failure-rate")
    found = one(given, facts(given, outcomes(30, 10), outcomes(20, 980)))
    assert found.condition is BREACHED
    assert found.summary == (
        "30 of 40 deliveries failed within 15 minutes (75 %); in the 24 hours before it was 2 %. "
        "30 of them ended with 4720 (v2-4720)."
    )
    assert (found.evidence.value, found.evidence.threshold, found.evidence.volume, found.evidence.before) == (
        0.75,
        0.2,
        40,
        0.02,
    )


@pytest.mark.parametrize(
    ("failed", "delivered", "condition"),
    [
        (19, 0, UNKNOWN),
        (20, 0, BREACHED),
        # Chance: 35 % of twenty may be 20 % in the long run.
        (7, 13, NEAR),
        (350, 650, BREACHED),
        (200, 800, NEAR),
        (160, 840, CLEAR),
        (161, 839, NEAR),
        (0, 20, CLEAR),
        (0, 0, UNKNOWN),
    ],
)
def test_failure_rate_at_its_edges(failed: int, delivered: int, condition: Condition) -> None:
    given = rule("failure-rate")
    assert one(given, facts(given, outcomes(failed, delivered))).condition is condition


def test_failure_rate_counts_unconfirmed_deliveries_as_final() -> None:
    given = rule("failure-rate")
    found = one(given, facts(given, [*outcomes(10, 10), cell(Measure.UNCONFIRMED, 80, code=9902)]))
    assert (found.evidence.value, found.evidence.volume) == (0.1, 100)


def test_failure_rate_by_carrier_has_a_finding_for_each() -> None:
    given = rule("failure-rate", by="carrierName")
    known = facts(
        given, [*outcomes(40, 10), *outcomes(1, 49, carrier_name="Verizon"), *outcomes(1, 2, carrier_name="")]
    )
    found = {finding.group: finding.condition for finding in evaluate(given, known, NOW)}
    assert found == {"T-Mobile": BREACHED, "Verizon": CLEAR, "(none)": UNKNOWN}


def test_a_carrier_with_the_name_of_a_group_of_ours_has_an_alert_of_its_own() -> None:
    given = rule("failure-rate", by="carrierName")
    cells = [*outcomes(1, 99), *outcomes(40, 10, carrier_name="(others)"), *outcomes(1, 49, carrier_name="(none)")]
    open_alerts: dict[str, Alert] = {}
    history: list[tuple[Transition, str | None]] = []
    for minutes in range(15):
        now = NOW + timedelta(minutes=minutes)
        findings = {given.name: evaluate(given, facts(given, cells), now)}
        for change in advance([given], open_alerts.values(), findings, now, lambda: "1"):
            open_alerts[change.alert.id] = change.alert
            history.append((change.transition, change.alert.group))
    assert history == [(Transition.FIRED, '"(others)"')]
    assert {finding.group for finding in findings[given.name]} == {"T-Mobile", '"(others)"', '"(none)"'}


def test_failure_rate_by_category_is_a_share_of_all_deliveries() -> None:
    given = rule("failure-rate", by="category")
    known = facts(given, [*outcomes(40, 50), cell(Measure.FAILED, 10, code=4470)])
    found = {finding.group: finding.evidence.value for finding in evaluate(given, known, NOW)}
    assert found == {"carrier-client": 0.4, "client": 0.1}


@pytest.mark.parametrize("when", ["before", "around"])
@pytest.mark.parametrize("by", ["deliveryCode", "category"])
def test_failure_rate_by_code_is_clear_once_nothing_fails(by: str, when: str) -> None:
    given = rule("failure-rate", by=by)
    known = facts(given, [cell(Measure.DELIVERED, 5000)])
    over = {Span(given.window, by_sender=False): outcomes(300, 100)}
    found = one(given, replace(known, **{when: over}))
    assert (found.condition, found.evidence.value, found.evidence.volume) == (CLEAR, 0, 5000)


def test_number_of_a_group_is_clear_once_nothing_of_it_comes() -> None:
    given = rule("contradictions", by="applicationId")
    over = {Span(given.window, by_sender=False): [cell(Measure.CONTRADICTED, 50)]}
    found = one(given, replace(facts(given), around=over))
    assert (found.group, found.condition, found.evidence.value) == ("a-1", CLEAR, 0)


def test_failure_rate_of_some_codes_leaves_the_volume_whole() -> None:
    given = rule("failure-rate", where={"deliveryCode": [4470]})
    found = one(given, facts(given, [*outcomes(40, 50), cell(Measure.FAILED, 10, code=4470)]))
    assert (found.evidence.value, found.evidence.volume) == (0.1, 100)


def test_where_leaves_out_other_values() -> None:
    given = rule("failure-rate", where={"applicationId": ["a-2", "a-3"], "from": "+15550001"})
    cells = [
        *outcomes(40, 10),
        *outcomes(1, 29, application_id="a-2", sender="+15550001"),
        *outcomes(40, 0, application_id="a-2", sender="+15550002"),
    ]
    assert one(given, facts(given, cells)).evidence.volume == 30


@given(st.integers(0, 500), st.integers(0, 500))
def test_more_failures_never_make_it_better(failed: int, delivered: int) -> None:
    given = rule("failure-rate")
    rank = {CLEAR: 0, NEAR: 1, BREACHED: 2}
    before = one(given, facts(given, outcomes(failed, delivered))).condition
    after = one(given, facts(given, outcomes(failed + 1, delivered))).condition
    if UNKNOWN not in (before, after):
        assert rank[after] >= rank[before]


@given(st.integers(0, 1000), st.integers(1, 1000))
def test_the_lower_bound_is_below_the_share(part: int, rest: int) -> None:
    volume = part + rest
    assert 0 <= lower_bound(part, volume) <= part / volume + 1e-9
    assert lower_bound(part * 100, volume * 100) >= lower_bound(part, volume) - 1e-9


# --- code-spike ---


@pytest.mark.parametrize(
    ("now", "before", "condition"),
    [
        ((11, 100), (0, 0), BREACHED),
        ((10, 100), (0, 0), NEAR),
        ((8, 100), (0, 0), CLEAR),
        # As before: 96 quarters of an hour with eleven each.
        ((11, 100), (11 * 96, 100 * 96), CLEAR),
        ((11, 10_000), (0, 0), NEAR),
        # Four times as many of as much.
        ((80, 920), (20 * 96, 980 * 96), BREACHED),
        ((50, 950), (20 * 96, 980 * 96), NEAR),
    ],
)
def test_code_spike_at_its_edges(now: tuple[int, int], before: tuple[int, int], condition: Condition) -> None:
    given = rule("code-spike")
    known = facts(given, outcomes(*now, code=4470), outcomes(*before, code=4470) if any(before) else [])
    assert one(given, known).condition is condition


def test_code_spike_looks_at_spam_and_blocked_codes_by_default() -> None:
    given = rule("code-spike")
    assert one(given, facts(given, outcomes(100, 100, code=4720))).evidence.value == 0
    found = one(given, facts(given, outcomes(100, 100, code=4470)))
    assert "100 of them ended with 4470 (rejected-spam-detected)." in found.summary


def test_code_spike_by_code_names_the_code() -> None:
    given = rule("code-spike", by="deliveryCode", codes=[4470, 4720])
    cells = [*outcomes(100, 400, code=4470), cell(Measure.FAILED, 5, code=4720)]
    found = {finding.group: finding.condition for finding in evaluate(given, facts(given, cells), NOW)}
    assert found == {"4470": BREACHED, "4720": CLEAR}


# --- slow-delivery ---


def timed(quick: int, slow: int, late: int = 0) -> list[Cell]:
    numbers = ((4.0, quick), (700.0, slow), (10_000.0, late))
    return [cell(Measure.DELIVERED, number, seconds=seconds) for seconds, number in numbers]


@pytest.mark.parametrize(
    ("cells", "condition"),
    [
        (timed(10, 9), UNKNOWN),
        (timed(10, 30), BREACHED),
        (timed(70, 30), NEAR),
        (timed(90, 10), CLEAR),
        # Those that took hours were sent at a busier time.
        (timed(100, 0, 300), CLEAR),
    ],
)
def test_slow_delivery_at_its_edges(cells: list[Cell], condition: Condition) -> None:
    given = rule("slow-delivery")
    assert one(given, facts(given, cells)).condition is condition


def test_slow_delivery_is_unknown_while_callbacks_wait() -> None:
    given = rule("slow-delivery")
    known = facts(given, timed(0, 100), processor=ProcessorFacts(pending=9, oldest_seconds=61))
    assert one(given, known).condition is UNKNOWN


# --- receipts-stopped ---


def history(given: Rule, hourly: int) -> dict[str, Any]:
    hours = dict.fromkeys(reference_hours(NOW, given.window), hourly)
    return {"history": {Receipts(Measure.RECEIPT, "v2", "out", "a-1"): hours}, "history_since": hour_of(LONG_AGO)}


@pytest.mark.parametrize(
    ("came", "hourly", "condition"),
    [
        (0, 100, BREACHED),
        (0, 20, BREACHED),
        (0, 19, UNKNOWN),
        (0, 0, UNKNOWN),
        (1, 100, NEAR),
        (20, 100, CLEAR),
        (1, 0, CLEAR),
    ],
)
def test_receipts_stopped_at_its_edges(came: int, hourly: int, condition: Condition) -> None:
    given = rule("receipts-stopped")
    cells = [cell(Measure.RECEIPT, came)] if came else []
    found = one(given, facts(given, cells, **history(given, hourly)))
    assert (found.group, found.condition) == ("a-1", condition)


def test_receipts_stopped_needs_somebody_who_watched() -> None:
    given = rule("receipts-stopped")
    for changes in (
        {"watching_since": NOW - timedelta(minutes=59)},
        {"watching_since": None},
        {"processor": ProcessorFacts(pending=9, oldest_seconds=61)},
        {"processor": ProcessorFacts(pending=9, oldest_seconds=0, failing_since=NOW)},
        {"processor": None},
    ):
        assert one(given, facts(given, **history(given, 100), **changes)).condition is UNKNOWN
    since = NOW - timedelta(hours=1)
    assert one(given, facts(given, **history(given, 100), watching_since=since)).condition is BREACHED


def test_receipts_of_inbound_messages_are_another_matter() -> None:
    given = rule("receipts-stopped", where={"direction": "in"})
    assert evaluate(given, facts(given, **history(given, 100)), NOW) == []


WEEK = 7 * 24


def hours_of(**counts: int) -> dict[int, int]:
    """Counts of the window's hours and those beside, `w1` for a week before and `d1` for a day before."""
    found: dict[int, int] = {}
    for name, number in counts.items():
        shift = int(name[1:]) * (WEEK if name[0] == "w" else 24)
        found |= {hour_of(NOW) + hour - shift: number for hour in range(-2, 2)}
    return found


@pytest.mark.parametrize(
    ("hours", "since", "expected"),
    [
        (hours_of(w1=90, w2=70, w3=80, w4=100), 5 * WEEK, 80),
        # A holiday, and a week in which we were not there.
        (hours_of(w1=90, w2=0, w3=80, w4=100), 5 * WEEK, 80),
        (hours_of(w1=90, w3=80), 5 * WEEK, 0),
        # Two weeks and neighbouring working days; Saturday and Sunday say nothing of a Thursday.
        (hours_of(w1=90, w2=70, d1=80, d2=60, d3=75, d6=85), 2 * WEEK + 2, 70),
        # Of three days alone the lowest counts: campaigns on two of three days happen by chance.
        (hours_of(d1=80, d2=60, d3=75), 74, 60),
        (hours_of(d1=80, d2=60, d3=75, d6=85), 150, 75),
        (hours_of(d1=80, d2=60), 50, None),
        ({}, 0, None),
    ],
)
def test_expected_receipts(hours: dict[int, int], since: int, expected: float | None) -> None:
    assert expected_receipts(hours, hour_of(NOW) - since, NOW, timedelta(hours=1)) == expected


@pytest.mark.parametrize(("hours", "busy"), [(1, 1), (3, 3)])
def test_the_quietest_hour_of_a_window_counts(hours: int, busy: int) -> None:
    # A campaign within some of the hours: the rest of them is silent every week.
    received = {hour_of(NOW) - hour - week * WEEK: 10_000 for week in range(1, 5) for hour in range(busy)}
    assert expected_receipts(received, hour_of(LONG_AGO), NOW, timedelta(hours=hours)) == 0


@pytest.mark.parametrize("change", [-1, 1])
@pytest.mark.parametrize("minutes", [15, 30, 60, 90, 120, 180])
def test_expected_receipts_after_a_change_of_summer_time(minutes: int, change: int) -> None:
    """Working hours from 9:20 to 16:40 begin and end an hour earlier or later than in the weeks before."""
    monday, window = NOW.replace(hour=0, minute=0) - timedelta(days=3), timedelta(minutes=minutes)
    begins, ends = (monday + timedelta(hours=hour, minutes=minute) for hour, minute in ((9, 20), (16, 40)))
    received = {hour_of(monday) + hour - week * WEEK: 1000 for hour in range(9, 17) for week in range(1, 5)}
    seen = []
    for minute in range(24 * 60):
        now = monday + timedelta(minutes=minute)
        expected = expected_receipts(received, hour_of(LONG_AGO), now, window)
        if now <= begins + timedelta(hours=change) or now - window >= ends + timedelta(hours=change):
            assert expected == 0
        seen.append(expected)
    assert max(seen) == 1000 * minutes / 60


# --- awaiting-receipt ---


@pytest.mark.parametrize(
    ("waiting", "final", "condition"),
    [(11, 20, BREACHED), (10, 20, NEAR), (8, 20, CLEAR), (11, 1000, CLEAR), (200, 1000, BREACHED), (100, 1000, NEAR)],
)
def test_awaiting_receipt_at_its_edges(waiting: int, final: int, condition: Condition) -> None:
    given = rule("awaiting-receipt")
    known = facts(given, outcomes(0, final), waiting={given.name: [Waiting("v2", "a-1", "+1555", waiting)]})
    assert one(given, known).condition is condition


@pytest.mark.parametrize(
    "behind",
    [
        {"processor": ProcessorFacts(pending=100_000, oldest_seconds=7200)},
        {"processor": ProcessorFacts(pending=1, oldest_seconds=1, failing_since=NOW)},
        {"processor": None},
        {"watching_since": None},
    ],
)
def test_messages_whose_receipts_may_wait_to_be_processed_are_no_evidence(behind: dict[str, Any]) -> None:
    given = rule("awaiting-receipt")
    waiting = {given.name: [Waiting("v2", "a-1", "+1", 500)]}
    assert one(given, facts(given, waiting=waiting)).condition is BREACHED
    assert one(given, facts(given, waiting=waiting, **behind)).condition is UNKNOWN
    few = {given.name: [Waiting("v2", "a-1", "+1", 1)]}
    assert one(given, facts(given, waiting=few, **behind)).condition is CLEAR


def test_a_sender_is_not_compared_with_a_part_of_its_deliveries() -> None:
    given = rule("awaiting-receipt", by="from")
    known = facts(given, waiting={given.name: [Waiting("v2", "a-1", "+1", 500)]})
    assert one(given, known).condition is BREACHED
    assert one(given, replace(known, partial=frozenset(known.cells))).condition is UNKNOWN


def test_awaiting_receipt_by_application() -> None:
    given = rule("awaiting-receipt", by="applicationId")
    rows = [Waiting("v2", "a-1", "+1555", 50), Waiting("v2", "a-2", "+1555", 1)]
    known = facts(given, outcomes(0, 100), waiting={given.name: rows})
    found = {finding.group: finding.condition for finding in evaluate(given, known, NOW)}
    assert found == {"a-1": BREACHED, "a-2": CLEAR}


# --- numbers ---


def test_contradictions_are_rare_even_at_a_large_volume() -> None:
    given = rule("contradictions")
    few = [cell(Measure.CONTRADICTED, 11)]
    assert one(given, facts(given, [*few, *outcomes(0, 100)])).condition is BREACHED
    assert one(given, facts(given, [*few, *outcomes(0, 10_000)])).condition is CLEAR


def test_one_forged_tag_is_an_alert() -> None:
    given = rule("forged-tags")
    assert one(given, facts(given)).condition is CLEAR
    assert one(given, facts(given, [cell(Measure.FORGED, 1)])).condition is BREACHED


def test_unsigned_tags_count_where_all_others_are_signed() -> None:
    given = rule("forged-tags")
    cells = [cell(Measure.UNSIGNED, 2), cell(Measure.MISSING, 1), cell(Measure.RECEIPT, 3)]
    usual = [cell(Measure.RECEIPT, 1000)]
    assert one(given, facts(given, cells, usual)).evidence.value == 3
    assert one(given, facts(given, cells, [*usual, cell(Measure.MISSING, 500)])).condition is CLEAR
    assert one(given, facts(given, cells)).condition is CLEAR


def test_events_quarantined_for_their_tags_are_forged_ones() -> None:
    tags, quarantine = rule("forged-tags"), rule("quarantine")
    reasons = {"tag-forged": 3, "unreadable": 6}
    known = facts(tags, quarantined={tags.window: reasons})
    assert one(tags, known).evidence.value == 3
    assert one(quarantine, known).summary == "6 elements were quarantined within 1 hour, most of them as unreadable."


def test_a_repeated_callback_by_the_fallback_route_is_seen() -> None:
    given = rule("fallback-used")
    recent = {"v2/primary": NOW, "v1/fallback": NOW - timedelta(minutes=14)}
    assert one(given, facts(given, last_callbacks=recent)).condition is BREACHED
    old = {"v1/fallback": NOW - timedelta(minutes=16)}
    assert one(given, facts(given, last_callbacks=old)).condition is CLEAR


@pytest.mark.parametrize(("requests", "condition"), [(21, BREACHED), (20, NEAR), (16, CLEAR)])
def test_wrong_credentials_at_its_edges(requests: int, condition: Condition) -> None:
    given = rule("wrong-credentials")
    refused = {given.window: {"wrong-credentials": requests, "method": 1000}}
    assert one(given, facts(given, refused=refused)).condition is condition


# --- the installation ---


@pytest.mark.parametrize(("seconds", "condition"), [(61, BREACHED), (60, NEAR), (48, CLEAR)])
def test_processor_behind_at_its_edges(seconds: float, condition: Condition) -> None:
    given = rule("processor-behind")
    known = facts(given, processor=ProcessorFacts(pending=10, oldest_seconds=seconds))
    assert one(given, known).condition is condition


def test_a_stuck_processor_is_an_alert_at_once() -> None:
    given = rule("processor-behind")
    stuck = ProcessorFacts(pending=1, oldest_seconds=5, failing_since=NOW - timedelta(seconds=5), error="no space")
    found = one(given, facts(given, processor=stuck))
    assert (found.condition, found.summary) == (BREACHED, "Callbacks cannot be processed for 5 seconds: no space.")
    assert one(given, facts(given, processor=None)).condition is UNKNOWN
    with pytest.raises(FactsUnreadable, match="journal: no answer"):
        evaluate(given, facts(given, processor=None, unreadable={"journal": "no answer within 1.5 s"}), NOW)


def test_sinks_are_found_by_name() -> None:
    down, behind, letters = rule("sink-down"), rule("sink-behind", where={"sink": "crm"}), rule("dead-letters")
    sinks = [
        SinkFacts(name="crm", down_since=NOW - timedelta(minutes=6), last_error="refused", oldest_seconds=901),
        SinkFacts(name="archive", paused=True, down_since=NOW, oldest_seconds=1000),
    ]
    known = facts(down, sinks=sinks, dead_letters={letters.window: {"crm": 0, "archive": 2}})
    assert [(one.group, one.condition) for one in evaluate(down, known, NOW)] == [("crm", BREACHED), ("archive", CLEAR)]
    assert evaluate(down, known, NOW)[0].summary == "Sink crm is down for 6 minutes: refused."
    assert [(one.group, one.condition) for one in evaluate(behind, known, NOW)] == [("crm", BREACHED)]
    assert [(one.group, one.evidence.value) for one in evaluate(letters, known, NOW)] == [("crm", 0), ("archive", 2)]


@pytest.mark.parametrize(
    ("free", "wal", "condition"),
    [(9, 0, BREACHED), (11, 0, CLEAR), (60, 1.1, BREACHED), (60, 0.85, CLEAR), (60, 0.88, NEAR)],
)
def test_storage_at_its_edges(free: float, wal: float, condition: Condition) -> None:
    given = rule("storage")
    space = StorageFacts(disk_bytes=100 * GIB, free_bytes=round(free * GIB), wal_bytes=round(wal * GIB))
    assert one(given, facts(given, storage=space)).condition is condition


def test_the_space_of_a_server_is_not_known() -> None:
    assert one(rule("storage"), Facts()).condition is UNKNOWN


# --- settings ---


def test_without_rules_one_of_each_type_is_in_force() -> None:
    rules = configure([])
    evaluated = [type_ for type_ in TYPES if type_ is not RuleType.EXTERNAL]
    assert [rule.type for rule in rules] == evaluated == [RuleType(table["rule"]) for table in DEFAULTS]
    assert len({rule.name for rule in rules}) == len(rules)


def test_a_rule_takes_the_defaults_of_its_type_and_its_own_fields() -> None:
    found = rule(
        "failure-rate",
        name="t-mobile blocks",
        window="5m",
        above=0.5,
        by="carrierName",
        where={"applicationId": "a-1", "deliveryCode": 4720, "from": ["+15550001"]},
        severity="critical",
        to="ops",
        **{"for": "2m"},
    )
    assert found == Rule(
        type=RuleType.FAILURE_RATE,
        name="t-mobile blocks",
        window=timedelta(minutes=5),
        above=0.5,
        minimum=20,
        by="carrierName",
        where={
            "applicationId": frozenset({"a-1"}),
            "deliveryCode": frozenset({"4720"}),
            "from": frozenset({"15550001"}),
        },
        holds_for=timedelta(minutes=2),
        severity=Severity.CRITICAL,
        to=("ops",),
    )


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"rule": "failurerate"}, "failurerate: rule: there is no 'failurerate'; there are failure-rate, "),
        ({"rule": "failurerate"}, "; did you mean failure-rate?"),
        ({"rule": "internal"}, "internal: rule: there is no 'internal'"),
        ({"rule": "storage", "abov": 1}, "storage: abov is not a field of a rule; did you mean above?"),
        ({"name": "x"}, "x: rule: Field required"),
        ({}, "number 1: rule: Field required"),
        ({"rule": "storage", "above": 90}, "storage: above: must be a share below 1"),
        ({"rule": "storage", "by": "api"}, "storage: by: storage has no dimensions"),
        ({"rule": "storage", "minimum": 5}, "storage: minimum: storage has no minimum"),
        ({"rule": "storage", "longer_than": "5m"}, "storage: longer_than: storage has no longer_than"),
        ({"rule": "storage", "codes": [4470]}, "storage: codes: storage has no codes"),
        ({"rule": "code-spike", "window": "soon"}, "code-spike: window: must be a duration such as"),
        ({"rule": "code-spike", "window": "25h"}, "code-spike: window: "),
        ({"rule": "failure-rate", "by": "carrier"}, "failure-rate: by: carrier is no dimension of failure-rate; "),
        ({"rule": "failure-rate", "where": {"carrierNam": "x"}}, "; did you mean carrierName?"),
        ({"rule": "failure-rate", "where": {"api": "v3"}}, "where.api: there is no api v3; there are v1, v2"),
        ({"rule": "failure-rate", "where": {"deliveryCode": "x"}}, "where.deliveryCode: x is not a code"),
        ({"rule": "sink-down", "where": {"sink": "crn"}}, "where.sink: there is no sink crn; there are crm, ops; did"),
        ({"rule": "sink-down", "where": {"sink": ["ops", "crn"]}}, "; did you mean crm?"),
        ({"rule": "code-spike", "where": {"from": "++"}}, "where.from: ++: must be a telephone number, a short code"),
        ({"rule": "failure-rate", "where": {"category": "nope"}}, "where.category: there is no category nope; there"),
        ({"rule": "failure-rate", "where": {"category": "carier-client"}}, "; did you mean carrier-client?"),
        ({"rule": "failure-rate", "where": {"direction": "in"}}, "failure-rate looks at outbound messages alone"),
        ({"rule": "contradictions", "where": {"direction": "in"}}, "contradictions looks at outbound messages alone"),
        (
            {"rule": "fallback-used", "by": "from", "where": {"direction": "in"}},
            "where.direction: inbound messages are not counted by sender",
        ),
        ({"rule": "code-spike", "codes": [99999]}, "codes: 99999 is no delivery code of v1 or v2"),
        ({"rule": "code-spike", "codes": [-1]}, "codes.0: Input should be greater than or equal to 0"),
        ({"rule": "failure-rate", "where": {"deliveryCode": 10000}}, "deliveryCode: 10000 is no delivery code"),
        (
            {"rule": "failure-rate", "where": {"deliveryCode": 4720, "api": "v1"}},
            "where.deliveryCode: 4720 is no delivery code of v1",
        ),
        ({"rule": "code-spike", "where": {"deliveryCode": 4720}}, "where: no delivery code meets codes, deliveryCode"),
        ({"rule": "code-spike", "codes": [4720], "where": {"category": "service"}}, "where: no delivery code meets"),
    ],
)
def test_a_wrong_rule_is_named_with_its_field(table: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingsError) as raised:
        configure([table], sinks=["crm", "ops"])
    assert str(raised.value).startswith("RECEIVER_ALERTS: ")
    assert problem in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("where", "compared"),
    [
        ({"from": "919-555-1234"}, {"from": {"19195551234"}}),
        ({"from": "(919) 555-1234"}, {"from": {"19195551234"}}),
        ({"from": 9195551234}, {"from": {"19195551234"}}),
        ({"from": ["+49 30 1234567", 78503, "ACME"]}, {"from": {"49301234567", "78503", "ACME"}}),
        ({"deliveryCode": ["04720", 4999, 720]}, {"deliveryCode": {"4720", "4999", "720"}}),
        ({"carrierName": ["Carrier of nobody", "(none)"]}, {"carrierName": {"Carrier of nobody", ""}}),
        ({"direction": ["in", "out"], "category": "unknown"}, {"direction": {"in", "out"}, "category": {"unknown"}}),
    ],
)
def test_values_of_where_are_compared_as_events_have_them(where: dict[str, Any], compared: dict[str, set[str]]) -> None:
    assert rule("failure-rate", where=where).where == compared


def test_numbers_of_where_belong_to_the_country_of_the_settings() -> None:
    table = {"rule": "failure-rate", "where": {"from": "030 1234567"}}
    assert configure([table], country_code="49")[0].where == {"from": {"49301234567"}}
    settings = GivenSettings(alerts=[table], country_code="49")
    assert configured_rules(settings)[0].where == {"from": {"49301234567"}}


def test_sinks_of_where_are_those_of_the_settings() -> None:
    sink = {"name": "crm", "type": "memory"}
    table = {"rule": "sink-down", "where": {"sink": "crm"}}
    assert configured_rules(GivenSettings(alerts=[table], sinks=[sink]))[0].where == {"sink": {"crm"}}
    with pytest.raises(SettingsError, match=r"where\.sink: there is no sink crm$"):
        configured_rules(GivenSettings(alerts=[table]))


WITHOUT_EFFECT = {
    "processor-behind": {"window", "above", "minimum", "codes"},
    "sink-down": {"window", "above", "minimum", "longer_than", "codes"},
    "sink-behind": {"window", "above", "minimum", "codes"},
    "storage": {"window", "minimum", "longer_than", "codes"},
    "external": {"window", "above", "minimum", "longer_than", "codes", "for", "severity"},
    "failure-rate": {"longer_than", "codes"},
    "quarantine": {"minimum", "longer_than", "codes"},
}
FIELDS = {
    "window": "5m",
    "above": 0.5,
    "minimum": 5,
    "longer_than": "5m",
    "codes": [4470],
    "for": "1m",
    "severity": "info",
}


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("type_", WITHOUT_EFFECT)
def test_field_without_effect_is_refused(type_: str, field: str) -> None:
    if field in WITHOUT_EFFECT[type_]:
        with pytest.raises(SettingsError, match=f"RECEIVER_ALERTS: {type_}: {field}: {type_} has no {field}"):
            rule(type_, **{field: FIELDS[field]})
    else:
        rule(type_, **{field: FIELDS[field]})


def test_rules_have_different_names() -> None:
    with pytest.raises(SettingsError, match="storage: name: 2 rules are called so"):
        configure([{"rule": "storage"}, {"rule": "storage", "above": 0.5}])


def test_the_settings_of_alerts_reach_the_worker() -> None:
    given = GivenSettings(alerts=[{"rule": "storage"}], alerts_every="15s")
    assert restore(dump(given)).alerts == [{"rule": "storage"}]
    assert restore(dump(given)).alerts_every == timedelta(seconds=15)
    assert GivenSettings().alerts_every == timedelta(seconds=30)


def test_alerts_are_evaluated_at_most_every_second_or_not_at_all() -> None:
    assert GivenSettings(alerts_every="1s").alerts_every == timedelta(seconds=1)
    assert GivenSettings(alerts_every="0").alerts_every == timedelta(0)
    with pytest.raises(ValidationError, match="at least 1s"):
        GivenSettings(alerts_every="1ms")
