"""Notifications of people against local servers: HTTP, SMTP, hooks as of Slack, PagerDuty, Opsgenie, Alertmanager."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from receiver.alerts.http import Failure
from receiver.alerts.targets import Targets
from receiver.domain.alerts import Severity, Transition
from receiver.domain.notifications import DueNotification, Notification
from receiver.errors import StorageUnavailable
from receiver.storage import notifications
from receiver.storage.database import Database
from tests.alerting import (
    BASE_URL,
    People,
    fire,
    hook_server,
    made,
    make_alert,
    resolve,
    rows,
    smtp_server,
    states,
    targets,
)
from tests.brokers.own import free_port
from tests.servers import Authority
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

KEY = "0123456789abcdef0123456789abcdef"


async def test_alert_and_its_resolve_are_delivered_as_json(database: Database) -> None:
    with hook_server() as hook:
        async with People(database, targets(f"json://{hook.address}/alerts")) as people:
            alert = await people.fire()
            await eventually(lambda: len(hook.posted) == 1)
            await people.resolve(alert)
            await eventually(lambda: len(hook.posted) == 2)
        fired, resolved = (one.json for one in hook.posted)
        assert fired["title"] == "Warning: t-mobile blocks (T-Mobile)"
        assert fired["type"] == "warning"
        assert "31 % of 120 deliveries failed within 15 minutes." in fired["message"]
        assert f"Alert: {BASE_URL}/alerts/a-1" in fired["message"]
        assert "Messages: m-1, m-2" in fired["message"]
        assert resolved["title"] == "Resolved: t-mobile blocks (T-Mobile)"
        assert resolved["type"] == "success"
    assert await states(database) == [("fired", "sent"), ("resolved", "sent")]


async def test_alert_is_delivered_by_smtp_with_hostile_texts_escaped(database: Database) -> None:
    with smtp_server() as (address, mails):
        async with People(
            database, targets(f"mailto://{address}/?from=receiver@example.com&to=ops@example.com")
        ) as people:
            hostile = "<b>x</b>\r\nBcc: evil@example.com"
            await people.fire(group=hostile, summary=f"{hostile} <script>alert(1)</script>")
            await eventually(lambda: mails)
        [mail] = mails
        assert mail["to"] == "ops@example.com"
        assert mail["bcc"] is None
        assert mail["subject"] == "Warning: t-mobile blocks (<b>x</b> Bcc: evil@example.com)"
        html = mail.get_body(("html",))
        content = (html or mail.get_body()).get_content()  # type: ignore[union-attr]
        if html is not None:
            assert "<script>" not in content
            assert "&lt;script&gt;" in content
        else:
            assert "<script>" in content
    assert await states(database) == [("fired", "sent")]


LOGIN = "mailto://sms:secret@{address}/?from=sms@example.com&to=ops@example.com"


# The test server has no TLS.
@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS:UserWarning")
@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (LOGIN, None),
        (LOGIN.replace("secret", "canary"), "the mail server refused the login: status 535"),
        (LOGIN.replace("sms:secret@", ""), "the mail server refused the login: status 530"),
        (LOGIN.replace("from=sms", "from=refused-canary"), "the mail server refused the sender: status 550"),
        (LOGIN.replace("to=ops", "to=refused-canary"), "the mail server refused a recipient: status 551"),
        (LOGIN.replace("from=sms", "from=spam"), "the mail server refused it: status 554"),
        (LOGIN.replace("mailto", "mailtos") + "&mode=starttls", "the mail server offers no encryption"),
        (LOGIN.format(address="127.0.0.1:{down}"), "no connection"),
    ],
)
async def test_what_a_mail_server_refuses_is_the_reason(url: str, reason: str | None) -> None:
    with smtp_server(login=True) as (address, mails):
        [target] = targets(url.format(address=address, down=free_port())).targets.values()
        failure = await target.target.send(made(make_alert()))
        assert (failure and failure.reason) == reason
        assert bool(mails) is (reason is None)


async def test_mail_server_without_logins_is_named() -> None:
    with smtp_server() as (address, _):
        [target] = targets(LOGIN.format(address=address)).targets.values()
        failure = await target.target.send(made(make_alert()))
    assert failure is not None
    assert failure.reason == "the mail server takes no such login"


async def test_mail_server_with_a_certificate_of_nobody_is_named(tmp_path: Path) -> None:
    with smtp_server(tls_context=Authority(tmp_path).server("mail.example.com")) as (address, mails):
        url = LOGIN.format(address=address).replace("mailto", "mailtos") + "&mode=starttls"
        [target] = targets(url).targets.values()
        failure = await target.target.send(made(make_alert()))
    assert failure is not None
    assert failure.reason == "the certificate of the mail server is not valid"
    assert not mails


async def test_slack_hook_gets_no_markup_of_strangers(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    from apprise.plugins.slack import NotifySlack

    with hook_server() as hook:
        # The plug-in has one address; the rest is the real one.
        monkeypatch.setattr(NotifySlack, "webhook_url", f"http://{hook.address}/services")
        async with People(database, targets("slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ")) as people:
            await people.fire(summary="<!channel> @everyone <https://evil.example|click> & *bold*")
            await eventually(lambda: hook.posted)
        assert hook.posted[0].path == "/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ"
        text = str(hook.posted[0].json)
    assert "&lt;\\u200b!channel&gt;" in text
    assert "<!channel>" not in text
    assert "<https" not in text
    assert "@everyone" not in text


HOSTILE = (
    "<!channel> <!here|x> <@&123> <@U1> <#C1> @all <users/all> [click](http://evil.example) "
    "<https://evil.example|T-Mobile>"
)
MARKUP = ("<!", "<@", "<#", "@all", "](", "<users", "<https", "|T-Mobile>")


async def test_mattermost_hook_gets_no_markup_of_strangers(database: Database) -> None:
    with hook_server() as hook:
        async with People(database, targets(f"mmost://{hook.address}/3ccdd113474722377935511fc85d3dd4")) as people:
            await people.fire(summary=HOSTILE, group=HOSTILE)
            await eventually(lambda: hook.posted)
        assert hook.posted[0].path == "/hooks/3ccdd113474722377935511fc85d3dd4"
        text = json.dumps(hook.posted[0].json, ensure_ascii=False)
    assert "evil.example" in text
    assert [found for found in MARKUP if found in text] == []


async def test_google_chat_hook_gets_no_markup_of_strangers(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apprise.plugins.google_chat import NotifyGoogleChat

    with hook_server() as hook:
        # The plug-in has one address; the rest is the real one.
        address = f"http://{hook.address}/v1/spaces/{{workspace}}/messages"
        monkeypatch.setattr(NotifyGoogleChat, "notify_url", address)
        async with People(database, targets("gchat://workspace/key/token")) as people:
            await people.fire(summary=HOSTILE, group=HOSTILE)
            await eventually(lambda: hook.posted)
        text = json.dumps(hook.posted[0].json, ensure_ascii=False)
    assert "evil.example" in text
    assert [found for found in MARKUP if found in text] == []


async def test_discord_hook_gets_no_markup_of_strangers(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    from apprise.plugins.discord import NotifyDiscord

    with hook_server(status=204, answer=b"") as hook:
        # The plug-in has one address; the rest is the real one.
        monkeypatch.setattr(NotifyDiscord, "notify_url", f"http://{hook.address}/api/webhooks")
        async with People(database, targets("discord://123456789/AAAABBBBCCCC")) as people:
            await people.fire(summary=HOSTILE, group=HOSTILE)
            await eventually(lambda: hook.posted)
        text = json.dumps(hook.posted[0].json, ensure_ascii=False)
    assert "evil.example" in text
    assert [found for found in MARKUP if found in text] == []


async def test_pagerduty_opens_one_incident_and_resolves_it(database: Database) -> None:
    with hook_server(status=202) as pagerduty:
        async with People(database, targets(f"pagerduty://{KEY}?url=http://{pagerduty.address}")) as people:
            alert = await people.fire(severity=Severity.CRITICAL)
            await eventually(lambda: len(pagerduty.posted) == 1)
            await people.resolve(alert)
            await eventually(lambda: len(pagerduty.posted) == 2)
        assert [one.path for one in pagerduty.posted] == ["/v2/enqueue"] * 2
        trigger, resolved = (one.json for one in pagerduty.posted)
    assert trigger["routing_key"] == KEY
    assert (trigger["event_action"], trigger["dedup_key"]) == ("trigger", "a-1")
    payload = trigger["payload"]
    assert payload["severity"] == "critical"
    assert payload["source"] == BASE_URL
    assert payload["summary"].startswith("Critical: t-mobile blocks (T-Mobile): 31 % of 120")
    assert payload["custom_details"]["messages"] == "m-1, m-2"
    assert resolved == {"routing_key": KEY, "event_action": "resolve", "dedup_key": "a-1"}


async def test_opsgenie_alert_is_created_by_alias_and_closed_by_it(database: Database) -> None:
    with hook_server(status=202) as opsgenie:
        async with People(database, targets(f"opsgenie://{KEY}?url=http://{opsgenie.address}/base")) as people:
            alert = await people.fire(severity=Severity.CRITICAL)
            await eventually(lambda: len(opsgenie.posted) == 1)
            await people.resolve(alert)
            await eventually(lambda: len(opsgenie.posted) == 2)
        created, closed = opsgenie.posted
    assert created.path == "/base/v2/alerts"
    assert created.headers["authorization"] == f"GenieKey {KEY}"
    assert (created.json["alias"], created.json["priority"]) == ("a-1", "P1")
    assert len(created.json["message"]) <= 130
    assert closed.path == "/base/v2/alerts/a-1/close?identifierType=alias"
    assert closed.headers["authorization"] == f"GenieKey {KEY}"


async def test_basic_credentials_of_an_alertmanager_hook_are_sent(database: Database) -> None:
    with hook_server() as hook:
        async with People(database, targets(f"alertmanager+http://user:pass@{hook.address}/hook?team=a")) as people:
            await people.fire()
            await eventually(lambda: hook.posted)
        assert hook.posted[0].path == "/hook?team=a"
        assert hook.posted[0].headers["authorization"] == "Basic dXNlcjpwYXNz"
        assert hook.posted[0].json["version"] == "4"


async def test_own_targets_connect_to_public_addresses_only_unless_allowed(database: Database) -> None:
    with hook_server() as hook:
        async with People(database, targets(f"alertmanager+http://{hook.address}/hook", egress_allow=())) as people:
            await people.fire()
            await eventually(lambda: _errors(database))
        assert not hook.posted
    [error] = await _errors(database)
    assert error == (
        "127.0.0.1 is not a public address and in no network of alert_egress_allow; "
        'if it is meant, add alert_egress_allow = ["127.0.0.1/32"] to the settings'
    )


async def _errors(database: Database) -> list[str]:
    return [row.last_error for row in await rows(database) if row.last_error]


@pytest.mark.parametrize("scheme", ["json", "alertmanager+http"])
async def test_redirects_are_not_followed(database: Database, scheme: str) -> None:
    with hook_server() as other, hook_server(status=302, location=f"http://{other.address}/") as hook:
        async with People(database, targets(f"{scheme}://{hook.address}/")) as people:
            await people.fire()
            await eventually(lambda: _errors(database))
        assert hook.posted
        assert not other.posted


async def test_down_slow_and_refusing_targets_delay_no_other(database: Database) -> None:
    with hook_server() as good, hook_server(seconds=30) as slow, hook_server(status=500) as refusing:
        down = free_port()
        configured = targets(
            *(f"json://127.0.0.1:{down}/{number}" for number in range(2)),
            f"json://{slow.address}/",
            f"alertmanager+http://{slow.address}/",
            f"json://{refusing.address}/",
            f"json://{good.address}/",
            f"alertmanager+http://{good.address}/",
        )
        async with People(database, configured) as people:
            began = time.monotonic()
            for number in range(10):
                await people.fire(id=f"a-{number}", group=str(number))
            await eventually(lambda: len(good.posted) == 20)
            # A slow answer takes 15 s to be given up, a stored one of a hanging target would take longer than this.
            assert time.monotonic() - began < 10
            failed = {row.label for row in await rows(database) if row.last_error}
        assert len(failed) >= 3
        # Two at a time at each target.
        assert len(slow.posted) <= 4


async def test_failed_notification_is_tried_again_until_it_is_sent(database: Database) -> None:
    with hook_server(status=503) as hook:
        async with People(database, targets(f"alertmanager+http://{hook.address}/")) as people:
            await people.fire()
            await eventually(lambda: people.outcomes == ["retry"])
            [row] = await rows(database)
            assert (row.attempts, row.last_error) == (1, "status 503")
            assert row.due_at == people.now + timedelta(seconds=10)
            hook.status = 200
            people.advance(seconds=10)
            await eventually(lambda: people.outcomes == ["retry", "sent"])
    [row] = await rows(database)
    assert (row.state, row.attempts, row.last_error) == ("sent", 2, None)


async def let_fail(people: People, **pause: float) -> None:
    """Moves the clock by a pause after each attempt, until the notification fails."""
    while "failed" not in people.outcomes:
        attempts = len(people.outcomes)
        await eventually(lambda before=attempts: len(people.outcomes) > before)  # type: ignore[misc]
        people.advance(**pause)


async def test_notification_fails_after_six_hours(database: Database) -> None:
    with hook_server(status=503) as hook:
        async with People(database, targets(f"alertmanager+http://{hook.address}/")) as people:
            await people.fire()
            await let_fail(people, minutes=31)
            posted = len(hook.posted)
            people.advance(days=1)
            await asyncio.sleep(0.3)
        assert len(hook.posted) == posted
    assert people.outcomes == ["retry"] * (len(people.outcomes) - 1) + ["failed"]
    assert 10 <= len(people.outcomes) <= 14
    assert await states(database) == [("fired", "failed")]


@pytest.mark.parametrize("ahead", [timedelta(0), timedelta(hours=7)], ids=["set back", "ahead for an attempt"])
async def test_notification_is_tried_again_after_its_pause_when_the_clock_is_set_back(
    database: Database, ahead: timedelta
) -> None:
    with hook_server(status=503) as hook:
        async with People(database, targets(f"alertmanager+http://{hook.address}/")) as people:
            await people.fire()
            people.now += ahead
            await eventually(lambda: people.outcomes == ["retry"])
            hook.status = 200
            people.now -= ahead or timedelta(hours=1)
            people.monotonic = 10.1
            await eventually(lambda: people.outcomes == ["retry", "sent"])


@pytest.mark.parametrize("hours", [1, 24])
async def test_new_notification_is_sent_at_once_though_the_clock_was_set_back(database: Database, hours: int) -> None:
    with hook_server() as hook:
        async with People(database, targets(f"alertmanager+http://{hook.address}/")) as people:
            alert = await people.fire()
            people.advance(hours=-hours)
            await eventually(lambda: people.outcomes == ["sent"])
            await people.resolve(alert)
            await eventually(lambda: people.outcomes == ["sent", "sent"])


async def test_pause_of_another_process_ends_though_the_clock_was_set_back_by_hours(database: Database) -> None:
    with hook_server(status=503) as hook:
        configured = targets(f"alertmanager+http://{hook.address}/")
        async with People(database, configured) as people:
            await people.fire()
            await eventually(lambda: people.outcomes == ["retry"])
        hook.status = 200
        async with People(database, configured) as others:
            others.advance(hours=-2)
            await eventually(lambda: others.outcomes == ["sent"])


async def test_fired_is_withdrawn_and_only_resolved_is_sent_if_the_target_was_down(database: Database) -> None:
    with hook_server(status=503) as hook:
        found = targets(f"json://{hook.address}/")
        async with People(database, found) as people:
            alert = await people.fire()
            await eventually(lambda: people.outcomes == ["retry"])
            hook.status = 200
            # Before the next attempt to say that it fired is due.
            await resolve(database, found, alert, now=people.now + timedelta(minutes=6))
            people.advance(minutes=6)
            await eventually(lambda: "sent" in people.outcomes)
    assert await states(database) == [("fired", "withdrawn"), ("resolved", "sent")]
    message = hook.posted[-1].json["message"]
    assert "Fired: 2026-01-01T00:00:00" in message
    assert "Resolved: 2026-01-01T00:06:00" in message


@pytest.mark.parametrize(("severity", "sent"), [(Severity.WARNING, 0), (Severity.CRITICAL, 1)])
async def test_alert_that_was_over_before_anything_was_tried(database: Database, severity: Severity, sent: int) -> None:
    with hook_server() as hook:
        people = People(database, targets(f"json://{hook.address}/"))
        alert = await people.fire(severity=severity)
        await people.resolve(alert)
        async with people:

            async def are_settled() -> bool:
                return "due" not in {state for _, state in await states(database)}

            await eventually(are_settled)
        assert [one.json["title"][:8] for one in hook.posted] == ["Resolved"] * sent
    assert await states(database) == [("fired", "withdrawn"), ("resolved", "sent" if sent else "withdrawn")]


async def test_muted_alert_notifies_nobody_but_a_resolve_of_an_announced_one_does(database: Database) -> None:
    with hook_server() as hook:
        async with People(database, targets(f"json://{hook.address}/")) as people:
            muted_until = people.now + timedelta(hours=1)
            muted = await people.fire(id="muted", muted_until=muted_until)
            await people.resolve(muted)
            alert = await people.fire(id="heard", group="other")
            await eventually(lambda: len(hook.posted) == 1)
            await people.resolve(make_alert(id="heard", to=alert.to, muted_until=muted_until))
            await eventually(lambda: len(hook.posted) == 2)
    assert [row.alert_id for row in await rows(database)] == ["heard", "heard"]


async def test_two_notifiers_send_a_notification_once(database: Database) -> None:
    with hook_server(seconds=0.2) as hook:
        people, others = (People(database, targets(f"json://{hook.address}/")) for _ in range(2))
        async with people, others:
            for number in range(10):
                await people.fire(id=f"a-{number}", group=str(number))

            async def are_sent() -> bool:
                return [state for _, state in await states(database)] == ["sent"] * 10

            await eventually(are_sent)
        assert len(hook.posted) == 10


class Played:
    """A target of a test: `sends` is what becomes of a notification."""

    closes = True

    def __init__(self, sends: Callable[[Notification], Awaitable[Failure | None]]) -> None:
        self.send = sends


def played(sends: Callable[[Notification], Awaitable[Failure | None]]) -> Targets:
    found = targets("json://127.0.0.1/played")
    return replace(found, targets={digest: replace(one, target=Played(sends)) for digest, one in found.targets.items()})


async def test_resolved_waits_for_the_attempt_of_another_process_to_say_that_it_fired(database: Database) -> None:
    arrived: list[str] = []
    began, go_on = asyncio.Event(), asyncio.Event()

    async def send(notification: Notification) -> None:
        if not notification.is_resolved:
            began.set()
            await go_on.wait()
        arrived.append(str(notification.transition))

    async with People(database, played(send)) as people, People(database, played(send)):
        alert = await people.fire()
        await began.wait()
        await people.resolve(alert)
        await asyncio.sleep(0.5)
        assert arrived == []
        go_on.set()
        await eventually(lambda: len(arrived) == 2)
    assert arrived == ["fired", "resolved"]
    assert await states(database) == [("fired", "sent"), ("resolved", "sent")]


async def due(database: Database, now: datetime) -> list[DueNotification]:
    return await notifications.due(database, now=now, limit=10, known=(), unknown_before=now)


async def test_notification_that_another_process_has_begun_is_not_withdrawn(database: Database) -> None:
    people = People(database, targets("json://127.0.0.1/hook"))
    now = people.now
    alert = await people.fire()
    [fired] = await due(database, now)
    await people.resolve(alert)
    # This process has read both before the other begins.
    read = await due(database, now)
    [resolved] = [one for one in read if one.transition is Transition.RESOLVED]
    assert await notifications.begin(database, fired, again_at=now + timedelta(seconds=20))
    assert not await notifications.withdraw_fired(database, resolved)
    assert not await notifications.withdraw(database, fired)
    assert await due(database, now + timedelta(seconds=19)) == []
    # The other process has died.
    later = await due(database, now + timedelta(seconds=20))
    assert {one.transition for one in later} == {Transition.FIRED, Transition.RESOLVED}


async def test_process_that_was_halted_before_it_sends_leaves_the_attempt_to_the_next(
    database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begin, halted, resumed = notifications.begin, asyncio.Event(), asyncio.Event()

    async def begin_and_halt(*arguments: Any, **named: Any) -> bool:
        begun = await begin(*arguments, **named)
        if not halted.is_set():
            halted.set()
            await resumed.wait()
        return begun

    monkeypatch.setattr(notifications, "begin", begin_and_halt)
    with hook_server(status=202) as pagerduty:
        found = targets(f"pagerduty://{KEY}?url=http://{pagerduty.address}")
        people, others = People(database, found), People(database, found)
        async with people:
            alert = await people.fire()
            await halted.wait()
            others.advance(seconds=60)
            async with others:
                await eventually(lambda: others.outcomes == ["sent"])
                await others.resolve(alert)
                await eventually(lambda: others.outcomes == ["sent", "sent"])
            people.monotonic += 60
            resumed.set()
            await eventually(lambda: not people.notifier._sending)
        assert [one.json["event_action"] for one in pagerduty.posted] == ["trigger", "resolve"]
    assert await states(database) == [("fired", "sent"), ("resolved", "sent")]
    assert "an attempt to notify was left out because it began too late" in "".join(capsys.readouterr())


@pytest.mark.parametrize("failure", [None, Failure(reason="status 500")])
async def test_result_of_an_attempt_is_not_recorded_once_another_process_makes_the_next(
    database: Database, failure: Failure | None
) -> None:
    sending = [asyncio.Event(), asyncio.Event()]
    go_on = [asyncio.Event(), asyncio.Event()]

    def answering(number: int, answer: Failure | None) -> Targets:
        async def send(_: Notification) -> Failure | None:
            sending[number].set()
            await go_on[number].wait()
            return answer

        return played(send)

    people, others = People(database, answering(0, failure)), People(database, answering(1, None))
    async with people:
        await people.fire()
        await sending[0].wait()
        others.advance(seconds=60)
        async with others:
            await sending[1].wait()
            go_on[0].set()
            await eventually(lambda: not people.notifier._sending)
            [row] = await rows(database)
            assert (row.state, row.attempts, row.last_error) == ("due", 2, None)
            assert row.under_way_until == others.now + timedelta(seconds=30)
            go_on[1].set()
            await eventually(lambda: others.outcomes == ["sent"])
    assert people.outcomes == []
    assert await states(database) == [("fired", "sent")]


async def test_exception_of_a_target_is_a_failure_for_six_hours_without_its_text(
    database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    async def send(_: Notification) -> None:
        raise UnicodeError("label too long: https://user:SECRET@example")

    async with People(database, played(send)) as people:
        await people.fire()
        await let_fail(people, hours=1)
    [row] = await rows(database)
    assert (row.state, row.last_error) == ("failed", "unexpected UnicodeError")
    assert people.outcomes == ["retry"] * (row.attempts - 1) + ["failed"]
    assert "SECRET" not in "".join(capsys.readouterr())


async def test_notifier_pauses_while_nothing_can_be_written(
    database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[int] = []

    async def begin(_: Database, notification: DueNotification, **__: Any) -> bool:
        begun.append(notification.id)
        raise StorageUnavailable("the disk is full")

    people = People(database, targets("json://127.0.0.1:1/hook"))
    await people.fire()
    with monkeypatch.context() as patched:
        patched.setattr(notifications, "begin", begin)
        # It looks every 50 ms.
        async with people:
            await asyncio.sleep(1)
    assert 2 <= len(begun) <= 21
    assert "".join(capsys.readouterr()).count("a notification was not recorded and may be sent again") == 1


async def test_target_whose_attempts_failed_hears_that_the_alert_is_resolved(database: Database) -> None:
    arrived: list[str] = []

    async def send(notification: Notification) -> Failure | None:
        # A timeout: the target has opened an incident, but its answers were lost.
        arrived.append(str(notification.transition))
        return None if notification.is_resolved else Failure(reason="timeout")

    async with People(database, played(send)) as people:
        alert = await people.fire()
        await let_fail(people, minutes=31)
        await people.resolve(alert)
        await eventually(lambda: arrived[-1] == "resolved")
        await eventually(lambda: people.outcomes[-1] == "sent")
    assert await states(database) == [("fired", "failed"), ("resolved", "sent")]


async def test_attempt_that_was_under_way_in_a_crash_is_made_again(database: Database) -> None:
    with hook_server() as hook:
        people = People(database, targets(f"json://{hook.address}/"))
        await people.fire()
        [fired] = await due(database, people.now)
        # What a process does before it sends; then it dies.
        assert await notifications.begin(database, fired, again_at=people.now + timedelta(seconds=20))
        assert not await notifications.begin(database, fired, again_at=people.now + timedelta(seconds=20))
        people.advance(seconds=20)
        async with people:
            await eventually(lambda: len(hook.posted) == 1)
    assert await states(database) == [("fired", "sent")]


async def test_target_that_left_the_settings_fails_after_ten_minutes(database: Database) -> None:
    alert = await People(database, targets("json://127.0.0.1:1/gone")).fire()
    async with People(database, targets()) as people:
        people.advance(minutes=10)
        await eventually(lambda: people.outcomes == ["failed"])
        # Nothing was tried, so that the target does not hear either that the alert is resolved.
        await people.resolve(alert)
    [row] = await rows(database)
    assert (row.state, row.attempts, row.last_error) == ("failed", 0, "the target is not in the settings")


async def test_notifications_of_a_target_are_left_to_the_process_that_knows_it(database: Database) -> None:
    with hook_server() as hook, hook_server() as other:
        known = targets(f"json://{hook.address}/")
        # As while the settings of one process after the other change.
        async with People(database, targets(f"json://{other.address}/")) as before:
            alert = await People(database, known).fire(severity=Severity.CRITICAL)
            await People(database, known).resolve(alert)
            # It looks for both before it sends a notification that was made later.
            await fire(database, targets(f"json://{other.address}/"), now=before.now, id="later", group="later")
            await eventually(lambda: before.outcomes == ["sent"])
        assert [(row.state, row.attempts) for row in await rows(database)] == [("due", 0), ("due", 0), ("sent", 1)]
        async with People(database, known) as after:
            await eventually(lambda: after.outcomes == ["withdrawn", "sent"])
        assert [one.json["title"][:8] for one in hook.posted] == ["Resolved"]


async def test_notification_that_is_tried_again_is_not_given_up_by_a_process_that_does_not_know_its_target(
    database: Database,
) -> None:
    with hook_server(status=503) as hook, hook_server() as other:
        known = targets(f"json://{hook.address}/")
        people = People(database, known)
        await people.fire()
        people.advance(minutes=30)
        async with people:
            await eventually(lambda: people.outcomes == ["retry"])
        [row] = await rows(database)
        async with People(database, targets(f"json://{other.address}/")) as others:
            others.now = row.due_at + timedelta(minutes=9)
            await fire(database, targets(f"json://{other.address}/"), now=others.now, id="later", group="later")
            await eventually(lambda: others.outcomes == ["sent"])
            assert await states(database) == [("fired", "due"), ("fired", "sent")]
            others.advance(minutes=1)
            await eventually(lambda: others.outcomes == ["sent", "failed"])


async def test_targets_of_a_reload_are_used(database: Database) -> None:
    with hook_server() as hook:
        configured = targets(f"json://{hook.address}/")
        async with People(database, targets()) as people:
            people.notifier.reload(configured)
            await fire(database, configured, now=people.now)
            await eventually(lambda: hook.posted)


async def test_hanging_service_holds_two_threads_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    from receiver.alerts import apprise

    monkeypatch.setattr(apprise, "SECONDS", 0.1)
    with hook_server(seconds=3) as hook:
        [configured] = targets(f"json://{hook.address}/?rto=10").targets.values()
        reasons: list[Any] = [await configured.target.send(made(make_alert())) for _ in range(4)]
        assert [one.reason for one in reasons] == [
            "timeout",
            "timeout",
            "earlier notifications still wait for an answer",
            "earlier notifications still wait for an answer",
        ]
        assert len(hook.posted) == 2
        hook.seconds = 0
        await eventually(lambda: _is_free(configured.target))
        assert await configured.target.send(made(make_alert())) is None


def _is_free(target: Any) -> bool:
    return bool(target._running == 0)
