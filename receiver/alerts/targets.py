"""The entries of a rule's `to`: names of sinks, and targets for people.

A target for people is a URL, or `env:NAME` or `file:/path` where one is. It is read once, at the start and at a reload.
From then on rules, alerts and the database have its digest, never the URL.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import ClassVar, Final, Protocol

from receiver.alerts.apprise import AppriseTarget
from receiver.alerts.hooks import AlertmanagerTarget, Context, InvalidTarget, OpsgenieTarget, PagerDutyTarget
from receiver.alerts.http import Failure
from receiver.alerts.text import BODY, TITLE, Templates, template_error
from receiver.domain.alerts import Alert, Rule, Transition
from receiver.domain.notifications import Notification, Recipient, Recipients, announce
from receiver.errors import Faults, SettingsError, did_you_mean
from receiver.models.alerts import alert_read
from receiver.sinks.base import resolved
from receiver.sinks.egress import Network
from receiver.storage import notifications
from receiver.storage.alerts import Further

TOPIC: Final = "alerts"
_SETTING: Final = "RECEIVER_ALERTS"
_DEFAULT_SETTING: Final = "RECEIVER_ALERT_TO"
# A thread or two, and a connection, for each that hangs.
MAX_TARGETS: Final = 64
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30})://")
_REFERENCE: Final = re.compile(r"(?:env|file):")
_SINK_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


class Target(Protocol):
    """Where notifications go. `closes`: it closes what it has opened once it hears that the alert is resolved."""

    closes: ClassVar[bool]

    async def send(self, notification: Notification) -> Failure | None:
        """Sends one notification within some seconds; returns why it was not accepted, None if it was."""
        ...


_OWN: Final[Mapping[str, Callable[[str, Context], Target]]] = {
    "alertmanager+http": AlertmanagerTarget,
    "alertmanager+https": AlertmanagerTarget,
    "opsgenie": OpsgenieTarget,
    "pagerduty": PagerDutyTarget,
}


@dataclass(frozen=True, slots=True)
class ConfiguredTarget:
    """A target for people, with what identifies it and what people are shown of it."""

    recipient: Recipient
    target: Target = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """The targets for people of all rules, by their digest, and the rules with digests instead of URLs in `to`.

    `defaults` are the digests of those of rules without `to`, `sinks` the names of the configured sinks. `base_url` is
    the start of links.
    """

    rules: tuple[Rule, ...] = ()
    targets: Mapping[str, ConfiguredTarget] = field(default_factory=dict)
    defaults: tuple[str, ...] = ()
    sinks: frozenset[str] = frozenset()
    base_url: str = ""

    @property
    def recipients(self) -> Recipients:
        return Recipients(
            by_target={digest: one.recipient for digest, one in self.targets.items()}, defaults=self.defaults
        )

    def of_rule(self, rule: Rule) -> list[ConfiguredTarget]:
        return [self.targets[entry] for entry in rule.to or self.defaults if entry in self.targets]

    def sinks_of(self, alert: Alert) -> frozenset[str] | None:
        """The sinks that the rule of an alert names; None: every sink that asks for alert events."""
        return frozenset(alert.to) & self.sinks if alert.to else None

    def further(self, now: datetime) -> Further:
        """What makes the notifications of changes, in the transaction that writes the alerts."""
        recipients = self.recipients
        return lambda heard, spelling: notifications.steps(announce(heard, recipients), spelling, now)

    def described(self, alert: Alert, transition: Transition) -> Notification:
        """A change of an alert with its links."""
        shown = alert_read(alert, self.base_url)
        return Notification(alert=alert, transition=transition, link=shown.link, runbook=shown.runbook)


def configure(
    rules: Iterable[Rule],
    *,
    sinks: Collection[str],
    context: Context,
    default_to: Sequence[str] = (),
) -> Targets:
    """Makes the targets of rules. `sinks` are the names of the configured sinks.

    `default_to` are the targets for people of rules without `to`, in addition to the sinks that ask for alert events.
    Raises SettingsError with a line for each wrong entry, which names the rule and the entry, and has no part of a URL
    but its scheme.
    """
    found: dict[str, ConfiguredTarget] = {}
    faults = Faults()

    def references(entries: Sequence[str], where: str) -> tuple[str, ...]:
        """The digests of targets and the names of sinks, each once."""
        names: dict[str, None] = {}
        for number, entry in enumerate(entries, start=1):
            with faults.collected():
                try:
                    names[_made(entry, sinks, context, found)] = None
                except ValueError as error:
                    raise SettingsError(f"{where}: entry {number}: {error}", topic=TOPIC) from None
        return tuple(names)

    defaults = references(default_to, _DEFAULT_SETTING)
    configured = [replace(rule, to=references(rule.to, f"{_SETTING}: {rule.name}: to")) for rule in rules]
    with faults.collected():
        _refuse_together(defaults, found)
    faults.refuse()
    return Targets(
        rules=tuple(configured),
        targets=found,
        defaults=defaults,
        sinks=frozenset(sinks),
        base_url=context.base_url,
    )


def _refuse_together(defaults: Sequence[str], found: Mapping[str, ConfiguredTarget]) -> None:
    if named := [name for name in defaults if name not in found]:
        raise SettingsError(
            f"{_DEFAULT_SETTING}: {named[0]} is a sink; a sink asks for alert events in its own events", topic=TOPIC
        )
    if len(found) > MAX_TARGETS:
        raise SettingsError(
            f"{_SETTING}: {len(found)} targets for people are more than the {MAX_TARGETS} there may be", topic=TOPIC
        )


def of_entry(entry: str, context: Context) -> ConfiguredTarget:
    """A target that need not be in the settings; raises SettingsError if it is none."""
    found: dict[str, ConfiguredTarget] = {}
    try:
        digest = _made(entry, (), context, found)
    except ValueError as error:
        raise SettingsError(f"--to: {error}", topic=TOPIC) from None
    return found[digest]


def make_context(
    *, base_url: str, title: str | None = None, body: str | None = None, egress_allow: Iterable[Network] = ()
) -> Context:
    """What all targets need; raises SettingsError with a line for each template that cannot be used."""
    faults, templates = Faults(), {"title": TITLE, "body": BODY}
    for name, given in (("title", title), ("body", body)):
        with faults.collected():
            templates[name] = _template(f"RECEIVER_ALERT_{name.upper()}", given, templates[name])
    faults.refuse()
    return Context(
        templates=Templates(templates["title"], templates["body"]),
        base_url=base_url,
        egress_allow=tuple(egress_allow),
    )


def _template(setting: str, given: str | None, default: str) -> str:
    if given is None:
        return default
    try:
        template: str = resolved(given)
        if reason := template_error(template):
            raise ValueError(reason)
    except ValueError as error:
        raise SettingsError(f"{setting}: {error}", topic=TOPIC) from None
    return template


def _made(entry: str, sinks: Collection[str], context: Context, found: dict[str, ConfiguredTarget]) -> str:
    """The name of a sink, or the digest of a target, which is added to `found`."""
    text: str = resolved(entry)
    text = text.strip()
    is_reference = text != entry.strip() or _REFERENCE.match(entry) is not None
    scheme = _SCHEME.match(text)
    if scheme is None:
        if text in sinks:
            return text
        raise ValueError(_no_target(text, sinks, is_reference=is_reference))
    name = scheme[1].lower()
    digest = _digest(text)
    if digest not in found:
        try:
            target = _OWN.get(name, AppriseTarget)(name + text[len(name) :], context)
        except InvalidTarget as error:
            raise ValueError(f"the {name}:// target {error}") from None
        found[digest] = ConfiguredTarget(Recipient(digest, _label(name, digest, entry, is_reference)), target)
    return digest


def _no_target(text: str, sinks: Collection[str], *, is_reference: bool) -> str:
    if is_reference:
        return "what it names is neither a URL nor the name of a sink"
    # Only what looks like the name of a sink is repeated: anything else may be a secret.
    if not _SINK_NAME.fullmatch(text) or len(text) > _LONGEST_NAME:
        return "must be a URL with a scheme, env:NAME, file:/path or the name of a sink"
    known = f"; there are {', '.join(sorted(sinks))}" if sinks else ""
    return f"there is no sink {text}{known}{did_you_mean(text, sinks)}"


_LONGEST_NAME: Final = 24


def _digest(text: str) -> str:
    return f"target-{hashlib.sha256(f'receiver {text}'.encode('utf-8', 'replace')).hexdigest()[:16]}"


def _label(scheme: str, digest: str, entry: str, is_reference: bool) -> str:
    """What people are shown: the scheme, and where the URL is written, or the end of its digest to tell two apart."""
    return f"{scheme}://*** ({entry.strip() if is_reference else digest[-4:]})"
