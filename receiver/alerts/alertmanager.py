"""Alertmanager's webhook format, version 4, in both directions.

https://prometheus.io/docs/alerting/latest/configuration/#webhook_config
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from receiver.alerts.text import Templates, fields
from receiver.domain.alerts import (
    Alert,
    AlertChange,
    AlertStatus,
    Evidence,
    Rule,
    RuleType,
    Severity,
    Transition,
    resolution,
)
from receiver.domain.cloudevents import rfc3339
from receiver.domain.notifications import Notification
from receiver.providers.fields import storable

VERSION: Final = "4"
NEVER: Final = "0001-01-01T00:00:00Z"
"""Go's zero time: the end of an alert that still fires."""
MAX_ALERTS: Final = 500
MAX_OPEN: Final = 1000
"""At most so many alerts of other programs are open at once."""
MAX_BODY_BYTES: Final = 1024 * 1024
LATE_POSTS: Final = timedelta(minutes=5)

_PREFIX: Final = "external-"

_MAX_LABELS: Final = 64
_MAX_SUMMARY: Final = 500
_MAX_NAME: Final = 200
_MAX_GROUP: Final = 300
_EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SEVERITIES: Final = {
    "critical": Severity.CRITICAL,
    "page": Severity.CRITICAL,
    "error": Severity.CRITICAL,
    "warning": Severity.WARNING,
    "info": Severity.INFO,
    "none": Severity.INFO,
}

# --- out ---


def payload(notification: Notification, templates: Templates, base_url: str) -> dict[str, Any]:
    """The JSON that Alertmanager would post about one alert."""
    alert, values = notification.alert, fields(notification)
    labels = {"alertname": alert.name, "rule": str(alert.rule), "severity": str(alert.severity)}
    if alert.group is not None:
        labels["group"] = alert.group
    annotations = {
        "summary": values["summary"],
        "description": templates.render_body(notification),
        "runbook_url": notification.runbook,
        **{name: values[name] for name in ("value", "threshold", "before", "volume", "messages") if values[name]},
    }
    status = "resolved" if notification.is_resolved else "firing"
    ended = alert.resolved_at if notification.is_resolved else None
    one = {
        "status": status,
        "labels": labels,
        "annotations": annotations,
        "startsAt": rfc3339(alert.fired_at or alert.began_at),
        "endsAt": rfc3339(ended) if ended is not None else NEVER,
        "generatorURL": notification.link,
        "fingerprint": fingerprint(labels),
    }
    return {
        "version": VERSION,
        "groupKey": f"{{}}:{{alertname={orjson.dumps(alert.name).decode()}}}",
        "truncatedAlerts": 0,
        "status": status,
        "receiver": "receiver",
        "groupLabels": {"alertname": alert.name},
        "commonLabels": labels,
        "commonAnnotations": annotations,
        "externalURL": base_url,
        "alerts": [one],
    }


