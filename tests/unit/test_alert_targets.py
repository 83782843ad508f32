"""The entries of `to`: which are targets, how wrong ones are reported, and that no part of a URL is shown."""

import asyncio
import ipaddress
import logging
from pathlib import Path
from typing import Any

import pytest

from receiver.alerts import apprise
from receiver.alerts.hooks import InvalidTarget
from receiver.alerts.targets import MAX_TARGETS
from receiver.domain.alerts import Severity
from receiver.errors import SettingsError
from tests.alerting import configured, hook_server, made, make_alert, make_rule, targets

KEY = "CANARY0123456789CANARY0123456789"


def refused(*to: str, **changes: Any) -> str:
    with pytest.raises(SettingsError) as raised:
        targets(*to, **changes)
    return str(raised.value)


def test_names_of_sinks_stay_and_urls_become_digests() -> None:
    found = targets("ops", "json://127.0.0.1/a", f"pagerduty://{KEY}", sinks=["ops"])
    name, first, second = found.rules[0].to
    assert name == "ops"
    assert {first, second} == found.targets.keys()
    assert [one.recipient.label[:-5] for one in found.targets.values()] == ["json://*** (", "pagerduty://*** ("]
    assert first.startswith("target-")


def test_the_same_target_of_two_rules_is_one() -> None:
    rules = [make_rule("json://127.0.0.1/a", name="one"), make_rule("json://127.0.0.1/a", "x", name="two")]
    found = configured(rules, sinks=["x"])
    assert len(found.targets) == 1


def test_defaults_are_for_rules_without_to() -> None:
    rules = [make_rule(name="without"), make_rule("json://127.0.0.1/own", name="with")]
    found = configured(rules, default_to=("json://127.0.0.1/all",))
    without, with_to = ([one.recipient.target for one in found.of_rule(rule)] for rule in found.rules)
    assert without == list(found.defaults)
    assert with_to == list(found.rules[1].to)
    assert without != with_to
    recipients = found.recipients
    assert [one.target for one in recipients.of(make_alert(to=()))] == without
    assert [one.target for one in recipients.of(make_alert(to=with_to))] == with_to
    # An alert for a sink alone, and one for a target that left the settings.
    assert recipients.of(make_alert(to=("ops",))) == []


@pytest.mark.parametrize("entry", ["env:TARGET", "file:{path}"])
def test_target_is_read_from_environment_and_file(entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "target"
    path.write_text(f"pagerduty://{KEY}\n")
    monkeypatch.setenv("TARGET", f"pagerduty://{KEY}")
    entry = entry.format(path=path)
    found = targets(entry)
    [one] = found.targets.values()
    assert one.recipient.label == f"pagerduty://*** ({entry})"
    assert found.rules[0].to == targets(f"pagerduty://{KEY}").rules[0].to


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("opps", "there is no sink opps; there are ops; did you mean ops?"),
        ("CANARY with spaces", "must be a URL with a scheme, env:NAME, file:/path or the name of a sink"),
        (KEY, "must be a URL with a scheme, env:NAME, file:/path or the name of a sink"),
        ("env:NO_SUCH_VARIABLE", "there is no environment variable NO_SUCH_VARIABLE"),
        ("file:/no/such/file", "cannot read /no/such/file: No such file or directory"),
        ("", "must not be empty"),
        (
            f"nonsense://CANARY@host/{KEY}",
            "the nonsense:// target is not a URL that Apprise understands, or lacks a part",
        ),
        ("slack://CANARY", "the slack:// target is not a URL that Apprise understands, or lacks a part"),
        (
            "pagerduty://",
            "the pagerduty:// target must be pagerduty://KEY, where KEY is the integration key of a service",
        ),
        (
            f"opsgenie://{KEY}/CANARY",
            "the opsgenie:// target must be opsgenie://KEY, where KEY is the key of an API integration",
        ),
        (f"opsgenie://{KEY}?region=CANARY", "the opsgenie:// target region must be one of eu, us"),
        (f"pagerduty://{KEY}?CANARY=1", "the pagerduty:// target has a parameter that is not one of region, url"),
        (f"pagerduty://{KEY}?url=ftp://CANARY", "the pagerduty:// target must name a host"),
        ("alertmanager+http:///CANARY", "the alertmanager+http:// target must name a host"),
        ("alertmanager+http://CANARY:99999/", "the alertmanager+http:// target has a port that does not exist"),
        (
            "alertmanager+http://h/CANARY x",
            "the alertmanager+http:// target must be without spaces and control characters",
        ),
    ],
)
def test_wrong_entry_is_one_line_that_names_the_rule_and_no_secret(entry: str, problem: str) -> None:
    line = refused(f"pagerduty://{KEY}", entry, sinks=["ops"])
    assert line == f"RECEIVER_ALERTS: sink-down: to: entry 2: {problem}"
    assert "CANARY" not in line


