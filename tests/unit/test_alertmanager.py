"""Alertmanager's webhook format in both directions."""

import json
from datetime import timedelta
from typing import Any

import jsonschema_rs
import pytest
from pydantic import ValidationError

from receiver.alerts.alertmanager import MAX_ALERTS, AlertmanagerPost, changes, external_id, payload
from receiver.alerts.text import Templates
from receiver.domain.alerts import Alert, AlertChange, AlertStatus, Rule, RuleType, Severity, Transition, ended
from tests.alerting import BASE_URL, made, make_alert, make_rule
from tests.factories import at

# The payload of a probe of the Blackbox exporter, as Alertmanager 0.25 posted it.
POSTED: dict[str, Any] = {
    "receiver": "sms",
    "status": "firing",
    "alerts": [
        {
            "status": "firing",
            "labels": {
                "alertname": "ProbeFailure",
                "instance": "https://server.example.org",
                "job": "http_checks",
                "monitor": "master",
                "severity": "critical",
            },
            "annotations": {
                "description": "Instance https://server.example.org has been down for over 5m. Job: http_checks",
                "summary": "BlackBox Probe Failure: https://server.example.org",
            },
            "startsAt": "2023-02-06T13:08:45.828Z",
            "endsAt": "0001-01-01T00:00:00Z",
            "generatorURL": "http://prometheus.example.org:9090/graph?g0.expr=probe_success+%3D%3D+0&g0.tab=1",
            "fingerprint": "1a30ba71cca2921f",
        }
    ],
    "groupLabels": {"alertname": "ProbeFailure"},
    "commonLabels": {"alertname": "ProbeFailure", "severity": "critical"},
    "commonAnnotations": {},
    "externalURL": "http://prometheus.example.org:9093",
    "version": "4",
    "groupKey": '{}/{severity="critical"}:{alertname="ProbeFailure"}',
    "truncatedAlerts": 0,
}

_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
# What Alertmanager documents: https://prometheus.io/docs/alerting/latest/configuration/#webhook_config
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": [
        "version",
        "groupKey",
        "truncatedAlerts",
        "status",
        "receiver",
        "groupLabels",
        "commonLabels",
        "commonAnnotations",
        "externalURL",
        "alerts",
    ],
    "properties": {
        "version": {"const": "4"},
        "groupKey": {"type": "string"},
        "truncatedAlerts": {"type": "integer"},
        "status": {"enum": ["resolved", "firing"]},
        "receiver": {"type": "string"},
        "groupLabels": _TEXTS,
        "commonLabels": _TEXTS,
        "commonAnnotations": _TEXTS,
        "externalURL": {"type": "string", "format": "uri"},
        "alerts": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": [
                    "status",
                    "labels",
                    "annotations",
                    "startsAt",
                    "endsAt",
                    "generatorURL",
                    "fingerprint",
                ],
                "properties": {
                    "status": {"enum": ["resolved", "firing"]},
                    "labels": _TEXTS,
                    "annotations": _TEXTS,
                    "startsAt": {"type": "string", "format": "date-time"},
                    "endsAt": {"type": "string", "format": "date-time"},
                    "generatorURL": {"type": "string", "format": "uri"},
                    "fingerprint": {"type": "string", "pattern": "^[0-9a-f]{16}$"},
                },
            },
        },
    },
}


def post(**alert: Any) -> AlertmanagerPost:
    one = {**POSTED["alerts"][0], **alert}
    return AlertmanagerPost.model_validate_json(json.dumps({**POSTED, "alerts": [one]}))


def after(
    posted: AlertmanagerPost, known: list[Alert] | None = None, rules: list[Rule] | None = None, seconds: float = 0
) -> list[AlertChange]:
    latest = {alert.id[: len(external_id(posted.alerts[0]))]: alert for alert in known or ()}
    return changes(posted.alerts, latest, rules or (), at(seconds))


# --- out ---


@pytest.mark.parametrize("transition", [Transition.FIRED, Transition.RESOLVED])
@pytest.mark.parametrize("group", [None, 'evil" \n <b>'])
def test_payload_has_the_documented_shape(transition: Transition, group: str | None) -> None:
    alert = make_alert(group=group, resolved_at=at(60) if transition is Transition.RESOLVED else None)
    found = payload(made(alert, transition), Templates(), BASE_URL)
    jsonschema_rs.validator_for(SCHEMA, validate_formats=True).validate(found)
    [one] = found["alerts"]
    assert one["endsAt"] == ("2026-01-01T00:01:00Z" if alert.resolved_at else "0001-01-01T00:00:00Z")
    assert one["labels"]["alertname"] == "t-mobile blocks"


