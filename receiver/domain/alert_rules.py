"""The rules of alerts: what each of them finds in the facts, in numbers and in a sentence.

Nothing here keeps a state: the clock and the facts are arguments, and `receiver.domain.alerts.advance` knows what was
found before.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from math import exp, sqrt
from typing import Final

from receiver.domain.alert_facts import (
    BEFORE,
    FINAL_MEASURES,
    Cell,
    Facts,
    Measure,
    SinkFacts,
    Waiting,
    daily_shifts,
    hour_of,
    span_of,
    weekly_shifts,
    window_hours,
)
from receiver.domain.alerts import CLEAR_BELOW, OTHER_GROUPS, Condition, Evidence, Finding, Rule, RuleType
from receiver.domain.vocabulary import Direction, number_key

NO_VALUE: Final = "(none)"
"""The group of what has no value of the dimension."""
CONFIDENCE: Final = 2.326
"""A share counts as above the threshold if its lower bound with 99 % confidence is: 8 of 20 are not above 20 %."""
SPIKE: Final = 3.0
"""A code spikes if it comes so many times as often as in the 24 hours before."""
SPIKE_DEVIATIONS: Final = 6.0
"""And so many standard deviations more often: of small numbers three times as many are still chance."""
SPIKE_ENDS: Final = 2.0
SPIKE_SHARE: Final = 0.02
"""A code spikes if at least this share of the deliveries ends with it."""
CONTRADICTED_SHARE: Final = 0.005
"""Contradictions are worth an alert if they are at least this share of the deliveries."""
WAITING_SHARE: Final = 0.1
"""Messages wait for too long if they are more than this share of them and of those that became final meanwhile."""
SILENCE_CHANCE: Final = 1e-4
"""Silence is evidence if chance alone brings it less often than this."""
REFERENCES: Final = 3
"""So many days or weeks of history are needed to expect anything."""
BEHIND: Final = timedelta(seconds=60)
"""Silence is no evidence while callbacks wait for longer than this: the receipts may be among them."""
ROOMY_BYTES: Final = 10 * 1024**3
"""A disk with so much space left is not nearly full, whatever its share."""
WAL_BYTES: Final = 1024**3
"""The size that write-ahead logs should never reach; they are emptied after some megabytes."""
RARE_TAGS: Final = 0.01
"""Missing and unsigned tags count as forged ones where less than this share had them in the 24 hours before."""
_MANY_RECEIPTS: Final = 100


def evaluate(rule: Rule, facts: Facts, now: datetime) -> list[Finding]:
    """What a rule finds, for each of its groups of which there is anything."""
    return _EVALUATIONS[rule.type](rule, facts, now)


# --- cells by group ---


@dataclass(slots=True)
class _Tally:
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


_CODE_DIMENSIONS: Final = ("deliveryCode", "category")


def _tally(rule: Rule, cells: Iterable[Cell], facts: Facts) -> dict[str | None, _Tally]:
    """The cells that meet the rule's `where`, by group.

    Codes and categories choose among failures only: the deliveries that they are a share of have all codes, or none.
    """
    by_code = rule.by in _CODE_DIMENSIONS
    groups: dict[str | None, _Tally] = {}
    whole: dict[str, int] = {}
    if rule.by is None:
        groups[None] = _Tally()
    for cell in cells:
        if not all(_value(cell, name, facts) in wanted for name, wanted in _plain(rule).items()):
            continue
        if by_code:
            whole[cell.measure] = whole.get(cell.measure, 0) + cell.events
            if cell.measure != Measure.FAILED:
                continue
        tally = groups.setdefault(_group(rule, cell, facts), _Tally())
        if not by_code:
            tally.measures[cell.measure] = tally.measures.get(cell.measure, 0) + cell.events
        if cell.measure == Measure.FAILED and _is_selected(rule, cell, facts):
            tally.failed += cell.events
            if cell.code is not None:
                key = (cell.api, cell.code)
                tally.codes[key] = tally.codes.get(key, 0) + cell.events
        elif cell.measure == Measure.DELIVERED and _is_recent(rule, cell):
            tally.timed += cell.events
            tally.slow += cell.events * _is_slow(rule, cell)
    for tally in groups.values() if by_code else ():
        tally.measures = whole
    return groups


def _plain(rule: Rule) -> dict[str, frozenset[str]]:
    return {name: wanted for name, wanted in rule.where.items() if name not in _CODE_DIMENSIONS}


def _is_selected(rule: Rule, cell: Cell, facts: Facts) -> bool:
    if rule.codes and cell.code not in rule.codes:
        return False
    return all(_value(cell, name, facts) in rule.where[name] for name in _CODE_DIMENSIONS if name in rule.where)


def _value(cell: Cell, dimension: str, facts: Facts) -> str:
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


def _is_recent(rule: Rule, cell: Cell) -> bool:
    """Whether deliveries took no longer than the window and the time that is allowed.

    In the evening those that took hours come from a busier time, and would be most of all deliveries.
    """
    return cell.seconds is not None and cell.seconds <= (rule.window + _longer_than(rule)).total_seconds()


def _is_slow(rule: Rule, cell: Cell) -> bool:
    return cell.seconds is not None and cell.seconds > _longer_than(rule).total_seconds()


def _group(rule: Rule, cell: Cell, facts: Facts) -> str | None:
    if rule.by is None:
        return None
    return (cell.sender if rule.by == "from" else _value(cell, rule.by, facts)) or NO_VALUE


def concerns(rule: Rule, group: str | None, cell: Cell, facts: Facts) -> bool:
    """Whether a cell is among what a finding of a rule about a group is about."""
    measures = _OFFENDING.get(rule.type)
    if measures is not None and cell.measure not in measures:
        return False
    if rule.type is RuleType.SLOW_DELIVERY and not (_is_recent(rule, cell) and _is_slow(rule, cell)):
        return False
    if not all(_value(cell, name, facts) in wanted for name, wanted in _plain(rule).items()):
        return False
    if cell.measure == Measure.FAILED and not _is_selected(rule, cell, facts):
        return False
    return group in (None, OTHER_GROUPS) or _group(rule, cell, facts) == group


_OFFENDING: Final[Mapping[RuleType, frozenset[str]]] = {
    RuleType.FAILURE_RATE: frozenset({Measure.FAILED}),
    RuleType.CODE_SPIKE: frozenset({Measure.FAILED}),
    RuleType.SLOW_DELIVERY: frozenset({Measure.DELIVERED}),
    RuleType.CONTRADICTIONS: frozenset({Measure.CONTRADICTED}),
    RuleType.FORGED_TAGS: frozenset({Measure.FORGED}),
    RuleType.FALLBACK_USED: frozenset({Measure.FALLBACK}),
}


def _now_and_before(
    rule: Rule, facts: Facts, measures: Iterable[Measure]
) -> dict[str | None, tuple[_Tally, _Tally | None]]:
    """The groups that have any of these measures now, or had before, with both tallies."""
    span, wanted = span_of(rule), frozenset(measures)
    assert span is not None  # noqa: S101
    current = _tally(rule, (one for one in facts.cells.get(span, ()) if one.measure in wanted), facts)
    before = _tally(rule, (one for one in facts.before.get(span, ()) if one.measure in wanted), facts)
    whole = next((tally.measures for tally in current.values()), {}) if rule.by in _CODE_DIMENSIONS else {}
    return {
        group: (current.get(group) or _Tally(measures=whole), before.get(group))
        for group in (*current, *(group for group in before if group not in current))
    }


# --- shares ---


def _failure_rate(rule: Rule, facts: Facts, now: datetime) -> list[Finding]:
    found = []
    for group, (tally, before) in _now_and_before(rule, facts, FINAL_MEASURES).items():
        what = f"deliveries{_of(rule, group, facts)}"
        then = before.failed / before.final if before is not None and before.final else None
        share = tally.failed / tally.final if tally.final else 0.0
        codes = _most_frequent(tally, facts)
        summary = (
            f"{tally.failed:,} of {tally.final:,} {what} failed within {_time(rule.window)} ({_percent(share)})"
            f"{_share_before(then)}.{codes}"
        )
        found.append(_share(rule, group, tally.failed, tally.final, then, summary))
    return found


def _slow_delivery(rule: Rule, facts: Facts, now: datetime) -> list[Finding]:
    found, limit = [], _longer_than(rule)
    for group, (tally, before) in _now_and_before(rule, facts, [Measure.DELIVERED]).items():
        then = before.slow / before.timed if before is not None and before.timed else None
        share = tally.slow / tally.timed if tally.timed else 0.0
        summary = (
            f"{tally.slow:,} of {tally.timed:,} deliveries{_of(rule, group, facts)} within {_time(rule.window)} took "
            f"longer than {_time(limit)} ({_percent(share)}){_share_before(then)}."
        )
        finding = _share(rule, group, tally.slow, tally.timed, then, summary)
        found.append(_unless_watched(rule, facts, now, finding))
    return found


def _share(rule: Rule, group: str | None, part: int, volume: int, before: float | None, summary: str) -> Finding:
    share = part / volume if volume else 0.0
    if volume < max(rule.minimum, 1):
        condition = Condition.UNKNOWN
    elif share > rule.above and lower_bound(part, volume) > rule.above:
        condition = Condition.BREACHED
    else:
        condition = Condition.NEAR if share > rule.above * CLEAR_BELOW else Condition.CLEAR
    return _finding(rule, group, condition, summary, value=share, volume=volume, before=before)


def lower_bound(part: int, volume: int, confidence: float = CONFIDENCE) -> float:
    """The lower bound of Wilson's interval for a share: what it may be in the long run, at least."""
    if not volume:
        return 0.0
    share, square = part / volume, confidence**2
    margin = confidence * sqrt(share * (1 - share) / volume + square / (4 * volume**2))
    return (share + square / (2 * volume) - margin) / (1 + square / volume)


