"""The rules of alerts: what each of them finds in the facts, in numbers and in a sentence.

Nothing here keeps a state: the clock and the facts are arguments, and `receiver.domain.alerts.advance` knows what was
found before.
"""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from math import exp, sqrt
from typing import Final

from receiver.domain.alert_cells import (
    OFFENDING,
    Tally,
    group_of,
    longer_than,
    message_filters,
    now_and_before,
    value_of,
)
from receiver.domain.alert_facts import (
    BEFORE,
    FINAL_MEASURES,
    Cell,
    Facts,
    Measure,
    SinkFacts,
    Waiting,
    compared_hours,
    daily_shifts,
    hour_of,
    span_of,
    weekly_shifts,
)
from receiver.domain.alert_findings import (
    condition_of,
    finding,
    most_frequent_code,
    no_evidence,
    number_finding,
    of_group,
    percent,
    rounded,
    share_before,
    span_text,
    unknown,
    unless_behind,
    unless_watched,
)
from receiver.domain.alerts import CLEAR_BELOW, Condition, Finding, Rule, RuleType
from receiver.domain.counts import count_text
from receiver.domain.vocabulary import Direction
from receiver.errors import ReceiverError

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
ROOMY_BYTES: Final = 10 * 1024**3
"""A disk with so much space left is not nearly full, whatever its share."""
WAL_BYTES: Final = 1024**3
"""The size that write-ahead logs should never reach; they are emptied after some megabytes."""
RARE_TAGS: Final = 0.01
"""Missing and unsigned tags count as forged ones where less than this share had them in the 24 hours before."""
_MANY_RECEIPTS: Final = 100


class FactsUnreadable(ReceiverError):
    """What a rule looks at could not be read: nobody knows whether there is something to find."""


def evaluate(rule: Rule, facts: Facts, now: datetime) -> list[Finding]:
    """What a rule finds, for each of its groups of which there is anything; raises FactsUnreadable."""
    missing = [f"{part}: {facts.unreadable[part]}" for part in _PARTS.get(rule.type, ()) if part in facts.unreadable]
    if missing:
        raise FactsUnreadable("; ".join(missing))
    return _EVALUATIONS[rule.type](rule, facts, now)


_PARTS: Final[Mapping[RuleType, tuple[str, ...]]] = {
    RuleType.PROCESSOR_BEHIND: ("journal", "processor"),
    RuleType.SINK_DOWN: ("what waits for the sinks",),
    RuleType.SINK_BEHIND: ("what waits for the sinks",),
    RuleType.STORAGE: ("database",),
}


# --- shares ---


def _failure_rate(rule: Rule, facts: Facts, now: datetime) -> list[Finding]:
    found = []
    for group, (tally, before) in now_and_before(rule, facts, FINAL_MEASURES).items():
        what = f"deliveries{of_group(rule, group, facts)}"
        then = before.failed / before.final if before is not None and before.final else None
        share = tally.failed / tally.final if tally.final else 0.0
        codes = most_frequent_code(tally, facts)
        summary = (
            f"{tally.failed:,} of {tally.final:,} {what} failed within {span_text(rule.window)} ({percent(share)})"
            f"{share_before(then)}.{codes}"
        )
        found.append(_share(rule, group, tally.failed, tally.final, then, summary))
    return found


def _slow_delivery(rule: Rule, facts: Facts, now: datetime) -> list[Finding]:
    found, limit = [], longer_than(rule)
    for group, (tally, before) in now_and_before(rule, facts, [Measure.DELIVERED]).items():
        then = before.slow / before.timed if before is not None and before.timed else None
        share = tally.slow / tally.timed if tally.timed else 0.0
        summary = (
            f"{tally.slow:,} of {tally.timed:,} deliveries{of_group(rule, group, facts)} within "
            f"{span_text(rule.window)} took longer than {span_text(limit)} ({percent(share)}){share_before(then)}."
        )
        part = _share(rule, group, tally.slow, tally.timed, then, summary)
        found.append(unless_watched(rule, facts, now, part))
    return found


