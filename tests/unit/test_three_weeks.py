"""Three weeks of traffic under the default rules: no false alarm; and each trouble fires once, in time, by its name."""

from copy import deepcopy
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from receiver.alerts.rules import configure
from receiver.domain.alert_facts import Measure
from receiver.domain.alerts import RuleType, Transition
from tests.alert_traffic import HEALTHY, MINUTE, MONDAY, Simulation, Traffic, Trouble

DAY, HOUR = timedelta(days=1), timedelta(hours=1)


def three_quiet_weeks(simulation: Simulation, slot: timedelta) -> None:
    """Days, nights, weekends and campaigns, with restarts, a takeover, and an outage of the receiver."""
    simulation.run(MONDAY + 4 * DAY + 11 * HOUR, slot=slot)
    # A restart: two rounds are left out.
    simulation.run(simulation.now + 2 * slot, slot=slot, evaluates=False)
    simulation.run(MONDAY + 9 * DAY + 10 * HOUR, slot=slot)
    # Planned: at a busy hour.
    simulation.outage(3 * HOUR, slot)
    simulation.run(MONDAY + 15 * DAY + 14 * HOUR, slot=slot)
    # A takeover after the worker was lost: nobody evaluated for ten minutes, and nothing was lost.
    simulation.run(simulation.now + timedelta(minutes=10), slot=slot, evaluates=False)
    simulation.watching_since = simulation.now
    simulation.run(MONDAY + 21 * DAY, slot=slot)


@pytest.mark.parametrize(
    ("seed", "minutes"),
    [(1, 15), *(pytest.param(seed, 3, marks=pytest.mark.slow) for seed in (2, 3, 4))],
)
def test_three_weeks_of_traffic_bring_no_false_alarm(seed: int, minutes: int) -> None:
    simulation = Simulation(configure([]), seed=seed)
    three_quiet_weeks(simulation, minutes * MINUTE)
    said = [f"{moment:%a %d. %H:%M} {alert.summary}" for moment, alert in simulation.transitions(Transition.FIRED)]
    assert said == []
    assert simulation.rounds > 19 * 24 * 60 // minutes


# --- troubles ---

TEN = MONDAY + 17 * DAY + 10 * HOUR


@pytest.fixture(scope="module")
def ordinary() -> Simulation:
    """A Thursday at ten in the third week, with the history of the weeks before."""
    simulation = Simulation(configure([]), seed=11)
    simulation.run(TEN - 8 * HOUR, slot=HOUR, evaluates=False)
    simulation.run(TEN - timedelta(minutes=10), slot=5 * MINUTE, evaluates=False)
    simulation.run(TEN)
    assert not simulation.history
    return simulation


def failing(carrier: str, share: float, code: int) -> Trouble:
    return lambda traffic: traffic.failing.update({carrier: (share, code)})


def many(measure: Measure, hourly: float) -> Trouble:
    return lambda traffic: traffic.extra.update({measure: hourly})


def state(name: str, value: Any) -> Trouble:
    return lambda traffic: traffic.states.update({name: value})


def number(name: str, each_minute: int) -> Trouble:
    return lambda traffic: setattr(traffic, name, each_minute)


BEHIND = replace(HEALTHY["processor"], oldest_seconds=120.0, pending=900)
STUCK = replace(HEALTHY["processor"], failing_since=TEN, error="the disk is full")
DOWN = (replace(HEALTHY["sinks"][0], down_since=TEN, last_error="refused"), HEALTHY["sinks"][1])
LATE = (HEALTHY["sinks"][0], replace(HEALTHY["sinks"][1], oldest_seconds=1000.0, waiting=4000))
FULL = replace(HEALTHY["storage"], free_bytes=4 * 1024**3)
LARGE_WAL = replace(HEALTHY["storage"], wal_bytes=2 * 1024**3)