def test_payload_of_the_test_is_valid_by_the_same_schema() -> None:
    jsonschema_rs.validator_for(SCHEMA, validate_formats=True).validate(POSTED)


def test_fingerprint_is_the_same_for_the_same_alert_and_differs_between_groups() -> None:
    def of(**fields: Any) -> str:
        alert = payload(made(make_alert(**fields)), Templates(), BASE_URL)["alerts"][0]
        return str(alert["fingerprint"])

    assert of(id="a-1") == of(id="a-2")
    assert of(group="other") != of()


# --- in ---


def test_firing_alert_becomes_one_of_ours() -> None:
    [change] = after(post())
    alert = change.alert
    assert change.transition is Transition.FIRED
    assert (alert.rule, alert.name, alert.severity) == (RuleType.EXTERNAL, "ProbeFailure", Severity.CRITICAL)
    assert alert.group == "instance=https://server.example.org, job=http_checks, monitor=master"
    assert alert.summary == "BlackBox Probe Failure: https://server.example.org"
    assert (alert.status, alert.fired_at) == (AlertStatus.FIRING, at(0))
    assert alert.began_at.isoformat() == "2023-02-06T13:08:45.828000+00:00"


def test_repeated_post_changes_nothing_and_a_new_summary_updates() -> None:
    [fired] = after(post())
    assert after(post(), [fired.alert]) == []
    [updated] = after(post(annotations={"summary": "worse"}), [fired.alert], seconds=60)
    assert (updated.transition, updated.alert.summary) == (Transition.UPDATED, "worse")
    assert updated.alert.fired_at == at(0)


def test_resolved_post_resolves_the_alert_and_late_posts_change_nothing() -> None:
    [fired] = after(post())
    resolved_post = post(status="resolved", endsAt="2023-02-06T13:20:00Z")
    [resolved] = after(resolved_post, [fired.alert], seconds=60)
    assert resolved.transition is Transition.RESOLVED
    assert (resolved.alert.status, resolved.alert.resolved_at) == (AlertStatus.RESOLVED, at(60))
    assert after(resolved_post, [resolved.alert]) == []
    assert after(post(), [resolved.alert], seconds=60 + 299) == []
    assert after(resolved_post) == []


def test_alert_that_fires_again_with_the_same_start_is_another_alert() -> None:
    [fired] = after(post())
    [resolved] = after(post(status="resolved"), [fired.alert], seconds=60)
    [again] = after(post(), [resolved.alert], seconds=60 + 300)
    assert (again.transition, again.alert.fired_at) == (Transition.FIRED, at(360))
    assert again.alert.id == f"{fired.alert.id}-2"
    [resolved] = after(post(status="resolved"), [again.alert], seconds=400)
    [third] = after(post(), [resolved.alert], seconds=1000)
    assert third.alert.id == f"{fired.alert.id}-3"


def test_alert_that_ended_at_its_end_fires_again_with_a_later_end() -> None:
    [fired] = after(post(endsAt="2026-01-01T00:01:00Z"))
    [over] = ended([fired.alert], at(70))
    assert after(post(endsAt="2026-01-01T00:01:00Z"), [over.alert], seconds=75) == []
    [again] = after(post(endsAt="2026-01-01T00:05:00Z"), [over.alert], seconds=75)
    assert (again.transition, again.alert.ends_at) == (Transition.FIRED, at(300))


def test_alert_that_starts_again_is_another_alert() -> None:
    [first] = after(post())
    [second] = after(post(startsAt="2023-02-06T14:00:00Z"), [first.alert])
    assert second.transition is Transition.FIRED
    assert second.alert.id != first.alert.id


def test_identity_without_fingerprint_is_that_of_the_labels() -> None:
    first, second = post(fingerprint=""), post(fingerprint="", labels={"alertname": "Other"})
    assert external_id(first.alerts[0]) == external_id(post(fingerprint="", annotations={}).alerts[0])
    assert external_id(first.alerts[0]) != external_id(second.alerts[0])


def several(*alerts: dict[str, Any]) -> AlertmanagerPost:
    """A post that names the same alert several times, each time with these fields."""
    return AlertmanagerPost.model_validate({**POSTED, "alerts": [{**POSTED["alerts"][0], **alert} for alert in alerts]})


WORSE: dict[str, Any] = {"annotations": {"summary": "worse"}}
OVER: dict[str, Any] = {"status": "resolved"}
ENDED: dict[str, Any] = {"endsAt": "2023-02-06T13:20:00Z"}


