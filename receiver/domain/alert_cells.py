"""The counted events that a rule of alerts is about: those that meet its `where`, by the values of its `by`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from receiver.domain.alert_facts import (
    FINAL_MEASURES,
    Cell,
    Facts,
    Measure,
    Span,
    span_of,
)
from receiver.domain.alerts import OTHER_GROUPS, Rule, RuleType
from receiver.domain.vocabulary import number_key

NO_VALUE: Final = "(none)"
"""The group of what has no value of the dimension."""
_OUR_GROUPS: Final = frozenset({NO_VALUE, OTHER_GROUPS})


@dataclass(slots=True)
class Tally:
    """The events of a group by measure, and of the failed ones those that the rule's codes and categories select."""

    measures: dict[str, int] = field(default_factory=dict)
    failed: int = 0
    slow: int = 0
    timed: int = 0
    codes: dict[tuple[str, int], int] = field(default_factory=dict)

    def number(self, *measures: Measure) -> int:
        return sum(self.measures.get(measure, 0) for measure in measures)

    @property
    def final(self) -> int:
        return self.number(*FINAL_MEASURES)


CODE_DIMENSIONS: Final = ("deliveryCode", "category")


def tally_by_group(
    rule: Rule, cells: Iterable[Cell], facts: Facts
) -> tuple[dict[str | None, Tally], Mapping[str, int]]:
    """The cells that meet the rule's `where`, by group, and what all groups have in common.

    Codes and categories choose among failures only: the deliveries that they are a share of have all codes, or none,
    and are common to all groups, also to those without a failure.
    """
    by_code = rule.by in CODE_DIMENSIONS
    groups: dict[str | None, Tally] = {}
    whole: dict[str, int] = {}
    if rule.by is None:
        groups[None] = Tally()
    for cell in cells:
        if not all(value_of(cell, name, facts) in wanted for name, wanted in message_filters(rule).items()):
            continue
        if by_code:
            whole[cell.measure] = whole.get(cell.measure, 0) + cell.events
            if cell.measure != Measure.FAILED:
                continue
        tally = groups.setdefault(group_of(rule, cell, facts), Tally())
        if not by_code:
            tally.measures[cell.measure] = tally.measures.get(cell.measure, 0) + cell.events
        if cell.measure == Measure.FAILED and _is_selected(rule, cell, facts):
            tally.failed += cell.events
            if cell.code is not None:
                key = (cell.api, cell.code)
                tally.codes[key] = tally.codes.get(key, 0) + cell.events
        elif cell.measure == Measure.DELIVERED and is_recent(rule, cell):
            tally.timed += cell.events
            tally.slow += cell.events * is_slow(rule, cell)
    for tally in groups.values() if by_code else ():
        tally.measures = whole
    return groups, whole


def message_filters(rule: Rule) -> dict[str, frozenset[str]]:
    """The filters of a rule's `where` that are not about codes."""
    return {name: wanted for name, wanted in rule.where.items() if name not in CODE_DIMENSIONS}


def _is_selected(rule: Rule, cell: Cell, facts: Facts) -> bool:
    if rule.codes and cell.code not in rule.codes:
        return False
    return all(value_of(cell, name, facts) in rule.where[name] for name in CODE_DIMENSIONS if name in rule.where)


def value_of(cell: Cell, dimension: str, facts: Facts) -> str:
    """The value that a cell has of a dimension."""
    match dimension:
        case "api":
            return cell.api
        case "direction":
            return cell.direction
        case "applicationId":
            return cell.application_id
        case "carrierName":
            return cell.carrier_name
        case "from":
            return number_key(cell.sender)
        case "deliveryCode":
            return str(cell.code) if cell.code is not None else ""
    return facts.category(cell.api, cell.code) if cell.code is not None else ""


def is_recent(rule: Rule, cell: Cell) -> bool:
    """Whether deliveries took no longer than the window and the time that is allowed.

    In the evening those that took hours come from a busier time, and would be most of all deliveries.
    """
    return cell.seconds is not None and cell.seconds <= (rule.window + longer_than(rule)).total_seconds()


def is_slow(rule: Rule, cell: Cell) -> bool:
    """Whether deliveries took longer than the rule allows."""
    return cell.seconds is not None and cell.seconds > longer_than(rule).total_seconds()


def group_of(rule: Rule, cell: Cell, facts: Facts) -> str | None:
    """The group of a rule that a cell belongs to; None: the rule has no groups.

    A value with the name of a group of ours is put in quotes, as it would share the alert of that group.
    """
    if rule.by is None:
        return None
    value = cell.sender if rule.by == "from" else value_of(cell, rule.by, facts)
    return f'"{value}"' if value in _OUR_GROUPS else value or NO_VALUE


def longer_than(rule: Rule) -> timedelta:
    """The time that the rule allows."""
    return rule.longer_than or timedelta(0)


def concerns(rule: Rule, group: str | None, cell: Cell, facts: Facts) -> bool:
    """Whether a cell is among what a finding of a rule about a group is about."""
    measures = OFFENDING.get(rule.type)
    if measures is not None and cell.measure not in measures:
        return False
    if rule.type is RuleType.SLOW_DELIVERY and not (is_recent(rule, cell) and is_slow(rule, cell)):
        return False
    if not all(value_of(cell, name, facts) in wanted for name, wanted in message_filters(rule).items()):
        return False
    if cell.measure == Measure.FAILED and not _is_selected(rule, cell, facts):
        return False
    return group in (None, OTHER_GROUPS) or group_of(rule, cell, facts) == group


OFFENDING: Final[Mapping[RuleType, frozenset[str]]] = {
    RuleType.FAILURE_RATE: frozenset({Measure.FAILED}),
    RuleType.CODE_SPIKE: frozenset({Measure.FAILED}),
    RuleType.SLOW_DELIVERY: frozenset({Measure.DELIVERED}),
    RuleType.CONTRADICTIONS: frozenset({Measure.CONTRADICTED}),
    RuleType.FORGED_TAGS: frozenset({Measure.FORGED, Measure.MISSING, Measure.UNSIGNED}),
    RuleType.FALLBACK_USED: frozenset({Measure.FALLBACK}),
}


def now_and_before(
    rule: Rule, facts: Facts, measures: Iterable[Measure]
) -> dict[str | None, tuple[Tally, Tally | None]]:
    """The groups that have any of these measures now, or had before, with both tallies."""
    span, wanted = span_of(rule), frozenset(measures)
    assert span is not None  # noqa: S101

    def tallied(of: Mapping[Span, Sequence[Cell]]) -> tuple[dict[str | None, Tally], Mapping[str, int]]:
        return tally_by_group(rule, (one for one in of.get(span, ()) if one.measure in wanted), facts)

    (current, whole), (around, _), (before, _) = map(tallied, (facts.cells, facts.around, facts.before))
    return {
        group: (current.get(group) or Tally(measures=dict(whole)), before.get(group))
        for group in dict.fromkeys([*current, *around, *before])
    }