TROUBLES: dict[str, tuple[RuleType, str | None, Trouble]] = {
    "a carrier blocks": (RuleType.FAILURE_RATE, "T-Mobile", failing("T-Mobile", 0.6, 4720)),
    "a carrier rejects": (RuleType.FAILURE_RATE, "AT&T", failing("AT&T", 0.45, 4750)),
    "spam is detected": (RuleType.CODE_SPIKE, None, failing("Verizon", 0.12, 4770)),
    "a carrier is slow": (RuleType.SLOW_DELIVERY, "Verizon", lambda traffic: traffic.slow.add("Verizon")),
    "an application's receipts stop": (RuleType.RECEIPTS_STOPPED, "bank", lambda traffic: traffic.silent.add("bank")),
    "an application sends nothing": (RuleType.RECEIPTS_STOPPED, "clinic", lambda traffic: traffic.dead.add("clinic")),
    "tags are forged": (RuleType.FORGED_TAGS, None, many(Measure.FORGED, 30)),
    "contradictions": (RuleType.CONTRADICTIONS, None, many(Measure.CONTRADICTED, 60)),
    "the fallback route is used": (RuleType.FALLBACK_USED, None, many(Measure.FALLBACK, 600)),
    "quarantine grows": (RuleType.QUARANTINE, None, number("quarantined", 1)),
    "wrong credentials": (RuleType.WRONG_CREDENTIALS, None, number("refused", 5)),
    "dead letters": (RuleType.DEAD_LETTERS, "crm", number("dead_letters", 1)),
    "the processor is behind": (RuleType.PROCESSOR_BEHIND, None, state("processor", BEHIND)),
    "the processor is stuck": (RuleType.PROCESSOR_BEHIND, None, state("processor", STUCK)),
    "a sink is down": (RuleType.SINK_DOWN, "crm", state("sinks", DOWN)),
    "a sink is behind": (RuleType.SINK_BEHIND, "archive", state("sinks", LATE)),
    "the disk is full": (RuleType.STORAGE, None, state("storage", FULL)),
    "the write-ahead log grows": (RuleType.STORAGE, None, state("storage", LARGE_WAL)),
}


@pytest.mark.parametrize("name", TROUBLES)
def test_each_trouble_fires_once_in_time_and_is_resolved(name: str, ordinary: Simulation) -> None:
    type_, group, trouble = TROUBLES[name]
    simulation = deepcopy(ordinary)
    [rule] = [rule for rule in simulation.rules if rule.type is type_]
    # A round more, and the minute that has begun.
    limit = rule.window + rule.holds_for + 2 * MINUTE
    simulation.run(TEN + max(limit, 20 * MINUTE), trouble=trouble)
    [(fired_at, alert)] = simulation.transitions(Transition.FIRED)
    assert (alert.rule, alert.group) == (type_, group)
    assert fired_at - TEN <= limit
    assert alert.evidence.value > alert.evidence.threshold or type_ is RuleType.RECEIPTS_STOPPED
    simulation.run(simulation.now + 2 * HOUR, slot=5 * MINUTE)
    [(_, resolved)] = simulation.transitions(Transition.RESOLVED)
    assert (resolved.id, resolved.fired_at) == (alert.id, fired_at)
    assert "too little to tell" not in resolved.summary
    assert len(simulation.transitions(Transition.FIRED)) == 1


def test_messages_that_wait_for_receipts_fire_and_are_resolved(ordinary: Simulation) -> None:
    simulation = deepcopy(ordinary)
    simulation.rules = [rule for rule in simulation.rules if rule.type is RuleType.AWAITING_RECEIPT]
    simulation.run(TEN + 3 * HOUR, slot=5 * MINUTE, trouble=lambda traffic: traffic.silent.update(("shop", "bank")))
    [(fired_at, _)] = simulation.transitions(Transition.FIRED)
    assert HOUR < fired_at - TEN < 3 * HOUR
    # They never get one: the alert ends when they are no longer new.
    simulation.run(TEN + 11 * HOUR, slot=5 * MINUTE)
    assert len(simulation.transitions(Transition.RESOLVED)) == 1
    assert len(simulation.transitions(Transition.FIRED)) == 1