# --- numbers ---


def _code_spike(rule: Rule, facts: Facts, now: datetime) -> list[Finding]:
    found = []
    for group, (tally, before) in _now_and_before(rule, facts, FINAL_MEASURES).items():
        number = tally.failed
        expected = _expected(rule, facts, now, before, tally)
        codes = _most_frequent(tally, facts)
        then = f"; by the 24 hours before it would be {_round(expected)}" if before is not None else ""
        summary = (
            f"{number:,} of {tally.final:,} deliveries{_of(rule, group, facts)} ended with "
            f"{'one of these codes' if rule.by != 'deliveryCode' else 'this code'} within {_time(rule.window)}"
            f"{then}.{codes}"
        )
        is_many = number > rule.above and number >= SPIKE_SHARE * tally.final
        is_unusual = number > max(SPIKE * expected, expected + SPIKE_DEVIATIONS * sqrt(expected))
        if is_many and is_unusual:
            condition = Condition.BREACHED
        elif number > rule.above * CLEAR_BELOW and number > SPIKE_ENDS * expected:
            condition = Condition.NEAR
        else:
            condition = Condition.CLEAR
        found.append(_finding(rule, group, condition, summary, value=number, volume=tally.final, before=expected))
    return found


def _expected(rule: Rule, facts: Facts, now: datetime, before: _Tally | None, current: _Tally) -> float:
    """How many failures there would be as in the time before: as many in the time, or as large a share."""
    if before is None or not before.failed:
        return 0.0
    hours = _hours_before(rule, facts, now)
    in_time = before.failed * (rule.window / timedelta(hours=1)) / hours if hours else 0.0
    return max(in_time, before.failed / before.final * current.final if before.final else 0.0)