def fingerprint(labels: Mapping[str, str]) -> str:
    """The same 16 digits for the same labels."""
    return hashlib.sha256(orjson.dumps(dict(labels), option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


# --- in ---


def _in_range(moment: datetime) -> datetime:
    if moment.replace(tzinfo=UTC) < _EARLIEST:
        raise ValueError("must not be before 1970")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("must not be after the year 9999 in UTC") from None


def _written(value: Any) -> Any:
    """Refuses numbers, also as text, which would be read as seconds since 1970."""
    if isinstance(value, int | float) or (isinstance(value, str) and not value.strip("+-.0123456789")):
        raise ValueError("Input should be a valid datetime")
    return value


def _end(moment: datetime | None) -> datetime | None:
    """The end that an alert names; None for the zero time, and for one beyond any calendar."""
    if moment is None or moment.replace(tzinfo=UTC) < _EARLIEST:
        return None
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        return None


_Labels = Annotated[
    dict[Annotated[str, Field(max_length=200)], Annotated[str, Field(max_length=8192)]],
    Field(max_length=_MAX_LABELS),
]


class AlertmanagerAlert(BaseModel):
    """One alert of a group. Fields that are not listed here are ignored."""

    model_config = ConfigDict(frozen=True)

    status: Literal["firing", "resolved"]
    labels: _Labels
    annotations: _Labels = {}
    starts_at: Annotated[AwareDatetime, BeforeValidator(_written), AfterValidator(_in_range)] = Field(alias="startsAt")
    ends_at: Annotated[AwareDatetime | None, BeforeValidator(_written), AfterValidator(_end)] = Field(
        None, alias="endsAt", description="when the alert ends by itself; year 1 if that is not known"
    )
    generator_url: str = Field("", alias="generatorURL", max_length=8192)
    fingerprint: str = Field("", max_length=200, description="identifies the labels; without it the labels do")


class AlertmanagerPost(BaseModel):
    """What Alertmanager posts to a webhook. Fields that are not listed here are ignored."""

    model_config = ConfigDict(frozen=True)

    version: Literal["4"]
    alerts: list[AlertmanagerAlert] = Field(max_length=MAX_ALERTS)


def external_id(alert: AlertmanagerAlert) -> str:
    """The id of our alert: the same for each post about the same alert, which Alertmanager repeats."""
    identity = alert.fingerprint or fingerprint(alert.labels)
    digest = hashlib.sha256(f"{identity} {rfc3339(alert.starts_at)}".encode("utf-8", "replace")).hexdigest()
    return f"{_PREFIX}{digest[:24]}"


def next_id(alert_id: str) -> str:
    """The id of our alert about the same alert of another program when that fires again."""
    base, _, number = alert_id.removeprefix(_PREFIX).partition("-")
    return f"{_PREFIX}{base}-{int(number or 1) + 1}"


def fires_again(known: Alert, posted: AlertmanagerAlert, now: datetime) -> bool:
    """Whether an alert that is resolved fires again with the same start.

    Alertmanager keeps the start of an alert that was away for some minutes, and posts a later end. After a post that
    resolved the alert, others may come late: those of a second Alertmanager, within seconds, and those that are tried
    again.
    """
    if known.resolved_at is None or not _is_firing(posted, now):
        return False
    has_ended_by_itself = known.ends_at is not None and known.ends_at <= known.resolved_at
    return has_ended_by_itself or now - known.resolved_at >= LATE_POSTS


def changes(
    posted: Iterable[AlertmanagerAlert],
    known: Mapping[str, Alert],
    rules: Sequence[Rule],
    now: datetime,
) -> list[AlertChange]:
    """The changes of our alerts that a post brings; `known` are the latest ones that are stored, by `external_id`.

    An alert that was resolved before anybody here heard of it changes nothing. Each alert has one change at most, also
    if the post names it several times.
    """
    found = (
        _change(one, alert_id, known.get(alert_id), rules, now) for alert_id, one in _last_states(posted, now).items()
    )
    return [change for change in found if change is not None]


def _last_states(posted: Iterable[AlertmanagerAlert], now: datetime) -> dict[str, AlertmanagerAlert]:
    """What a post says last of each alert, by our id; one that is resolved stays so."""
    states: dict[str, AlertmanagerAlert] = {}
    for one in posted:
        alert_id = external_id(one)
        if alert_id not in states or _is_firing(states[alert_id], now):
            states[alert_id] = one
    return states


def _is_firing(posted: AlertmanagerAlert, now: datetime) -> bool:
    return posted.status == "firing" and (posted.ends_at is None or posted.ends_at > now)


def _change(
    posted: AlertmanagerAlert, alert_id: str, known: Alert | None, rules: Sequence[Rule], now: datetime
) -> AlertChange | None:
    is_firing = _is_firing(posted, now)
    if known is None:
        if not is_firing:
            return None
        return AlertChange(transition=Transition.FIRED, alert=_fired(posted, alert_id, rules, now))
    if known.status is AlertStatus.RESOLVED:
        if not fires_again(known, posted, now):
            return None
        return AlertChange(transition=Transition.FIRED, alert=_fired(posted, next_id(known.id), rules, now))
    if not is_firing:
        return resolution(known, now)
    summary, severity, ends_at = _summary(posted), _severity(posted), posted.ends_at
    if (summary, severity, ends_at) == (known.summary, known.severity, known.ends_at):
        return None
    updated = replace(known, summary=summary, severity=severity, ends_at=ends_at, updated_at=now)
    return AlertChange(transition=Transition.UPDATED, alert=updated)


def _fired(posted: AlertmanagerAlert, alert_id: str, rules: Sequence[Rule], now: datetime) -> Alert:
    name = _name(posted)
    rule = _rule(name, rules)
    return Alert(
        id=alert_id,
        rule=RuleType.EXTERNAL,
        name=name,
        severity=_severity(posted),
        status=AlertStatus.FIRING,
        group=_group(posted),
        summary=_summary(posted),
        # Another program has measured; it fires, which is more than not at all.
        evidence=Evidence(value=1, threshold=0),
        to=rule.to if rule is not None else (),
        began_at=min(posted.starts_at, now),
        fired_at=now,
        updated_at=now,
        ends_at=posted.ends_at,
    )


def _rule(name: str, rules: Sequence[Rule]) -> Rule | None:
    """The rule for alerts of other programs: the one with the name of the alert, else the one called `external`."""
    external = {rule.name: rule for rule in rules if rule.type is RuleType.EXTERNAL}
    return external.get(name) or external.get(RuleType.EXTERNAL)


def _name(posted: AlertmanagerAlert) -> str:
    return storable(posted.labels.get("alertname") or str(RuleType.EXTERNAL))[:_MAX_NAME]


def _severity(posted: AlertmanagerAlert) -> Severity:
    return _SEVERITIES.get(posted.labels.get("severity", "").lower(), Severity.WARNING)


def _group(posted: AlertmanagerAlert) -> str | None:
    """The other labels, which tell the alerts of a name apart; beyond a length also the fingerprint."""
    others = sorted((key, value) for key, value in posted.labels.items() if key not in ("alertname", "severity"))
    text = storable(", ".join(f"{key}={value}" for key, value in others))
    if len(text) > _MAX_GROUP:
        identity = posted.fingerprint or fingerprint(posted.labels)
        text = f"{text[: _MAX_GROUP - len(identity) - 2]}… {storable(identity)}"
    return text or None


def _summary(posted: AlertmanagerAlert) -> str:
    notes = posted.annotations
    text = notes.get("summary") or notes.get("description") or notes.get("message") or f"{_name(posted)} fires."
    return storable(text)[:_MAX_SUMMARY]