def _share(rule: Rule, group: str | None, part: int, volume: int, before: float | None, summary: str) -> Finding:
    share = part / volume if volume else 0.0
    if volume < max(rule.minimum, 1):
        condition = Condition.UNKNOWN
    elif share > rule.above and lower_bound(part, volume) > rule.above:
        condition = Condition.BREACHED
    else:
        condition = Condition.NEAR if share > rule.above * CLEAR_BELOW else Condition.CLEAR
    return finding(rule, group, condition, summary, value=share, volume=volume, before=before)


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
    for group, (tally, before) in now_and_before(rule, facts, FINAL_MEASURES).items():
        number = tally.failed
        expected = _expected(rule, facts, now, before, tally)
        codes = most_frequent_code(tally, facts)
        then = f"; by the 24 hours before it would be {rounded(expected)}" if before is not None else ""
        summary = (
            f"{number:,} of {tally.final:,} deliveries{of_group(rule, group, facts)} ended with "
            f"{'one of these codes' if rule.by != 'deliveryCode' else 'this code'} within {span_text(rule.window)}"
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
        found.append(finding(rule, group, condition, summary, value=number, volume=tally.final, before=expected))
    return found


def _expected(rule: Rule, facts: Facts, now: datetime, before: Tally | None, current: Tally) -> float:
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
    for group, (tally, _) in now_and_before(rule, facts, [Measure.CONTRADICTED, *FINAL_MEASURES]).items():
        number, final = tally.number(Measure.CONTRADICTED), tally.final
        summary = (
            f"{number:,} events{of_group(rule, group, facts)} contradicted others within {span_text(rule.window)}: a "
            f"delivery was reported both delivered and failed. {final:,} deliveries became final."
        )
        condition = condition_of(number, rule.above) if number >= CONTRADICTED_SHARE * final else Condition.CLEAR
        found.append(finding(rule, group, condition, summary, value=number, volume=final))
    return found


def _fallback_used(rule: Rule, facts: Facts, now: datetime) -> list[Finding]:
    recent = [moment for name, moment in facts.last_callbacks.items() if name.endswith("/fallback")]
    is_recent = any(now - moment <= rule.window for moment in recent)
    found = []
    for group, (tally, _) in now_and_before(rule, facts, [Measure.FALLBACK]).items():
        number = tally.number(Measure.FALLBACK)
        if not number and is_recent and rule.by is None and not rule.where:
            # A callback that brought nothing new is no event.
            number = 1
        events = "event" if number == 1 else "events"
        which = f"{events}{of_group(rule, group, facts)}"
        summary = f"{number:,} {which} came by a fallback route within {span_text(rule.window)}."
        found.append(number_finding(rule, group, number, summary))
    return found


def are_refused_tags_counted(rule: Rule) -> bool:
    """Whether a rule about tags counts what was quarantined for its tag: of that no more than the reason is known."""
    return rule.by is None and not rule.where


_TAG_MEASURES: Final = (Measure.FORGED, Measure.MISSING, Measure.UNSIGNED, Measure.RECEIPT)


def offending_measures(rule: Rule, group: str | None, facts: Facts) -> frozenset[str]:
    """What the messages of a finding about a group count as; empty: they are not found in the log."""
    measures = OFFENDING.get(rule.type, frozenset())
    if rule.type is RuleType.FORGED_TAGS:
        _, before = now_and_before(rule, facts, _TAG_MEASURES).get(group, (None, None))
        if before is None or not _are_usually_signed(before):
            return frozenset({Measure.FORGED})
    return measures


def _forged_tags(rule: Rule, facts: Facts, now: datetime) -> list[Finding]:
    found = []
    for group, (tally, before) in now_and_before(rule, facts, _TAG_MEASURES).items():
        forged, unsigned = tally.number(Measure.FORGED), tally.number(Measure.MISSING, Measure.UNSIGNED)
        parts = [f"{forged:,} events{of_group(rule, group, facts)} had a forged tag"]
        number = forged
        if before is not None and _are_usually_signed(before):
            number += unsigned
            parts += [f"{unsigned:,} had none or an unsigned one, which is unusual"] if unsigned else []
        if are_refused_tags_counted(rule):
            refused = sum(
                count for reason, count in facts.quarantined.get(rule.window, {}).items() if reason.startswith("tag-")
            )
            number += refused
            parts += [f"{refused:,} were quarantined for their tags"] if refused else []
        summary = f"{'; '.join(parts)} within {span_text(rule.window)}."
        found.append(number_finding(rule, group, number, summary))
    return found


def _are_usually_signed(before: Tally) -> bool:
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
        number_finding(
            rule, None, number, f"{number:,} {elements} quarantined within {span_text(rule.window)}{because}."
        )
    ]


