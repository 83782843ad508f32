"""Findings of the rules of alerts: conditions, evidence, and the words of their sentences."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from receiver.domain.alert_cells import Tally
from receiver.domain.alert_facts import Facts
from receiver.domain.alerts import CLEAR_BELOW, Condition, Evidence, Finding, Rule

BEHIND: Final = timedelta(seconds=60)
"""Silence is no evidence while callbacks wait for longer than this: the receipts may be among them."""


def finding(
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
    """A finding with its evidence; without `threshold` that is the rule's `above`."""
    evidence = Evidence(
        value=round(value, 4),
        threshold=rule.above if threshold is None else threshold,
        volume=volume,
        before=round(before, 4) if before is not None else None,
    )
    return Finding(group=group, condition=condition, summary=summary, evidence=evidence)


def unknown(rule: Rule, summary: str) -> Finding:
    """The finding of a rule that could read nothing."""
    return finding(rule, None, Condition.UNKNOWN, summary, value=0)


def number_finding(
    rule: Rule, group: str | None, number: float, summary: str, *, before: float | None = None
) -> Finding:
    """The finding of a rule whose threshold is a number."""
    return finding(rule, group, condition_of(number, rule.above), summary, value=number, before=before)


def condition_of(value: float, threshold: float) -> Condition:
    """The condition of a value that should not be above a threshold."""
    if value > threshold:
        return Condition.BREACHED
    return Condition.NEAR if value > threshold * CLEAR_BELOW else Condition.CLEAR


def unless_watched(rule: Rule, facts: Facts, now: datetime, finding: Finding) -> Finding:
    """The finding, or that nothing is known: silence and lateness are no evidence if we were not there ourselves."""
    if facts.watching_since is None or now - facts.watching_since < rule.window:
        return no_evidence(finding, "nobody watched for all of the time")
    return unless_behind(facts, finding)


def unless_behind(facts: Facts, finding: Finding) -> Finding:
    """The finding, or that nothing is known: what is missing may be among what waits to be processed or counted."""
    if facts.watching_since is None:
        return no_evidence(finding, "events wait to be counted")
    if facts.processor is None:
        return no_evidence(finding, "the state of the processor is not known")
    if facts.processor.failing_since is not None or facts.processor.oldest_seconds > BEHIND.total_seconds():
        return no_evidence(finding, "callbacks wait to be processed")
    return finding


def no_evidence(finding: Finding, reason: str) -> Finding:
    """The finding, of which nothing follows for this reason."""
    return replace(finding, condition=Condition.UNKNOWN, summary=f"{finding.summary} It is no evidence: {reason}.")


def of_group(rule: Rule, group: str | None, facts: Facts) -> str:
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


def most_frequent_code(tally: Tally, facts: Facts) -> str:
    """A sentence that names the most frequent code of the failures."""
    if not tally.codes:
        return ""
    (api, code), number = max(tally.codes.items(), key=lambda item: (item[1], item[0]))
    return f" {number:,} of them ended with {code} ({facts.code_name(api, code)})."


def share_before(share: float | None) -> str:
    """The part of a sentence about the share before, if it is known."""
    return f"; in the 24 hours before it was {percent(share)}" if share is not None else ""


def percent(share: float) -> str:
    """A share in words, with a digit after the point below ten per cent."""
    percent = 100 * share
    return f"{percent:.0f} %" if percent >= 10 or percent == 0 else f"{percent:.1f}".removesuffix(".0") + " %"


def rounded(number: float) -> str:
    """A number in words, with a digit after the point below ten."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}".removesuffix(".0")


def span_text(span: timedelta) -> str:
    """A span of time in words."""
    seconds = round(span.total_seconds())
    for size, name in ((86_400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= 10 * size or (seconds >= size and seconds % size == 0):
            number = round(seconds / size)
            return f"{number} {name}{'s' if number != 1 else ''}"
    return f"{seconds} {'second' if seconds == 1 else 'seconds'}"