def _hours_before(rule: Rule, facts: Facts, now: datetime) -> float:
    """How many of the 24 hours before the window were counted."""
    hours = BEFORE / timedelta(hours=1)
    if facts.history_since is None:
        return hours
    return min(hours, max(0, hour_of(now - rule.window) - facts.history_since))


def _contradictions(rule: Rule, facts: Facts, now: datetime) -> list[Finding]:
    found = []
    for group, (tally, _) in _now_and_before(rule, facts, [Measure.CONTRADICTED, *FINAL_MEASURES]).items():
        number, final = tally.number(Measure.CONTRADICTED), tally.final
        summary = (
            f"{number:,} events{_of(rule, group, facts)} contradicted others within {_time(rule.window)}: a delivery "
            f"was reported both delivered and failed. {final:,} deliveries became final."
        )
        condition = _condition(number, rule.above) if number >= CONTRADICTED_SHARE * final else Condition.CLEAR
        found.append(_finding(rule, group, condition, summary, value=number, volume=final))
    return found


def _fallback_used(rule: Rule, facts: Facts, now: datetime) -> list[Finding]:
    recent = [moment for name, moment in facts.last_callbacks.items() if name.endswith("/fallback")]
    is_recent = any(now - moment <= rule.window for moment in recent)
    found = []
    for group, (tally, _) in _now_and_before(rule, facts, [Measure.FALLBACK]).items():
        number = tally.number(Measure.FALLBACK)
        if not number and is_recent and rule.by is None and not rule.where:
            # A callback that brought nothing new is no event.
            number = 1
        events = "event" if number == 1 else "events"
        summary = f"{number:,} {events}{_of(rule, group, facts)} came by a fallback route within {_time(rule.window)}."
        found.append(_number_finding(rule, group, number, summary))
    return found