@pytest.mark.parametrize("number", [2, 3])
def test_alert_named_several_times_in_one_post_has_one_change(number: int) -> None:
    [fired] = after(several(*[{}] * (number - 1), WORSE))
    assert (fired.transition, fired.alert.summary) == (Transition.FIRED, "worse")
    [updated] = after(several(*[WORSE] * (number - 1), {"annotations": {"summary": "bad"}}), [fired.alert])
    assert (updated.transition, updated.alert.summary) == (Transition.UPDATED, "bad")


@pytest.mark.parametrize("states", [({}, OVER), (OVER, {}), ({}, OVER, WORSE), ({}, ENDED), (ENDED, {})])
def test_alert_that_fires_and_is_resolved_in_one_post_is_resolved(states: tuple[dict[str, Any], ...]) -> None:
    [fired] = after(post())
    [change] = after(several(*states), [fired.alert], seconds=60)
    assert (change.transition, change.alert.resolved_at) == (Transition.RESOLVED, at(60))
    # Nobody heard that it fires, so nobody hears of it.
    assert after(several(*states)) == []


def test_external_rules_say_to_whom_it_goes() -> None:
    rules = [
        make_rule("ops", type=RuleType.EXTERNAL, name="external"),
        make_rule("web", type=RuleType.EXTERNAL, name="ProbeFailure"),
        make_rule("other", name="sink-down"),
    ]
    assert after(post(), rules=rules)[0].alert.to == ("web",)
    assert after(post(), rules=rules[:1])[0].alert.to == ("ops",)
    assert after(post(), rules=rules[2:])[0].alert.to == ()


@pytest.mark.parametrize(
    ("label", "severity"),
    [("CRITICAL", "critical"), ("page", "critical"), ("info", "info"), ("unheard-of", "warning"), (None, "warning")],
)
def test_severity_of_the_label(label: str | None, severity: str) -> None:
    labels = {"alertname": "a"} | ({"severity": label} if label is not None else {})
    assert after(post(labels=labels))[0].alert.severity == severity


def test_texts_are_storable_and_bounded() -> None:
    labels = {"alertname": "a\x00" + "b" * 500, **{f"label{number}": "c" * 100 for number in range(20)}}
    [change] = after(post(labels=labels, annotations={"description": "d" * 5000}))
    alert = change.alert
    assert "\x00" not in alert.name
    assert len(alert.name) == 200
    assert alert.group is not None
    assert len(alert.group) <= 300
    assert alert.group.endswith("1a30ba71cca2921f")
    assert len(alert.summary) == 500


def test_own_payload_is_understood() -> None:
    alert = make_alert()
    posted = AlertmanagerPost.model_validate(payload(made(alert), Templates(), BASE_URL))
    [change] = after(posted)
    assert (change.alert.name, change.alert.severity) == (alert.name, alert.severity)
    assert change.alert.group == "group=T-Mobile, rule=failure-rate"


def test_times_with_nanoseconds_are_read() -> None:
    # As Go writes them, in https://prometheus.io/docs/alerting/latest/notification_examples/
    posted = post(startsAt="2018-08-03T09:52:26.739266876+02:00")
    assert after(posted)[0].alert.began_at.isoformat() == "2018-08-03T07:52:26.739266+00:00"


@pytest.mark.parametrize(
    ("changed", "place"),
    [
        ({"version": "3"}, ("version",)),
        ({"alerts": [{}] * (MAX_ALERTS + 1)}, ("alerts",)),
        ({"alerts": [{**POSTED["alerts"][0], "status": "pending"}]}, ("alerts", 0, "status")),
        ({"alerts": [{**POSTED["alerts"][0], "startsAt": "2023-02-06T13:08:45"}]}, ("alerts", 0, "startsAt")),
        ({"alerts": [{**POSTED["alerts"][0], "startsAt": "0001-01-01T00:00:00Z"}]}, ("alerts", 0, "startsAt")),
        ({"alerts": [{**POSTED["alerts"][0], "labels": {"a": 1}}]}, ("alerts", 0, "labels", "a")),
        (
            {"alerts": [{**POSTED["alerts"][0], "labels": {str(number): "" for number in range(65)}}]},
            ("alerts", 0, "labels"),
        ),
    ],
)
def test_wrong_shape_is_named(changed: dict[str, Any], place: tuple[Any, ...]) -> None:
    with pytest.raises(ValidationError) as raised:
        AlertmanagerPost.model_validate({**POSTED, **changed})
    assert raised.value.errors()[0]["loc"] == place


def test_began_in_the_future_is_now() -> None:
    posted = post(startsAt=(at(0) + timedelta(hours=1)).isoformat())
    assert after(posted)[0].alert.began_at == at(0)