def _wrong_credentials(rule: Rule, facts: Facts, now: datetime) -> list[Finding]:
    number = facts.refused.get(rule.window, {}).get("wrong-credentials", 0)
    summary = f"{number:,} callbacks came with wrong credentials within {span_text(rule.window)}."
    return [number_finding(rule, None, number, summary)]


def _dead_letters(rule: Rule, facts: Facts, now: datetime) -> list[Finding]:
    found, new = [], facts.dead_letters.get(rule.window, {})
    for sink, number in new.items():
        if _is_wanted(rule, sink):
            summary = f"{number:,} new dead letters of sink {sink} within {span_text(rule.window)}."
            found.append(number_finding(rule, sink, number, summary))
    return found


# --- silence ---


def _receipts_stopped(rule: Rule, facts: Facts, now: datetime) -> list[Finding]:
    """Compares each group with the same hours of the weeks before; see `expected_receipts`."""
    span = span_of(rule)
    assert span is not None  # noqa: S101
    directions = rule.where.get("direction", frozenset({"out"}))
    measures = {measure for direction, measure in _BY_DIRECTION.items() if direction in directions}
    came: dict[str | None, int] = {}
    for cell in facts.cells.get(span, ()):
        if cell.measure in measures and all(
            value_of(cell, name, facts) in v for name, v in message_filters(rule).items()
        ):
            group = group_of(rule, cell, facts)
            came[group] = came.get(group, 0) + cell.events
    history: dict[str | None, dict[int, int]] = {}
    for key, hours in facts.history.items():
        cell = Cell(key.measure, key.api, key.direction, key.application_id, "", "", None, None, 0)
        if key.measure in measures and all(
            value_of(cell, name, facts) in v for name, v in message_filters(rule).items()
        ):
            by_hour = history.setdefault(group_of(rule, cell, facts), {})
            for hour, events in hours.items():
                by_hour[hour] = by_hour.get(hour, 0) + events
    groups = list(dict.fromkeys([*history, *came, *([None] if rule.by is None else [])]))
    return [_silence(rule, group, came.get(group, 0), history.get(group, {}), facts, now) for group in groups]


_BY_DIRECTION: Final = {Direction.OUT: Measure.RECEIPT, Direction.IN: Measure.INBOUND}


def _silence(
    rule: Rule, group: str | None, came: int, history: Mapping[int, int], facts: Facts, now: datetime
) -> Finding:
    of, time = of_group(rule, group, facts), span_text(rule.window)
    what = "inbound messages" if rule.where.get("direction") == frozenset({"in"}) else "receipts"
    expected = expected_receipts(history, facts.history_since, now, rule.window)
    condition = Condition.CLEAR
    if expected is None:
        summary = f"{came:,} {what}{of} came within {time}; there is too little history to know how many to expect."
        condition = Condition.CLEAR if came else Condition.UNKNOWN
    else:
        summary = (
            f"{came:,} {what}{of} came within {time}; at this hour of the weekday at least {rounded(expected)} do."
        )
        if came <= rule.above:
            is_evidence = expected >= rule.minimum and exp(-expected) < SILENCE_CHANCE
            condition = Condition.BREACHED if is_evidence else Condition.UNKNOWN
        elif came < expected * (1 - CLEAR_BELOW):
            condition = Condition.NEAR
    found = finding(rule, group, condition, summary, value=came, before=expected)
    return unless_watched(rule, facts, now, found) if condition is not Condition.CLEAR else found