def _forged_tags(rule: Rule, facts: Facts, now: datetime) -> list[Finding]:
    measures = (Measure.FORGED, Measure.MISSING, Measure.UNSIGNED, Measure.RECEIPT)
    found = []
    for group, (tally, before) in _now_and_before(rule, facts, measures).items():
        forged, unsigned = tally.number(Measure.FORGED), tally.number(Measure.MISSING, Measure.UNSIGNED)
        parts = [f"{forged:,} events{_of(rule, group, facts)} had a forged tag"]
        number = forged
        if before is not None and _are_usually_signed(before):
            number += unsigned
            parts += [f"{unsigned:,} had none or an unsigned one, which is unusual"] if unsigned else []
        if rule.by is None and not rule.where:
            refused = sum(
                count for reason, count in facts.quarantined.get(rule.window, {}).items() if reason.startswith("tag-")
            )
            number += refused
            parts += [f"{refused:,} were quarantined for their tags"] if refused else []
        summary = f"{'; '.join(parts)} within {_time(rule.window)}."
        found.append(_number_finding(rule, group, number, summary))
    return found


def _are_usually_signed(before: _Tally) -> bool:
    receipts = before.number(Measure.RECEIPT)
    return receipts >= _MANY_RECEIPTS and before.number(Measure.MISSING, Measure.UNSIGNED) < RARE_TAGS * receipts


def _quarantine(rule: Rule, facts: Facts, now: datetime) -> list[Finding]:
    reasons = {
        reason: number
        for reason, number in facts.quarantined.get(rule.window, {}).items()
        if not reason.startswith("tag-")
    }
    number = sum(reasons.values())
    most = max(reasons, key=lambda reason: reasons[reason], default=None)
    because = f", most of them as {most}" if most is not None else ""
    elements = "element was" if number == 1 else "elements were"
    return [
        _number_finding(rule, None, number, f"{number:,} {elements} quarantined within {_time(rule.window)}{because}.")
    ]


def _wrong_credentials(rule: Rule, facts: Facts, now: datetime) -> list[Finding]:
    number = facts.refused.get(rule.window, {}).get("wrong-credentials", 0)
    summary = f"{number:,} callbacks came with wrong credentials within {_time(rule.window)}."
    return [_number_finding(rule, None, number, summary)]


def _dead_letters(rule: Rule, facts: Facts, now: datetime) -> list[Finding]:
    found, new = [], facts.dead_letters.get(rule.window, {})
    for sink in _sinks(rule, facts):
        number = new.get(sink.name, 0)
        summary = f"{number:,} new dead letters of sink {sink.name} within {_time(rule.window)}."
        found.append(_number_finding(rule, sink.name, number, summary))
    return found


def _number_finding(
    rule: Rule, group: str | None, number: float, summary: str, *, before: float | None = None
) -> Finding:
    return _finding(rule, group, _condition(number, rule.above), summary, value=number, before=before)


def _condition(value: float, threshold: float) -> Condition:
    if value > threshold:
        return Condition.BREACHED
    return Condition.NEAR if value > threshold * CLEAR_BELOW else Condition.CLEAR


# --- silence ---


