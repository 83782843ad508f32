"""The text of notifications: what it says, and that texts of strangers stay texts."""

import pytest

from receiver.alerts.text import BODY, FIELDS, TITLE, Templates, cleaned, fields, template_error
from receiver.domain.alerts import AlertStatus, Evidence, RuleType, Severity, Transition
from tests.alerting import made, make_alert
from tests.factories import at


def test_text_of_an_alert_that_fires() -> None:
    notification = made(make_alert())
    assert Templates().render_title(notification) == "Warning: t-mobile blocks (T-Mobile)"
    assert Templates().render_body(notification).splitlines() == [
        "31 % of 120 deliveries failed within 15 minutes.",
        "",
        "Severity: warning",
        "Group: T-Mobile",
        "Value: 31 % (threshold 20 %, before 2 %, of 120)",
        "Fired: 2026-01-01T00:00:00Z",
        "Messages: m-1, m-2",
        "Alert: https://receiver.example/alerts/a-1",
        "What to do: https://receiver.example/docs/alerts#failure-rate",
    ]


def test_text_of_a_resolved_alert_says_since_when_it_fired() -> None:
    alert = make_alert(status=AlertStatus.RESOLVED, resolved_at=at(360), group=None, messages=())
    notification = made(alert, Transition.RESOLVED)
    assert Templates().render_title(notification) == "Resolved: t-mobile blocks"
    assert Templates().render_body(notification).splitlines()[2:6] == [
        "Severity: warning",
        "Value: 31 % (threshold 20 %, before 2 %, of 120)",
        "Fired: 2026-01-01T00:00:00Z",
        "Resolved: 2026-01-01T00:06:00Z",
    ]


@pytest.mark.parametrize(
    ("rule", "value", "text"),
    [
        (RuleType.FAILURE_RATE, 0.3142, "31.4 %"),
        (RuleType.STORAGE, 1.0, "100 %"),
        (RuleType.QUARANTINE, 1234.0, "1,234"),
        (RuleType.SINK_BEHIND, 90.25, "90.25"),
        (RuleType.EXTERNAL, 1, ""),
    ],
)
def test_numbers_are_written_as_their_rule_means_them(rule: RuleType, value: float, text: str) -> None:
    alert = make_alert(rule=rule, evidence=Evidence(value=value, threshold=0))
    assert fields(made(alert))["value"] == text


@pytest.mark.parametrize(
    ("hostile", "harmless"),
    [
        ("a\r\nBcc: evil@example.com", "a Bcc: evil@example.com"),
        ("line\u2028separator\x00\x1b[31m", "line separator [31m"),
        ("right\u202eto\u2066left", "right to left"),
        ("  many   spaces ", "many spaces"),
        ("@everyone @Here @channel @all @alice", "@\u200beveryone @\u200bHere @\u200bchannel @\u200ball @alice"),
        ("<!channel> <@&1> <#1> <b>", "<\u200b!channel> <\u200b@&1> <\u200b#1> <b>"),
        ("<users/all> <mailto:x> </b> 5 < 6", "<\u200busers/all> <\u200bmailto:x> </b> 5 < 6"),
        ("<https://evil|a|b> c|d <e|f", "<\u200bhttps://evil¦a¦b> c|d <e¦f"),
        ("[click](http://evil)", "[click]\u200b(http://evil)"),
        ("[click]: http://evil [::1]:8080 [::1]:8evil", "[click]\u200b: http://evil [::1]:8080 [::1]\u200b:8evil"),
        ("<\u200b!channel>", "<\u200b!channel>"),
        ("x" * 600, "x" * 499 + "…"),
    ],
)
def test_text_of_strangers_stays_on_one_line_and_calls_nobody(hostile: str, harmless: str) -> None:
    assert cleaned(hostile) == cleaned(harmless) == harmless
    alert = make_alert(group=hostile, summary=hostile, name=hostile)
    assert fields(made(alert))["group"] == harmless
    title = Templates().render_title(made(alert))
    assert harmless[:100] in title
    assert title.isprintable() or "\u200b" in title
    assert len(title) <= 250


def test_dollar_signs_of_strangers_are_not_substituted() -> None:
    alert = make_alert(group="$link ${id}", summary="$details")
    body = Templates().render_body(made(alert))
    assert "Group: $link ${id}" in body
    assert body.startswith("$details\n")


def test_own_templates_have_every_value() -> None:
    template = " ".join(f"{name}=${{{name}}}" for name in FIELDS)
    assert template_error(template) is None
    body = Templates(body=template).render_body(made(make_alert()))
    assert "severity=warning" in body
    assert "id=a-1" in body
    assert fields(made(make_alert())).keys() == FIELDS.keys()


@pytest.mark.parametrize("template", [TITLE, BODY, "costs 5 $$", "no value"])
def test_valid_template(template: str) -> None:
    assert template_error(template) is None


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("$", "has a $ without a name; write $$ for a dollar sign"),
        ("${name", "has a $ without a name; write $$ for a dollar sign"),
        ("${name.upper}", "has a $ without a name; write $$ for a dollar sign"),
        ("$sumary", "$sumary is not a value of a notification; did you mean summary?"),
    ],
)
def test_invalid_template(template: str, problem: str) -> None:
    assert template_error(template) == problem


def test_title_of_a_template_is_one_line() -> None:
    title = Templates(title="$details").render_title(made(make_alert(severity=Severity.INFO)))
    assert "\n" not in title
    assert title.startswith("Severity: info Group: T-Mobile")


def test_test_notification_is_called_so() -> None:
    assert Templates().render_title(made(make_alert(), is_test=True)) == "Warning: Test of t-mobile blocks (T-Mobile)"