def expected_receipts(history: Mapping[int, int], since: int | None, now: datetime, window: timedelta) -> float | None:
    """How many receipts a window has at least, by the same hours of the weekday in the weeks before.

    While there are fewer than `REFERENCES` such weeks, neighbouring days count too. The lowest of them is left out:
    it may have been a holiday, or a day without us. With three days alone it is not: campaigns on two of three days
    happen by chance. Of each the quietest hour counts, since nothing is known of how its receipts were spread over it.
    None: there is too little history.
    """
    hours = compared_hours(now, window)
    shifts = [shift for shift in weekly_shifts() if since is not None and hours[0] - shift >= since]
    is_weekly = len(shifts) >= REFERENCES
    if not is_weekly:
        shifts += [shift for shift in daily_shifts(now) if since is not None and hours[0] - shift >= since]
    if len(shifts) < REFERENCES:
        return None
    quietest = sorted(min(history.get(hour - shift, 0) for hour in hours) for shift in shifts)
    left_out = 1 if is_weekly or len(shifts) > REFERENCES else 0
    return quietest[left_out] * (window / timedelta(hours=1))


# --- waiting ---


def _awaiting_receipt(rule: Rule, facts: Facts, now: datetime) -> list[Finding]:
    limit = longer_than(rule)
    rows = facts.waiting.get(rule.name)
    if rows is None:
        return [unknown(rule, "The messages that wait could not be counted.")] if rule.by is None else []
    waiting: dict[str | None, int] = {}
    for row in rows:
        cell = _cell_of(row)
        if all(value_of(cell, name, facts) in wanted for name, wanted in rule.where.items()):
            group = group_of(rule, cell, facts)
            waiting[group] = waiting.get(group, 0) + row.messages
    found = []
    tallies = now_and_before(rule, facts, FINAL_MEASURES)
    is_partial = span_of(rule) in facts.partial
    for group in dict.fromkeys([*tallies, *waiting]):
        number = waiting.get(group, 0)
        final = tallies[group][0].final if group in tallies else 0
        share = number / (number + final) if number else 0.0
        summary = (
            f"{number:,} messages{of_group(rule, group, facts)} of {span_text(rule.window)} wait longer than "
            f"{span_text(limit)} for a final event; {final:,} became final in the last {span_text(rule.window)}."
        )
        if number > rule.above and share > WAITING_SHARE:
            condition = Condition.BREACHED
        elif number > rule.above * CLEAR_BELOW and share > WAITING_SHARE * CLEAR_BELOW:
            condition = Condition.NEAR
        else:
            condition = Condition.CLEAR
        part = finding(rule, group, condition, summary, value=number, volume=number + final)
        if condition is not Condition.CLEAR:
            part = unless_behind(facts, part)
            if is_partial:
                part = no_evidence(part, "there are more senders than are counted one by one")
        found.append(part)
    return found


def _cell_of(row: Waiting) -> Cell:
    return Cell("", row.api, "out", row.application_id, "", row.sender, None, None, row.messages)