def _receipts_stopped(rule: Rule, facts: Facts, now: datetime) -> list[Finding]:
    """Compares each group with the same hours of the weeks before; see `expected_receipts`."""
    span = span_of(rule)
    assert span is not None  # noqa: S101
    directions = rule.where.get("direction", frozenset({"out"}))
    measures = {measure for direction, measure in _BY_DIRECTION.items() if direction in directions}
    came: dict[str | None, int] = {}
    for cell in facts.cells.get(span, ()):
        if cell.measure in measures and all(_value(cell, name, facts) in v for name, v in _plain(rule).items()):
            group = _group(rule, cell, facts)
            came[group] = came.get(group, 0) + cell.events
    history: dict[str | None, dict[int, int]] = {}
    for key, hours in facts.history.items():
        cell = Cell(key.measure, key.api, key.direction, key.application_id, "", "", None, None, 0)
        if key.measure in measures and all(_value(cell, name, facts) in v for name, v in _plain(rule).items()):
            of_group = history.setdefault(_group(rule, cell, facts), {})
            for hour, events in hours.items():
                of_group[hour] = of_group.get(hour, 0) + events
    groups = list(dict.fromkeys([*history, *came, *([None] if rule.by is None else [])]))
    return [_silence(rule, group, came.get(group, 0), history.get(group, {}), facts, now) for group in groups]


_BY_DIRECTION: Final = {Direction.OUT: Measure.RECEIPT, Direction.IN: Measure.INBOUND}


def _silence(
    rule: Rule, group: str | None, came: int, history: Mapping[int, int], facts: Facts, now: datetime
) -> Finding:
    of, time = _of(rule, group, facts), _time(rule.window)
    what = "inbound messages" if rule.where.get("direction") == frozenset({"in"}) else "receipts"
    expected = expected_receipts(history, facts.history_since, now, rule.window)
    condition = Condition.CLEAR
    if expected is None:
        summary = f"{came:,} {what}{of} came within {time}; there is too little history to know how many to expect."
        condition = Condition.CLEAR if came else Condition.UNKNOWN
    else:
        summary = f"{came:,} {what}{of} came within {time}; at this hour of the weekday at least {_round(expected)} do."
        if came <= rule.above:
            is_evidence = expected >= rule.minimum and exp(-expected) < SILENCE_CHANCE
            condition = Condition.BREACHED if is_evidence else Condition.UNKNOWN
        elif came < expected * (1 - CLEAR_BELOW):
            condition = Condition.NEAR
    finding = _finding(rule, group, condition, summary, value=came, before=expected)
    return _unless_watched(rule, facts, now, finding) if condition is not Condition.CLEAR else finding


def expected_receipts(history: Mapping[int, int], since: int | None, now: datetime, window: timedelta) -> float | None:
    """How many receipts a window has at least, by the same hours of the weekday in the weeks before.

    While there are fewer than `REFERENCES` such weeks, neighbouring days count too. The lowest of them is left out:
    it may have been a holiday, or a day without us. Of each the quietest hour counts, since nothing is known of how its
    receipts were spread over it. None: there is too little history.
    """
    hours = window_hours(now, window)
    shifts = [shift for shift in weekly_shifts() if since is not None and hours[0] - shift >= since]
    if len(shifts) < REFERENCES:
        shifts += [shift for shift in daily_shifts(now) if since is not None and hours[0] - shift >= since]
    if len(shifts) < REFERENCES:
        return None
    quietest = sorted(min(history.get(hour - shift, 0) for hour in hours) for shift in shifts)
    return quietest[1] * (window / timedelta(hours=1))


def _unless_watched(rule: Rule, facts: Facts, now: datetime, finding: Finding) -> Finding:
    """The finding, or that nothing is known: silence and lateness are no evidence if we were not there ourselves."""
    if facts.watching_since is None or now - facts.watching_since < rule.window:
        reason = "nobody watched for all of the time"
    elif facts.processor is None:
        reason = "the state of the processor is not known"
    elif facts.processor.failing_since is not None or facts.processor.oldest_seconds > BEHIND.total_seconds():
        reason = "callbacks wait to be processed"
    else:
        return finding
    return Finding(
        group=finding.group,
        condition=Condition.UNKNOWN,
        summary=f"{finding.summary} It is no evidence: {reason}.",
        evidence=finding.evidence,
    )


# --- waiting ---