def test_secret_of_a_reference_is_not_shown_if_it_is_no_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TARGET", "CANARY")
    assert refused("env:TARGET") == (
        "RECEIVER_ALERTS: sink-down: to: entry 1: what it names is neither a URL nor the name of a sink"
    )


def test_default_target_is_not_a_sink() -> None:
    with pytest.raises(SettingsError, match="RECEIVER_ALERT_TO: ops is a sink; a sink asks for alert events"):
        configured([], sinks=["ops"], default_to=("ops",))


def test_number_of_targets_is_bounded() -> None:
    line = refused(*(f"alertmanager+http://host/{number}" for number in range(MAX_TARGETS + 1)))
    assert line == f"RECEIVER_ALERTS: {MAX_TARGETS + 1} targets for people are more than the {MAX_TARGETS} there may be"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"title": "$nmae"}, "RECEIVER_ALERT_TITLE: $nmae is not a value of a notification; did you mean name?"),
        ({"body": "5 $"}, "RECEIVER_ALERT_BODY: has a $ without a name; write $$ for a dollar sign"),
        ({"body": "file:/no/such"}, "RECEIVER_ALERT_BODY: cannot read /no/such: No such file or directory"),
    ],
)
def test_wrong_template_is_refused_at_the_start(changes: dict[str, str], problem: str) -> None:
    assert refused(**changes) == problem


def test_missing_extra_is_named_and_other_targets_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(apprise, "import_module", missing)
    assert refused("slack://CANARY") == (
        "RECEIVER_ALERTS: sink-down: to: entry 1: the slack:// target needs the extra alerts: "
        "pip install 'bandwidth-receiver[alerts]'"
    )
    assert targets(f"pagerduty://{KEY}", f"opsgenie://{KEY}", "alertmanager+https://example.com/hook").targets


# --- secrets ---

CANARIES = (
    "mailto://CANARYuser:CANARYpassword@127.0.0.1:{port}/?from=a@CANARY.example&to=CANARY@example.com",
    "json://CANARYuser:CANARYpass@127.0.0.1:{port}/CANARYpath?+X-CANARY=CANARYvalue",
    "jsons://127.0.0.1:{port}/CANARYpath",
    "mmost://127.0.0.1:{port}/CANARY33ccdd113474722377935511fc85d3dd4",
    "slack://TCANARY12/ACANARY12/CANARYdnlazkcOXrIdevi7FQ",
    "tgram://123456789:CANARYabcdefghijklmnop/12315544/",
    "discord://4174216298/CANARYJHMHI8qBe7bk2ZwO5U711o3dV_js",
    "alertmanager+http://CANARYuser:CANARYpass@127.0.0.1:{port}/CANARYpath?CANARY=CANARY",
    f"pagerduty://{KEY}?url=http://127.0.0.1:{{port}}/CANARY",
    f"opsgenie://{KEY}?url=http://127.0.0.1:{{port}}/CANARY",
)


@pytest.mark.parametrize("status", [None, 500])
@pytest.mark.parametrize("url", CANARIES)
def test_no_part_of_a_url_is_shown_or_logged(
    url: str,
    status: int | None,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Nothing leaves this machine.
    for scheme in ("http", "https"):
        monkeypatch.setenv(f"{scheme}_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    # A mail server that never speaks is waited for.
    monkeypatch.setattr(apprise, "SECONDS", 3.0)
    caplog.set_level(logging.DEBUG)
    with hook_server(status=status or 500, answer=b"CANARY") as hook:
        found = targets(url.format(port=hook.port if status else 1))
        [one] = found.targets.values()
        failure = asyncio.run(one.target.send(made(make_alert(severity=Severity.CRITICAL))))
    assert failure is not None
    for shown in (
        failure.reason,
        repr(found),
        repr(failure),
        str(found.rules),
        caplog.text,
        *capfd.readouterr(),
    ):
        assert "CANARY" not in shown


def test_url_in_an_exception_of_apprise_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    import apprise as package

    def add(*_: Any) -> bool:
        raise TypeError("CANARY")

    monkeypatch.setattr(package.Apprise, "add", add)
    assert "CANARY" not in refused("json://CANARY")


def test_networks_of_the_egress_rules_are_those_given() -> None:
    networks = [ipaddress.ip_network("10.0.0.0/8")]
    [one] = targets("alertmanager+http://10.1.2.3/", egress_allow=networks).targets.values()
    assert one.target._context.egress_allow == (networks[0],)  # type: ignore[attr-defined]


def test_invalid_target_is_a_value_error() -> None:
    assert issubclass(InvalidTarget, ValueError)