def _processor_behind(rule: Rule, facts: Facts, now: datetime) -> list[Finding]:
    found = facts.processor
    if found is None:
        return [unknown(rule, "The state of the processor could not be read.")]
    limit = longer_than(rule).total_seconds()
    seconds = found.oldest_seconds
    if found.failing_since is not None:
        seconds = max(seconds, (now - found.failing_since).total_seconds())
        summary = (
            f"Callbacks cannot be processed for {span_text(timedelta(seconds=seconds))}: {found.error or 'unknown'}."
        )
        return [finding(rule, None, Condition.BREACHED, summary, value=round(seconds), threshold=limit)]
    missing = "" if found.is_held else " No worker processes callbacks."
    waiting = f", the oldest for {span_text(timedelta(seconds=seconds))}" if found.pending else ""
    summary = f"{count_text(found.pending)} callbacks wait to be processed{waiting}.{missing}"
    condition = condition_of(seconds, limit)
    return [finding(rule, None, condition, summary, value=round(seconds), threshold=limit, volume=found.pending)]


def _sink_down(rule: Rule, facts: Facts, now: datetime) -> list[Finding]:
    found = []
    for sink in _sinks(rule, facts):
        is_down = sink.down_since is not None and not sink.paused
        seconds = (now - sink.down_since).total_seconds() if sink.down_since is not None and is_down else 0.0
        why = f": {sink.last_error or 'the error is not known'}"
        down = f"Sink {sink.name} is down for {span_text(timedelta(seconds=seconds))}{why}."
        summary = down if is_down else f"Sink {sink.name} is {'paused' if sink.paused else 'not down'}."
        condition = Condition.BREACHED if is_down else Condition.CLEAR
        threshold = rule.holds_for.total_seconds()
        found.append(finding(rule, sink.name, condition, summary, value=round(seconds), threshold=threshold))
    return found


def _sink_behind(rule: Rule, facts: Facts, now: datetime) -> list[Finding]:
    found, limit = [], longer_than(rule).total_seconds()
    for sink in _sinks(rule, facts):
        seconds = sink.oldest_seconds or 0.0
        is_one = sink.waiting == 1
        oldest = "for" if is_one else "the oldest for"
        age = f", {oldest} {span_text(timedelta(seconds=seconds))}" if sink.oldest_seconds is not None else ""
        paused = " It is paused." if sink.paused else ""
        events = "event waits" if is_one else "events wait"
        more = "+" if sink.waiting_at_least else ""
        summary = f"{sink.waiting:,}{more} {events} for sink {sink.name}{age}.{paused}"
        condition = condition_of(seconds, limit)
        found.append(
            finding(rule, sink.name, condition, summary, value=round(seconds), threshold=limit, volume=sink.waiting)
        )
    return found


def _storage(rule: Rule, facts: Facts, now: datetime) -> list[Finding]:
    space = facts.storage
    if space is None:
        return [unknown(rule, "The space of the database is not known here.")]
    used = 1 - space.free_bytes / space.disk_bytes if space.disk_bytes else 0.0
    logs = space.wal_bytes / WAL_BYTES
    full = used if space.free_bytes < ROOMY_BYTES else 0.0
    value = max(full, logs)
    left = f"{space.free_bytes // 1_000_000:,} MB"
    if logs > full:
        summary = (
            f"The write-ahead logs of the database have {space.wal_bytes // 1_000_000:,} MB, {percent(logs)} of what "
            f"they should have at most; the disk has {left} left."
        )
    else:
        summary = f"The disk of the database is {percent(used)} full; it has {left} left."
    # Space comes and goes in small steps: it is clear a twentieth below the threshold.
    condition = condition_of(value, rule.above)
    if condition is Condition.NEAR and value < rule.above - (1 - rule.above) / 2:
        condition = Condition.CLEAR
    return [finding(rule, None, condition, summary, value=value)]


def _sinks(rule: Rule, facts: Facts) -> list[SinkFacts]:
    return [sink for sink in facts.sinks or () if _is_wanted(rule, sink.name)]


def _is_wanted(rule: Rule, sink: str) -> bool:
    wanted = rule.where.get("sink")
    return wanted is None or sink in wanted


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