def _awaiting_receipt(rule: Rule, facts: Facts, now: datetime) -> list[Finding]:
    limit = _longer_than(rule)
    rows = facts.waiting.get(rule.name)
    if rows is None:
        return [_unknown(rule, "The messages that wait could not be counted.")] if rule.by is None else []
    waiting: dict[str | None, int] = {}
    for row in rows:
        cell = _cell_of(row)
        if all(_value(cell, name, facts) in wanted for name, wanted in rule.where.items()):
            group = _group(rule, cell, facts)
            waiting[group] = waiting.get(group, 0) + row.messages
    found = []
    tallies = _now_and_before(rule, facts, FINAL_MEASURES)
    for group in dict.fromkeys([*tallies, *waiting]):
        number = waiting.get(group, 0)
        final = tallies[group][0].final if group in tallies else 0
        share = number / (number + final) if number else 0.0
        summary = (
            f"{number:,} messages{_of(rule, group, facts)} of {_time(rule.window)} wait longer than {_time(limit)} for "
            f"a final event; {final:,} became final in the last {_time(rule.window)}."
        )
        if number > rule.above and share > WAITING_SHARE:
            condition = Condition.BREACHED
        elif number > rule.above * CLEAR_BELOW and share > WAITING_SHARE * CLEAR_BELOW:
            condition = Condition.NEAR
        else:
            condition = Condition.CLEAR
        found.append(_finding(rule, group, condition, summary, value=number, volume=number + final))
    return found


def _cell_of(row: Waiting) -> Cell:
    return Cell("", row.api, "out", row.application_id, "", row.sender, None, None, row.messages)


def _processor_behind(rule: Rule, facts: Facts, now: datetime) -> list[Finding]:
    found = facts.processor
    if found is None:
        return [_unknown(rule, "The state of the processor could not be read.")]
    limit = _longer_than(rule).total_seconds()
    seconds = found.oldest_seconds
    if found.failing_since is not None:
        seconds = max(seconds, (now - found.failing_since).total_seconds())
        summary = f"Callbacks cannot be processed for {_time(timedelta(seconds=seconds))}: {found.error or 'unknown'}."
        return [_finding(rule, None, Condition.BREACHED, summary, value=round(seconds), threshold=limit)]
    missing = "" if found.is_held else " No worker processes callbacks."
    waiting = f", the oldest for {_time(timedelta(seconds=seconds))}" if found.pending else ""
    summary = f"{found.pending:,} callbacks wait to be processed{waiting}.{missing}"
    condition = _condition(seconds, limit)
    return [_finding(rule, None, condition, summary, value=round(seconds), threshold=limit, volume=found.pending)]


def _sink_down(rule: Rule, facts: Facts, now: datetime) -> list[Finding]:
    found = []
    for sink in _sinks(rule, facts):
        is_down = sink.down_since is not None and not sink.paused
        seconds = (now - sink.down_since).total_seconds() if sink.down_since is not None and is_down else 0.0
        why = f": {sink.last_error or 'the error is not known'}"
        down = f"Sink {sink.name} is down for {_time(timedelta(seconds=seconds))}{why}."
        summary = down if is_down else f"Sink {sink.name} is {'paused' if sink.paused else 'not down'}."
        condition = Condition.BREACHED if is_down else Condition.CLEAR
        threshold = rule.holds_for.total_seconds()
        found.append(_finding(rule, sink.name, condition, summary, value=round(seconds), threshold=threshold))
    return found


def _sink_behind(rule: Rule, facts: Facts, now: datetime) -> list[Finding]:
    found, limit = [], _longer_than(rule).total_seconds()
    for sink in _sinks(rule, facts):
        seconds = sink.oldest_seconds or 0.0
        age = f", the oldest for {_time(timedelta(seconds=seconds))}" if sink.oldest_seconds is not None else ""
        paused = " It is paused." if sink.paused else ""
        summary = f"{sink.waiting:,} events wait for sink {sink.name}{age}.{paused}"
        condition = _condition(seconds, limit)
        found.append(
            _finding(rule, sink.name, condition, summary, value=round(seconds), threshold=limit, volume=sink.waiting)
        )
    return found