def only(simulation: Simulation, *types: RuleType) -> None:
    simulation.rules = [rule for rule in simulation.rules if rule.type in types]


@pytest.mark.parametrize("is_dead", [True, False])
def test_a_holiday_in_the_weeks_before_neither_fires_nor_hides(is_dead: bool) -> None:
    simulation = Simulation(configure([]), seed=5)
    only(simulation, RuleType.RECEIPTS_STOPPED)

    def holiday(traffic: Traffic) -> None:
        traffic.dead.update(("bank", "clinic"))

    monday = MONDAY + 28 * DAY
    simulation.run(MONDAY + 21 * DAY, slot=HOUR, evaluates=False)
    simulation.run(MONDAY + 22 * DAY, slot=HOUR, evaluates=False, trouble=holiday)
    simulation.run(monday + 9 * HOUR, slot=HOUR, evaluates=False)
    simulation.run(
        monday + 12 * HOUR, slot=5 * MINUTE, trouble=(lambda traffic: traffic.dead.add("bank")) if is_dead else None
    )
    assert [alert.group for _, alert in simulation.transitions(Transition.FIRED)] == (["bank"] if is_dead else [])


@pytest.mark.parametrize("change", [-HOUR, HOUR])
def test_a_change_of_summer_time_brings_no_false_alarm(change: timedelta) -> None:
    simulation = Simulation(configure([{"rule": "receipts-stopped", "window": "30m"}]), seed=5)
    monday = MONDAY + 28 * DAY
    simulation.run(monday, slot=HOUR, evaluates=False)
    simulation.ahead = change
    simulation.run(monday + DAY, slot=5 * MINUTE)
    assert simulation.transitions(Transition.FIRED) == []
    simulation.run(
        simulation.now + 14 * HOUR, slot=5 * MINUTE, trouble=lambda traffic: traffic.silent.update(("bank", "clinic"))
    )
    assert {alert.group for _, alert in simulation.transitions(Transition.FIRED)} == {"bank", "clinic"}


def test_an_outage_of_the_receiver_is_not_the_silence_of_others(ordinary: Simulation) -> None:
    simulation = deepcopy(ordinary)
    only(simulation, RuleType.RECEIPTS_STOPPED, RuleType.SLOW_DELIVERY)
    simulation.outage(2 * HOUR, 5 * MINUTE)
    simulation.run(simulation.now + 3 * HOUR, slot=5 * MINUTE)
    assert simulation.transitions(Transition.FIRED) == []


def test_without_history_silence_is_no_evidence() -> None:
    simulation = Simulation(configure([]), seed=5)
    only(simulation, RuleType.RECEIPTS_STOPPED)
    simulation.run(MONDAY + DAY + 9 * HOUR, slot=HOUR, evaluates=False)
    simulation.run(MONDAY + DAY + 11 * HOUR, slot=5 * MINUTE, trouble=lambda traffic: traffic.dead.add("bank"))
    assert simulation.transitions(Transition.FIRED) == []


def test_a_takeover_brings_no_storm(ordinary: Simulation) -> None:
    simulation = deepcopy(ordinary)
    trouble = failing("T-Mobile", 0.6, 4720)
    simulation.run(TEN + 20 * MINUTE, trouble=trouble)
    # The worker is lost; the next one begins with the alerts as they are stored.
    simulation.run(simulation.now + 5 * MINUTE, trouble=trouble, evaluates=False)
    simulation.watching_since = simulation.now
    simulation.run(simulation.now + 20 * MINUTE, trouble=trouble)
    assert len(simulation.transitions(Transition.FIRED)) == 1
    assert len(simulation.alerts) == 1
