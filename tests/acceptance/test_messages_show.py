"""`receiver messages show`: what became of a message in words, on a database that the processor has filled."""

import asyncio
import json
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from receiver import cli
from receiver.domain.events import Api, Callback
from receiver.domain.publication import Publication, Published, Refused, Result, Retry
from receiver.intake.fold import TagChecker
from receiver.sinks.registry import ConfiguredSink
from receiver.storage.database import Database
from tests.dispatching import dispatching, memory, memory_sink
from tests.factories import callback, v1_event, v2_event
from tests.processes import environment
from tests.processing import process, select
from tests.waiting import eventually

pytestmark = pytest.mark.usefixtures("own_log")

ONE, TWO, THREE = "+15550001", "+15550002", "+15550003"


class Shown(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def sections(self) -> dict[str, list[str]]:
        """The lines of the output by the heading of their section; the first section has none."""
        sections: dict[str, list[str]] = {}
        for number, block in enumerate(self.out.removesuffix("\n").split("\n\n")):
            lines = block.split("\n")
            sections[lines[0] if number else ""] = lines[1:] if number else lines
        return sections

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Show = Callable[..., Shown]


@pytest.fixture
def run(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Show:
    """Runs a command within this process on the test's database."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ.keys() - environment().keys():
        monkeypatch.delenv(name)

    def run(*arguments: str, **settings: str) -> Shown:
        with monkeypatch.context() as patch:
            for name, value in {"DATABASE_URL": database_url, **settings}.items():
                patch.setenv(f"RECEIVER_{name}", value)
            code = cli.main(arguments)
        captured = capsys.readouterr()
        return Shown(code, captured.out, captured.err)

    return run


@pytest.fixture
def show(run: Show) -> Show:
    def show(*arguments: str, **settings: str) -> Shown:
        shown = run("messages", "show", *arguments, **settings)
        assert (shown.code, shown.err) == (0, "")
        return shown

    return show


def feed(url: str, *callbacks: Callback, checker: TagChecker | None = None) -> None:
    """Appends callbacks to the journal and processes them."""

    async def run() -> None:
        database = Database(url)
        try:
            await process(database, *callbacks, checker=checker)
        finally:
            await database.close()

    asyncio.run(run())


def to_group(recipient: str, type: str = "message-delivered", **more: Any) -> dict[str, Any]:  # noqa: A002
    return v2_event("group", type, to=recipient, message={"to": [ONE, TWO, THREE]}, **more)


# --- in words

WHY_4720 = (
    "Code 4720 (invalid-destination-address): Carrier says the destination is invalid or not enabled (for example a"
    " landline); on T-Mobile also a user block of toll-free and short code traffic."
)


def test_failed_message_begins_with_the_answer(show: Show, database_url: str) -> None:
    failed = v2_event("m", "message-failed", errorCode=4720, description="invalid-destination-address")
    sending = v2_event("m", "message-sending", time="2026-01-01T00:00:01.000Z", message={"tag": "order 4711"})
    feed(database_url, callback([sending], received=1.5), callback([failed], received=7))
    sections = show("m").sections
    assert sections[""] == [
        f"The message to +15550001 failed on 2026-01-01 00:00:05 UTC: the carrier refused it. {WHY_4720}",
        "Sending it again gives the same result, according to Bandwidth. Bandwidth charges for it.",
        'Created on 2026-01-01 00:00:00 UTC, from +15559999, tag "order 4711".',
    ]
    assert [re.split(" {2,}", line) for line in sections["timeline"]] == [
        ["BANDWIDTH'S TIME", "OUR TIME", "APART", "TYPE", "EVENT"],
        ["2026-01-01 00:00:00 UTC", "-", "Bandwidth's time", "-", "Message created"],
        [
            "2026-01-01 00:00:01 UTC",
            "2026-01-01 00:00:01 UTC",
            "received 0.5 seconds later",
            "message-sending",
            "Sending for +15550001",
        ],
        [
            "2026-01-01 00:00:05 UTC",
            "2026-01-01 00:00:07 UTC",
            "received 2 seconds later",
            "message-failed",
            "Failed for +15550001: code 4720 (invalid-destination-address)",
        ],
    ]
    assert list(sections) == ["", "timeline"]


def test_group_has_a_summary_and_a_line_for_each_recipient(show: Show, database_url: str) -> None:
    events = to_group(ONE), to_group(TWO), to_group(THREE, "message-failed", errorCode=4720)
    feed(database_url, callback([*events], received=6))
    sections = show("group").sections
    assert sections[""][:2] == [
        "Delivered to 2 of 3 recipients; failed for 1: +15550003 (code 4720).",
        "Sending it again to all recipients would reach some of them twice: see each recipient.",
    ]
    assert [line.partition(" UTC")[0] for line in sections["recipients"]] == [
        "- The message to +15550001 was delivered on 2026-01-01 00:00:05",
        "- The message to +15550002 was delivered on 2026-01-01 00:00:05",
        "- The message to +15550003 failed on 2026-01-01 00:00:05",
    ]


def test_contradiction_is_explained(show: Show, database_url: str) -> None:
    failed = to_group(ONE, "message-failed", errorCode=4720)
    delivered = to_group(ONE, time="2026-01-01T00:00:09.000Z"), to_group(TWO), to_group(THREE)
    feed(database_url, callback([failed], received=6), callback([*delivered], received=10))
    sections = show("group").sections
    assert sections[""][0].startswith("Delivered to 2 of 3 recipients; failed for 1: +15550001 (code 4720).")
    assert sections["notes"][0] == (
        "- Bandwidth reported the message to +15550001 both as delivered on 2026-01-01 00:00:09 UTC and as failed on"
        " 2026-01-01 00:00:05 UTC. The failure counts, whichever came first: for an invalid number in a group"
        " Bandwidth is documented to report delivered too."
    )


def test_unconfirmed_message_is_not_called_failed(show: Show, database_url: str) -> None:
    feed(database_url, callback([v2_event("m", "message-failed", errorCode=9902)], received=6))
    [answer, advice, _] = show("m").sections[""]
    assert answer.startswith("It is not known whether the message reached +15550001")
    assert advice == "Sending it again may reach the recipient twice. Bandwidth charges for it."


def test_pending_message_says_since_when_and_what_is_normal(show: Show, database_url: str) -> None:
    minute = datetime.now(UTC).isoformat()
    sending = v2_event("m", "message-sending", time=minute, message={"time": minute})
    feed(database_url, callback([sending], received_at=datetime.now(UTC)))
    [answer, advice, _] = show("m").sections[""]
    assert answer.startswith("The message to +15550001 has been on its way to the carrier since ")
    assert answer.endswith("This is normal: Bandwidth waits up to two hours for a receipt of the carrier.")
    assert advice.startswith("Wait before you send it again.")


def test_v1_message_says_that_there_are_no_event_times(show: Show, database_url: str) -> None:
    receipt = {"deliveryState": "delivered", "deliveryCode": "0", "deliveryDescription": "Message delivered to carrier"}
    feed(
        database_url,
        callback(v1_event("m", deliveryState="waiting"), received=1, api=Api.V1),
        callback(v1_event("m", **receipt), received=3, api=Api.V1),
    )
    sections = show("m").sections
    assert sections[""][0].startswith(
        "The message to +15550001 was delivered, as Bandwidth reported on 2026-01-01 00:00:03 UTC."
    )
    assert (
        "- Version 1 of the API gives no time of an event: the times of events are when we received them."
        in (sections["notes"])
    )
    last = sections["timeline"][-1]
    assert re.split(" {2,}", last)[:3] == ["-", "2026-01-01 00:00:03 UTC", "Bandwidth gives no time"]


def test_inbound_message(show: Show, database_url: str) -> None:
    feed(database_url, callback([v2_event("m", "message-received", message={"direction": "in"})], received=6))
    assert (
        show("m")
        .sections[""][0]
        .startswith("A message from +15559999 to +15550001 was received on 2026-01-01 00:00:05 UTC.")
    )


def test_forged_tag_is_a_note(show: Show, database_url: str) -> None:
    event = v2_event("m", message={"tag": "order~r1.k1.-.junk"})
    feed(database_url, callback([event], received=6), checker=TagChecker(keys={"k1": "secret"}))
    assert show("m").sections["notes"][0] == (
        "- The event has a tag with a wrong signature: no key of yours made it for these numbers."
        " Look the message up at Bandwidth before you trust this."
    )


def test_message_whose_events_retention_has_deleted(run: Show, show: Show, database_url: str) -> None:
    feed(database_url, callback([v2_event("m", "message-failed", errorCode=4720)], received=6))
    assert run("prune", RETENTION__EVENTS="1", RETENTION__MESSAGES="0").code == 0
    sections = show("m").sections
    assert sections[""][0].startswith("The message to +15550001 failed on 2026-01-01 00:00:05 UTC")
    assert sections["notes"] == ["- The events of this message are no longer stored: retention has deleted them."]
    assert len(sections["timeline"]) == 2


# --- columns and JSON


def test_all_shows_the_columns_too(show: Show, database_url: str) -> None:
    feed(database_url, callback([v2_event("m", "message-failed", errorCode=4720)], received=6))
    assert "deliveryState" not in show("m").out
    out = show("m", "--all").out
    assert out.startswith(show("m").out)
    assert re.search(r"^deliveryState +not-delivered$", out, re.MULTILINE)
    assert "events, in order of arrival" in out


def test_json_has_the_explanation_as_one_more_field(show: Show, database_url: str) -> None:
    feed(database_url, callback([v2_event("m", "message-failed", errorCode=4720)], received=6))
    message = show("m", "--json").json
    explanation = message["explanation"]
    assert list(message)[-2:] == ["events", "explanation"]
    assert message["recipients"][0]["deliveryCode"] == 4720
    assert explanation["headline"].startswith("The message to +15550001 failed")
    assert (explanation["charged"], explanation["recipients"][0]["to"]) == ("yes", ONE)
    assert [(entry["eventId"], entry["time"], entry["receivedTime"]) for entry in explanation["timeline"]] == [
        (None, "2026-01-01T00:00:00Z", None),
        (message["events"][0]["id"], "2026-01-01T00:00:05Z", "2026-01-01T00:00:06Z"),
    ]


# --- the sinks


def publish(url: str, *sinks: ConfiguredSink, cursor: int) -> None:
    """Publishes the log to sinks until the cursors of all have passed a position."""

    async def run() -> None:
        database = Database(url)

        async def passed() -> bool:
            rows = await select(database, f"SELECT count(*) FROM sinks WHERE cursor >= {cursor}")
            return bool(rows[0][0] == len(sinks))

        try:
            async with dispatching(database, *sinks):
                await eventually(passed)
        finally:
            await database.close()

    asyncio.run(run())


def sink(name: str, answer: Callable[[Publication], Result] = lambda _: Published(), **fields: Any) -> ConfiguredSink:
    configured = memory_sink(name, **fields)
    memory(configured).answer = answer
    return configured


SINKS = json.dumps([{"name": name, "type": "memory"} for name in ("crm", "lake", "mail", "pager")])


def test_every_sink_says_what_it_was_sent(show: Show, database_url: str) -> None:
    sending = v2_event("m", "message-sending", time="2026-01-01T00:00:01.000Z")
    feed(database_url, callback([sending, v2_event("m")], received=6))
    crm = sink("crm")
    memory(crm).keep_attempts = "all"
    mail = sink("mail", lambda one: Refused(reason="status 422") if one.type == "message.sending" else Published())
    pager = sink("pager", lambda _: Retry(reason="status 500"), schedule=["10m"])
    publish(database_url, crm, sink("lake"), mail, pager, cursor=2)
    heading, *rows = show("m", SINKS=SINKS).sections["sinks"]
    assert heading.split() == ["SINK", "EVENT", "RECIPIENT", "STATE"]
    crm_sending, crm_delivered, lake_sending, _, mail_sending, mail_delivered, pager_sending, pager_delivered = rows
    assert crm_sending.startswith("crm    message.sending    +15550001  published on 20")
    assert crm_delivered.endswith(" UTC (1 attempt)")
    assert lake_sending == (
        "lake   message.sending    +15550001  published, or left out by the filter; no attempt is recorded"
    )
    assert mail_sending.startswith("mail   message.sending    +15550001  dead letter 1 on 20")
    assert mail_sending.endswith(" UTC after 1 attempt, refused: status 422")
    assert mail_delivered.endswith("published, or left out by the filter; no attempt is recorded")
    assert " waits for its next attempt after 1 attempt, status 500; it is due on 20" in pager_sending
    assert pager_delivered.endswith(" waits behind an earlier event of the message")


def test_event_that_no_sink_was_sent_yet_says_why(show: Show, database_url: str) -> None:
    feed(database_url, callback([v2_event("other")], received=6))
    publish(database_url, sink("crm"), sink("lake"), cursor=1)
    feed(database_url, callback([v2_event("m")], received=7))
    [_, crm, lake] = show("m", SINKS='[{"name": "crm", "type": "memory"}]').sections["sinks"]
    assert crm.endswith("not sent yet")
    assert lake.endswith("not sent yet: the sink is not in the settings")