def _storage(rule: Rule, facts: Facts, now: datetime) -> list[Finding]:
    space = facts.storage
    if space is None:
        return [_unknown(rule, "The space of the database is not known here.")]
    used = 1 - space.free_bytes / space.disk_bytes if space.disk_bytes else 0.0
    logs = space.wal_bytes / WAL_BYTES
    full = used if space.free_bytes < ROOMY_BYTES else 0.0
    value = max(full, logs)
    left = f"{space.free_bytes // 1_000_000:,} MB"
    if logs > full:
        summary = (
            f"The write-ahead logs of the database have {space.wal_bytes // 1_000_000:,} MB, {_percent(logs)} of what "
            f"they should have at most; the disk has {left} left."
        )
    else:
        summary = f"The disk of the database is {_percent(used)} full; it has {left} left."
    # Space comes and goes in small steps: it is clear a twentieth below the threshold.
    condition = _condition(value, rule.above)
    if condition is Condition.NEAR and value < rule.above - (1 - rule.above) / 2:
        condition = Condition.CLEAR
    return [_finding(rule, None, condition, summary, value=value)]


def _sinks(rule: Rule, facts: Facts) -> list[SinkFacts]:
    wanted = rule.where.get("sink")
    return [sink for sink in facts.sinks or () if wanted is None or sink.name in wanted]


# --- findings in words ---


def _finding(
    rule: Rule,
    group: str | None,
    condition: Condition,
    summary: str,
    *,
    value: float,
    threshold: float | None = None,
    volume: int | None = None,
    before: float | None = None,
) -> Finding:
    evidence = Evidence(
        value=round(value, 4),
        threshold=rule.above if threshold is None else threshold,
        volume=volume,
        before=round(before, 4) if before is not None else None,
    )
    return Finding(group=group, condition=condition, summary=summary, evidence=evidence)


def _unknown(rule: Rule, summary: str) -> Finding:
    return _finding(rule, None, Condition.UNKNOWN, summary, value=0)


def _longer_than(rule: Rule) -> timedelta:
    return rule.longer_than or timedelta(0)


def _of(rule: Rule, group: str | None, facts: Facts) -> str:
    """The end of a noun that says of which group it is."""
    match rule.by:
        case None:
            return ""
        case "carrierName":
            return f" of carrier {group}"
        case "applicationId":
            return f" of application {group}"
        case "from":
            return f" from {group}"
        case "deliveryCode":
            return f" with code {group}"
        case "category":
            return f" with codes of the category {group}"
    return f" of {group}"


def _most_frequent(tally: _Tally, facts: Facts) -> str:
    """A sentence that names the most frequent code of the failures."""
    if not tally.codes:
        return ""
    (api, code), number = max(tally.codes.items(), key=lambda item: (item[1], item[0]))
    return f" {number:,} of them ended with {code} ({facts.code_name(api, code)})."


def _share_before(share: float | None) -> str:
    return f"; in the 24 hours before it was {_percent(share)}" if share is not None else ""


def _percent(share: float) -> str:
    percent = 100 * share
    return f"{percent:.0f} %" if percent >= 10 or percent == 0 else f"{percent:.1f}".removesuffix(".0") + " %"


def _round(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}".removesuffix(".0")


def _time(span: timedelta) -> str:
    seconds = round(span.total_seconds())
    for size, name in ((86_400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= 10 * size or (seconds >= size and seconds % size == 0):
            number = round(seconds / size)
            return f"{number} {name}{'s' if number != 1 else ''}"
    return f"{seconds} {'second' if seconds == 1 else 'seconds'}"


_EVALUATIONS: Final[Mapping[RuleType, Callable[[Rule, Facts, datetime], list[Finding]]]] = {
    RuleType.FAILURE_RATE: _failure_rate,
    RuleType.CODE_SPIKE: _code_spike,
    RuleType.SLOW_DELIVERY: _slow_delivery,
    RuleType.RECEIPTS_STOPPED: _receipts_stopped,
    RuleType.AWAITING_RECEIPT: _awaiting_receipt,
    RuleType.CONTRADICTIONS: _contradictions,
    RuleType.FORGED_TAGS: _forged_tags,
    RuleType.QUARANTINE: _quarantine,
    RuleType.FALLBACK_USED: _fallback_used,
    RuleType.WRONG_CREDENTIALS: _wrong_credentials,
    RuleType.PROCESSOR_BEHIND: _processor_behind,
    RuleType.SINK_DOWN: _sink_down,
    RuleType.SINK_BEHIND: _sink_behind,
    RuleType.DEAD_LETTERS: _dead_letters,
    RuleType.STORAGE: _storage,
    # Another program evaluates it.
    RuleType.EXTERNAL: lambda _rule, _facts, _now: [],
}
