"""The life of an alert: pending, fired, updated, resolved; hysteresis, groups."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.domain.alerts import (
    CLEAR_FOR,
    MAX_GROUPS,
    OTHER_GROUPS,
    UNKNOWN_FOR,
    Alert,
    AlertChange,
    AlertKey,
    AlertStatus,
    Condition,
    Evidence,
    Finding,
    Rule,
    RuleType,
    Severity,
    Transition,
    advance,
)

START = datetime(2026, 11, 2, 8, tzinfo=UTC)
ROUND = timedelta(seconds=30)
BREACHED, NEAR, CLEAR, UNKNOWN = Condition.BREACHED, Condition.NEAR, Condition.CLEAR, Condition.UNKNOWN


def rule(**values: object) -> Rule:
    defaults = {"type": RuleType.FAILURE_RATE, "name": "failures", "window": timedelta(minutes=15), "above": 0.2}
    return Rule(**(defaults | values))  # type: ignore[arg-type]


def finding(condition: Condition, group: str | None = None, *, value: float = 0.5, volume: int = 40) -> Finding:
    evidence = Evidence(value=value, threshold=0.2, volume=volume)
    return Finding(group=group, condition=condition, summary=f"{group} is {condition} at {value}.", evidence=evidence)


class Installation:
    """The open alerts of one installation, round after round, as the storage has them."""

    def __init__(self, *rules: Rule) -> None:
        self.rules: Sequence[Rule] = rules
        self.now = START
        self.open: dict[str, Alert] = {}
        self.watching_since: datetime | None = None
        self.history: list[AlertChange] = []
        self._ids = map(str, count(1))

    def evaluate(self, *findings: Finding, after: timedelta = ROUND, of: str = "failures") -> list[AlertChange]:
        self.now += after
        changes = advance(
            self.rules,
            list(self.open.values()),
            {of: findings},
            self.now,
            lambda: next(self._ids),
            watching_since=self.watching_since,
        )
        for change in changes:
            assert change.alert.updated_at == self.now
            if change.transition in (Transition.FORGOTTEN, Transition.RESOLVED):
                self.open.pop(change.alert.id)
            else:
                self.open[change.alert.id] = change.alert
        self.history += changes
        return changes

    def transitions(self, condition: Condition, group: str | None = None, *, after: timedelta = ROUND) -> list[str]:
        return [str(change.transition) for change in self.evaluate(finding(condition, group), after=after)]


def test_an_alert_without_for_fires_at_once() -> None:
    installation = Installation(rule(severity=Severity.CRITICAL, to=("ops",)))
    [fired] = installation.evaluate(finding(BREACHED, value=0.75))
    assert fired.transition is Transition.FIRED
    alert = fired.alert
    assert (alert.status, alert.fired_at, alert.began_at) == (AlertStatus.FIRING, installation.now, installation.now)
    assert (alert.severity, alert.to, alert.rule, alert.name) == (
        Severity.CRITICAL,
        ("ops",),
        RuleType.FAILURE_RATE,
        "failures",
    )
    assert (alert.evidence.value, alert.summary) == (0.75, "None is breached at 0.75.")


def test_nothing_breached_starts_nothing() -> None:
    installation = Installation(rule())
    for condition in (NEAR, CLEAR, UNKNOWN):
        assert installation.transitions(condition) == []


def test_an_alert_is_pending_until_for_has_passed() -> None:
    installation = Installation(rule(holds_for=timedelta(minutes=5)))
    assert installation.transitions(BREACHED) == ["started"]
    assert installation.transitions(BREACHED, after=timedelta(minutes=4, seconds=59)) == []
    assert [str(change.transition) for change in installation.evaluate(finding(BREACHED))] == ["fired"]
    assert installation.history[-1].alert.began_at == START + ROUND


def test_a_pending_alert_is_forgotten_when_its_condition_no_longer_holds() -> None:
    installation = Installation(rule(holds_for=timedelta(minutes=5)))
    installation.transitions(BREACHED)
    assert installation.transitions(CLEAR) == ["forgotten"]
    assert installation.transitions(BREACHED, after=timedelta(minutes=5)) == ["started"]


def test_rounds_in_which_nothing_is_known_do_not_keep_an_alert_from_firing() -> None:
    installation = Installation(rule(holds_for=timedelta(minutes=5)))
    seen: list[str] = []
    for place in range(11):
        seen += installation.transitions(UNKNOWN if place % 3 == 2 else BREACHED)
    assert [transition for transition in seen if transition != "started"] == ["fired"]
    [fired] = installation.open.values()
    assert (fired.began_at, fired.fired_at) == (START + ROUND, installation.now)


def test_a_pending_alert_is_forgotten_after_it_was_unknown_for_as_long_as_it_has_to_hold() -> None:
    installation = Installation(rule(holds_for=timedelta(minutes=5)))
    installation.transitions(BREACHED)
    assert installation.transitions(UNKNOWN) == ["started"]
    assert installation.evaluate(after=timedelta(minutes=4, seconds=59)) == []
    assert [str(change.transition) for change in installation.evaluate(after=timedelta(seconds=1))] == ["forgotten"]
    assert installation.transitions(BREACHED) == ["started"]


def test_a_pending_alert_stays_pending_near_the_threshold() -> None:
    installation = Installation(rule(holds_for=timedelta(minutes=5)))
    installation.transitions(BREACHED)
    assert installation.transitions(NEAR, after=timedelta(minutes=6)) == ["started"]
    assert installation.transitions(BREACHED) == ["fired"]


def test_an_alert_fires_once_and_is_updated() -> None:
    installation = Installation(rule())
    assert installation.transitions(BREACHED) == ["fired"]
    assert installation.transitions(BREACHED) == []
    [updated] = installation.evaluate(finding(BREACHED, value=0.9))
    assert (updated.transition, updated.alert.evidence.value) == (Transition.UPDATED, 0.9)
    assert updated.alert.fired_at == START + ROUND


def test_an_alert_is_resolved_after_it_has_been_clear_for_five_minutes() -> None:
    installation = Installation(rule())
    installation.transitions(BREACHED)
    assert installation.transitions(CLEAR) == ["updated"]
    assert installation.transitions(CLEAR, after=CLEAR_FOR - timedelta(seconds=1)) == []
    [resolved] = installation.evaluate(finding(CLEAR, value=0.01), after=timedelta(seconds=1))
    assert resolved.transition is Transition.RESOLVED
    assert (resolved.alert.status, resolved.alert.resolved_at) == (AlertStatus.RESOLVED, installation.now)
    assert resolved.alert.summary == "None is clear at 0.01."
    assert installation.transitions(CLEAR) == []


@pytest.mark.parametrize("condition", [NEAR, BREACHED])
def test_an_alert_that_comes_back_stays_open(condition: Condition) -> None:
    installation = Installation(rule())
    installation.transitions(BREACHED)
    installation.transitions(CLEAR)
    installation.transitions(condition, after=timedelta(minutes=4))
    assert installation.transitions(CLEAR, after=timedelta(minutes=4)) == ["updated"]
    assert len(installation.open) == 1


def test_unknown_keeps_an_alert_for_an_hour_then_resolves_it() -> None:
    installation = Installation(rule())
    installation.transitions(BREACHED)
    assert installation.transitions(UNKNOWN) == ["updated"]
    assert installation.transitions(UNKNOWN, after=UNKNOWN_FOR - timedelta(seconds=1)) == []
    [resolved] = installation.evaluate(finding(UNKNOWN, value=0), after=timedelta(seconds=1))
    assert resolved.transition is Transition.RESOLVED
    assert "too little to tell" in resolved.alert.summary
    assert "None is breached at 0.5." in resolved.alert.summary
    assert resolved.alert.evidence.value == 0.5


def test_unknown_keeps_an_alert_for_its_window_if_that_is_longer() -> None:
    installation = Installation(rule(window=timedelta(hours=3)))
    installation.transitions(BREACHED)
    installation.transitions(UNKNOWN)
    assert installation.transitions(UNKNOWN, after=timedelta(hours=2, minutes=59)) == []
    assert installation.transitions(UNKNOWN, after=timedelta(minutes=1)) == ["resolved"]


def test_something_known_in_between_begins_the_hour_again() -> None:
    installation = Installation(rule())
    installation.transitions(BREACHED)
    installation.transitions(UNKNOWN)
    installation.transitions(NEAR, after=timedelta(minutes=50))
    installation.transitions(UNKNOWN)
    assert installation.transitions(UNKNOWN, after=timedelta(minutes=50)) == []


def test_a_group_without_finding_counts_as_unknown() -> None:
    installation = Installation(rule(by="carrierName"))
    installation.transitions(BREACHED, "T-Mobile")
    assert [str(change.transition) for change in installation.evaluate()] == ["updated"]
    assert [str(change.transition) for change in installation.evaluate(after=UNKNOWN_FOR)] == ["resolved"]


def test_a_rule_that_is_gone_resolves_its_alerts() -> None:
    installation = Installation(rule(by="carrierName"), rule(name="other", holds_for=ROUND))
    installation.transitions(BREACHED, "T-Mobile")
    installation.evaluate(finding(BREACHED), of="other")
    installation.rules = []
    changes = installation.evaluate()
    assert [str(change.transition) for change in changes] == ["resolved", "forgotten"]
    assert "no longer in the settings" in changes[0].alert.summary


def test_a_rule_of_another_type_with_the_same_name_is_another_rule() -> None:
    installation = Installation(rule())
    installation.transitions(BREACHED)
    installation.rules = [rule(type=RuleType.CODE_SPIKE)]
    assert installation.transitions(BREACHED) == ["resolved", "fired"]


def test_a_changed_severity_reaches_open_alerts() -> None:
    installation = Installation(rule())
    installation.transitions(BREACHED)
    installation.rules = [rule(severity=Severity.INFO, to=("ops",))]
    [updated] = installation.evaluate(finding(BREACHED))
    assert (updated.alert.severity, updated.alert.to) == (Severity.INFO, ("ops",))


def test_alerts_of_other_programs_are_left_alone() -> None:
    installation = Installation(rule())
    installation.transitions(BREACHED)
    [alert] = installation.open.values()
    installation.open = {alert.id: replace(alert, rule=RuleType.EXTERNAL, name="HostDown")}
    assert installation.evaluate(after=timedelta(days=1)) == []


def test_each_group_has_an_alert_of_its_own() -> None:
    installation = Installation(rule(by="carrierName"))
    changes = installation.evaluate(finding(BREACHED, "T-Mobile"), finding(CLEAR, "Verizon"), finding(BREACHED, "AT&T"))
    assert sorted(str(change.alert.group) for change in changes) == ["AT&T", "T-Mobile"]


def test_groups_beyond_the_limit_share_an_alert() -> None:
    installation = Installation(rule(by="carrierName"))
    findings = [finding(BREACHED, f"carrier {number}", value=number) for number in range(MAX_GROUPS + 5)]
    changes = installation.evaluate(*findings)
    assert {change.transition for change in changes} == {Transition.FIRED}
    own = {change.alert.group for change in changes if change.alert.group != OTHER_GROUPS}
    assert own == {f"carrier {number}" for number in range(5, MAX_GROUPS + 5)}
    [shared] = [change.alert for change in changes if change.alert.group == OTHER_GROUPS]
    assert shared.evidence.value == 5
    assert shared.summary == ("5 more groups are above the threshold: carrier 4, carrier 3, carrier 2 and 2 others.")
    # A worse group does not displace an open alert.
    worse = finding(BREACHED, "worst", value=100)
    [updated] = installation.evaluate(*findings, worse)
    assert (updated.transition, updated.alert.group, updated.alert.evidence.value) == (
        Transition.UPDATED,
        OTHER_GROUPS,
        6,
    )


def test_the_shared_alert_is_resolved_when_no_group_is_left_for_it() -> None:
    installation = Installation(rule(by="carrierName"))
    groups = [f"carrier {number:02}" for number in range(MAX_GROUPS + 1)]
    installation.evaluate(*(finding(BREACHED, group) for group in groups))
    over = [finding(CLEAR, groups[0]), *(finding(BREACHED, group) for group in groups[1:])]
    installation.evaluate(*over)
    [resolved] = installation.evaluate(*over, after=CLEAR_FOR)
    assert (resolved.transition, resolved.alert.group) == (Transition.RESOLVED, OTHER_GROUPS)


def test_a_group_fires_for_itself_when_there_is_room_again() -> None:
    installation = Installation(rule(by="carrierName"))
    groups = [f"carrier {number:02}" for number in range(MAX_GROUPS + 1)]
    installation.evaluate(*(finding(BREACHED, group) for group in groups))
    over = [*(finding(BREACHED, group) for group in groups[:-1]), finding(CLEAR, groups[-1])]
    installation.evaluate(*over)
    installation.evaluate(*over, after=CLEAR_FOR)
    fired = [change.alert.group for change in installation.evaluate(*over) if change.transition is Transition.FIRED]
    assert fired == [groups[0]]


def test_time_that_nobody_watched_does_not_count() -> None:
    installation = Installation(rule(holds_for=timedelta(minutes=5)))
    installation.transitions(BREACHED)
    installation.watching_since = installation.now + timedelta(hours=2)
    assert installation.transitions(BREACHED, after=timedelta(hours=2)) == ["started"]
    assert installation.transitions(BREACHED, after=timedelta(minutes=4)) == []
    assert installation.transitions(BREACHED, after=timedelta(minutes=1)) == ["fired"]
    installation.transitions(CLEAR)
    installation.watching_since = installation.now + timedelta(hours=2)
    assert installation.transitions(CLEAR, after=timedelta(hours=2)) == ["updated"]
    assert installation.transitions(CLEAR, after=CLEAR_FOR) == ["resolved"]


def test_a_clock_that_was_set_back_delays_nothing_by_as_much() -> None:
    installation = Installation(rule(holds_for=timedelta(minutes=5)))
    installation.transitions(BREACHED)
    installation.transitions(BREACHED, after=-timedelta(hours=1))
    assert installation.transitions(BREACHED, after=timedelta(minutes=5)) == ["fired"]
    installation.transitions(CLEAR)
    installation.transitions(CLEAR, after=-timedelta(hours=1))
    assert installation.transitions(CLEAR, after=CLEAR_FOR) == ["resolved"]


steps = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from(["a", "b", None]), st.sampled_from(list(Condition))),
        st.sampled_from([timedelta(seconds=30), timedelta(minutes=3), timedelta(minutes=70)]),
    ),
    max_size=60,
)


def _run(
    played: Sequence[tuple[Mapping[str | None, Condition], timedelta]], holds_for: timedelta
) -> list[tuple[datetime, AlertChange]]:
    installation, changes = Installation(rule(by="carrierName", holds_for=holds_for)), []
    for conditions, after in played:
        found = [finding(condition, group) for group, condition in conditions.items()]
        changes += [(installation.now, change) for change in installation.evaluate(*found, after=after)]
        keys = [alert.key for alert in installation.open.values()]
        assert len(keys) == len(set(keys))
    return changes


@given(steps, st.sampled_from([timedelta(0), timedelta(minutes=5)]))
def test_an_alert_of_one_key_never_fires_twice_within_the_time_of_clearing(
    played: Sequence[tuple[Mapping[str | None, Condition], timedelta]], holds_for: timedelta
) -> None:
    fired: dict[AlertKey, datetime] = {}
    for _, change in _run(played, holds_for):
        if change.transition is Transition.FIRED:
            assert change.alert.fired_at is not None
            previous = fired.get(change.alert.key)
            assert previous is None or change.alert.fired_at - previous >= CLEAR_FOR
            fired[change.alert.key] = change.alert.fired_at


@given(steps, st.sampled_from([timedelta(0), timedelta(minutes=5)]))
def test_every_alert_fires_once_and_is_resolved_once(
    played: Sequence[tuple[Mapping[str | None, Condition], timedelta]], holds_for: timedelta
) -> None:
    heard: dict[str, list[Transition]] = {}
    for _, change in _run(played, holds_for):
        if change.transition in (Transition.FIRED, Transition.RESOLVED):
            heard.setdefault(change.alert.id, []).append(change.transition)
    for transitions in heard.values():
        assert transitions in ([Transition.FIRED], [Transition.FIRED, Transition.RESOLVED])


@given(steps)
def test_only_a_breach_fires(played: Sequence[tuple[Mapping[str | None, Condition], timedelta]]) -> None:
    never = [({group: c for group, c in found.items() if c is not BREACHED}, after) for found, after in played]
    assert _run(never, timedelta(0)) == []


@given(st.lists(st.dictionaries(st.integers(0, 60), st.sampled_from(list(Condition))), max_size=20))
def test_a_rule_never_has_more_open_alerts_than_its_limit(played: Sequence[Mapping[int, Condition]]) -> None:
    installation = Installation(rule(by="from"))
    for conditions in played:
        installation.evaluate(*(finding(c, str(group), value=group) for group, c in conditions.items()))
        assert len(installation.open) <= MAX_GROUPS + 1
        without_room = sum(
            c is BREACHED and not any(alert.group == str(group) for alert in installation.open.values())
            for group, c in conditions.items()
        )
        shared = [alert for alert in installation.open.values() if alert.group == OTHER_GROUPS]
        assert bool(without_room) <= bool(shared)
