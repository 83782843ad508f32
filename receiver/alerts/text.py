"""The title and the body of a notification, from templates with named values. No value is ever executed.

Summaries and groups contain texts of strangers: names of senders, carriers, sinks and labels. Their control characters
are removed, so that none of them begins a line of its own, and mentions and links with a text of their own, which chats
make of plain text too, are broken up. What else a service makes of the text is escaped by the client of the service.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from string import Template
from typing import Final

from receiver.domain.alerts import RuleType
from receiver.domain.cloudevents import rfc3339
from receiver.domain.notifications import Notification
from receiver.errors import did_you_mean

TITLE: Final = "$state: $name$for_group"
BODY: Final = "$summary\n\n$details\n"

FIELDS: Final = {
    "state": "`Info`, `Warning` or `Critical` while it fires, then `Resolved`",
    "severity": "`info`, `warning` or `critical`",
    "name": "the name of the rule in the settings",
    "rule": "the type of the rule",
    "group": "the value of the rule's `by`; empty without one",
    "for_group": "` (GROUP)`; empty without a group",
    "summary": "the sentence that says what happens",
    "value": "what the rule measures, now",
    "threshold": "the threshold",
    "before": "the value before; empty if it is not known",
    "volume": "how much was looked at; empty if that says nothing",
    "messages": "ids of up to ten messages, with commas",
    "link": "where the alert is shown",
    "runbook": "what to do about it",
    "id": "the id of the alert",
    "fired_time": "when it fired",
    "resolved_time": "when it was resolved; empty while it fires",
    "details": "all of these that are known, a line for each",
}
"""The values of a template, and what they are."""

_SHARES: Final = frozenset({RuleType.FAILURE_RATE, RuleType.SLOW_DELIVERY, RuleType.STORAGE})
_LONGEST: Final = 500
_MAX_TITLE: Final = 250
_MAX_BODY: Final = 8000
_BREAK: Final = "\u200b"
# `@everyone`; `<!channel>`, `<@&123>` and `<#123>` of Slack and Discord; `<users/all>` of Google Chat, and
# `<https://…|click>` of several; `[click](https://…)` and `[click]: https://…` of Markdown, but not `[::1]:8080`.
_MARKUP: Final = re.compile(
    r"@(?=everyone\b|here\b|channel\b|all\b)|<(?=[!@#]|users/|[a-z][a-z0-9+.-]*:)|\](?=\(|:(?!\d+(?:[^\w.-]|$)))",
    re.IGNORECASE,
)
# Mattermost makes a link of anything before the bar, whatever it begins with.
_IN_ANGLES: Final = re.compile("<[^<>]*")


def template_error(template: str) -> str | None:
    """Why a template cannot be used; None if it can."""
    parsed = Template(template)
    if not parsed.is_valid():
        return "has a $ without a name; write $$ for a dollar sign"
    for name in parsed.get_identifiers():
        if name not in FIELDS:
            return f"${name} is not a value of a notification{did_you_mean(name, FIELDS)}"
    return None


@dataclass(frozen=True, slots=True)
class Templates:
    """The templates of title and body."""

    title: str = TITLE
    body: str = BODY

    def render_title(self, notification: Notification) -> str:
        """The title, on one line."""
        return cleaned(Template(self.title).substitute(fields(notification)), _MAX_TITLE)

    def render_body(self, notification: Notification) -> str:
        return Template(self.body).substitute(fields(notification))[:_MAX_BODY].strip()


def cleaned(text: str, longest: int = _LONGEST) -> str:
    """A text of strangers on one line, without control characters, mentions and links with a text."""
    # A title consists of texts that are cleaned already.
    text = text.replace(_BREAK, "")
    printable = "".join(" " if unicodedata.category(character)[0] in "CZ" else character for character in text)
    short = " ".join(printable.split())
    short = short if len(short) <= longest else f"{short[: longest - 1]}…"
    short = _IN_ANGLES.sub(lambda found: found[0].replace("|", "¦"), short)
    return _MARKUP.sub(f"\\g<0>{_BREAK}", short)


def fields(notification: Notification) -> dict[str, str]:
    """The values of the templates."""
    alert, evidence = notification.alert, notification.alert.evidence
    group = cleaned(alert.group) if alert.group is not None else ""
    is_measured = alert.rule is not RuleType.EXTERNAL
    values = {
        "state": "Resolved" if notification.is_resolved else alert.severity.capitalize(),
        "severity": str(alert.severity),
        "name": f"{'Test of ' if notification.is_test else ''}{cleaned(alert.name)}",
        "rule": str(alert.rule),
        "group": group,
        "for_group": f" ({group})" if group else "",
        "summary": cleaned(alert.summary),
        "value": _number(alert.rule, evidence.value) if is_measured else "",
        "threshold": _number(alert.rule, evidence.threshold) if is_measured else "",
        "before": _number(alert.rule, evidence.before) if is_measured else "",
        "volume": f"{evidence.volume:,}" if evidence.volume is not None and is_measured else "",
        "messages": ", ".join(cleaned(message) for message in alert.messages),
        "link": notification.link,
        "runbook": notification.runbook,
        "id": alert.id,
        "fired_time": _time(alert.fired_at),
        "resolved_time": _time(alert.resolved_at) if notification.is_resolved else "",
    }
    return {**values, "details": "\n".join(_details(values))}


def _details(values: dict[str, str]) -> Iterator[str]:
    yield f"Severity: {values['severity']}"
    if values["group"]:
        yield f"Group: {values['group']}"
    if values["value"]:
        further = [f"threshold {values['threshold']}"]
        further += [f"before {values['before']}"] if values["before"] else []
        further += [f"of {values['volume']}"] if values["volume"] else []
        yield f"Value: {values['value']} ({', '.join(further)})"
    for name, label in (
        ("fired_time", "Fired"),
        ("resolved_time", "Resolved"),
        ("messages", "Messages"),
        ("link", "Alert"),
        ("runbook", "What to do"),
    ):
        if values[name]:
            yield f"{label}: {values[name]}"


def _number(rule: RuleType, number: float | None) -> str:
    if number is None:
        return ""
    if rule in _SHARES:
        return f"{100 * number:.3g} %"
    return f"{number:,.0f}" if float(number).is_integer() else f"{number:,.3f}".rstrip("0")


def _time(moment: datetime | None) -> str:
    return rfc3339(moment) if moment is not None else ""
