"""Calling back, over real sockets."""

import asyncio
import socket
from typing import Any

import pytest

from receiver.domain.events import Api, Event, Quarantine, Status
from receiver.providers.parser import read
from receiver.sandbox.callback_sender import PAUSES
from receiver.sandbox.faults import Fault
from receiver.sandbox.numbers import magic_numbers, of, of_code
from receiver.sandbox.settings import CALLBACK_TYPES
from tests.sandboxes import V1, V2, Application, Sandbox, sandbox, v1_message, v2_message

pytestmark = pytest.mark.anyio

SETTLED = {"receiptRequested": "all"}


async def send_v1(box: Sandbox, **more: Any) -> str:
    """Sends a message that calls back at /v1 unless told otherwise; its id."""
    message = v1_message(**{"callbackUrl": f"{box.application.url}/v1", **more})
    location = (await box.send(V1, message, 201)).headers["location"]
    await box.settle()
    return str(location.rpartition("/")[2])


async def send_v2(box: Sandbox, **more: Any) -> str:
    message_id = (await box.send(V2, v2_message(**more), 202)).json()["id"]
    await box.settle()
    return str(message_id)


def states(application: Application, path: str = "/v1") -> list[tuple[str | None, ...]]:
    fields = ("state", "deliveryState", "deliveryCode")
    return [tuple(heard.json.get(name) for name in fields) for heard in application.on(path)]


# v1


@pytest.mark.parametrize(
    ("receipts", "to", "told"),
    [
        ("none", "+19195551213", [("sent", None, None)]),
        ("none", of_code(Api.V1, 720), [("sent", None, None)]),
        ("none", of_code(Api.V1, 187), [("error", None, None)]),
        ("all", "+19195551213", [("sent", "waiting", None), ("sent", "delivered", "0")]),
        ("all", of_code(Api.V1, 720), [("sent", "waiting", None), ("sent", "not-delivered", "720")]),
        ("all", of_code(Api.V1, 187), [("error", "not-delivered", "187")]),
        ("error", "+19195551213", [("sent", None, None)]),
        ("error", of_code(Api.V1, 720), [("sent", None, None), ("sent", "not-delivered", "720")]),
    ],
)
async def test_receipts_come_as_they_were_asked_for(receipts: str, to: str, told: list[tuple[str | None, ...]]) -> None:
    async with sandbox() as box:
        await send_v1(box, to=to, receiptRequested=receipts)
        assert states(box.application) == told


async def test_a_v1_callback_is_a_post_of_one_object() -> None:
    async with sandbox() as box:
        message_id = await send_v1(box, tag="mine")
        (heard,) = box.application.heard
        assert heard.method == "POST"
        assert heard.headers["content-type"] == "application/json; charset=utf-8"
        assert heard.headers["user-agent"] == "BandwidthAPI/v1"
        assert heard.pair is None
        event = heard.json
        assert (event["messageId"], event["tag"]) == (message_id, "mine")
        shown = (await box.client.get(event["messageUri"])).json()
        assert (shown["id"], shown["time"]) == (message_id, event["time"])


async def test_a_v1_callback_can_be_a_get_with_everything_in_its_query() -> None:
    async with sandbox() as box:
        url = f"{box.application.url}/v1?mine=1"
        message_id = await send_v1(
            box, callbackUrl=url, callbackHttpMethod="get", text="a+b & c", media=["http://x.y/a", "http://x.y/b"]
        )
        (heard,) = box.application.heard
        assert (heard.method, heard.body) == ("GET", b"")
        assert heard.query.startswith("mine=1&eventType=mms&")
        assert "content-type" not in heard.headers
        (event,) = read(heard.callback())
        assert isinstance(event, Event)
        assert (event.message_id, event.status) == (message_id, Status.SENT)
        assert (event.facts.text, event.facts.media) == ("a+b & c", ("http://x.y/a", "http://x.y/b"))
        assert event.recipient == "+19195551213"


async def test_credentials_in_the_url_are_sent_at_once_and_shown_nowhere() -> None:
    async with sandbox() as box:
        url = box.application.url.replace("http://", "http://user:p%40ss@")
        await send_v1(box, callbackUrl=f"{url}/v1")
        (heard,) = box.application.heard
        assert heard.pair == "user:p@ss"
        posts = await box.client.get("/sandbox/posts")
        assert "p%40ss" not in posts.text
        assert "p@ss" not in posts.text
        assert posts.json()[0]["withCredentials"] is True


@pytest.mark.parametrize("answer", [500, 404, 301, 401])
async def test_the_fallback_url_is_used_when_the_first_one_fails(answer: int) -> None:
    async with sandbox() as box:
        box.application.answers["/v1"] = [answer]
        message_id = await send_v1(box, fallbackUrl=f"{box.application.url}/fallback")
        first, second = box.application.heard
        assert (first.path, second.path) == ("/v1", "/fallback")
        assert first.body == second.body
        (truth,) = await box.truth(message_id)
        assert (truth["status"], truth["certain"]) == ("sent", True)
        posts = (await box.client.get("/sandbox/posts", params={"messageId": message_id})).json()
        assert [(post["route"], post["status"]) for post in posts] == [("primary", answer), ("fallback", 200)]


async def test_the_fallback_url_is_used_after_the_callback_timeout() -> None:
    async with sandbox() as box:
        box.application.answers["/v1"] = [asyncio.Event()]
        message_id = await send_v1(box, callbackTimeout=1000, fallbackUrl=f"{box.application.url}/fallback")
        assert [heard.path for heard in box.application.heard] == ["/v1", "/fallback"]
        posts = (await box.client.get("/sandbox/posts")).json()
        assert posts[0]["error"] == "timeout"
        assert 1 <= posts[0]["seconds"] < 9
        assert [truth["status"] for truth in await box.truth(message_id)] == ["sent"]


async def test_the_fallback_url_is_used_when_nobody_listens() -> None:
    async with sandbox() as box:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{nobody.getsockname()[1]}/v1"
            await send_v1(box, callbackUrl=url, fallbackUrl=f"{box.application.url}/fallback")
        assert [heard.path for heard in box.application.heard] == ["/fallback"]
        assert (await box.client.get("/sandbox/posts")).json()[0]["error"].startswith("unreachable")


async def test_v1_never_tries_again() -> None:
    async with sandbox() as box:
        box.application.answers = {"/v1": [500], "/fallback": [500]}
        message_id = await send_v1(box, fallbackUrl=f"{box.application.url}/fallback")
        assert len(box.application.heard) == 2
        (truth,) = await box.truth(message_id)
        assert (truth["status"], truth["certain"]) == (None, True)


async def test_a_callback_without_an_answer_leaves_the_truth_uncertain() -> None:
    async with sandbox() as box:
        box.application.answers["/v1"] = [asyncio.Event()]
        message_id = await send_v1(box, callbackTimeout=50)
        (truth,) = await box.truth(message_id)
        assert (truth["status"], truth["certain"]) == (None, False)


async def test_a_message_without_callback_url_calls_nobody() -> None:
    async with sandbox() as box:
        await box.send(V1, v1_message(receiptRequested="all"), 201)
        await box.settle()
        assert box.application.heard == []


# v2


async def test_a_v2_callback_is_a_post_of_an_array() -> None:
    async with sandbox() as box:
        message_id = await send_v2(box, tag="mine")
        (heard,) = box.application.heard
        assert (heard.method, heard.path) == ("POST", "/v2")
        assert heard.headers["content-type"] == "application/json; charset=utf-8"
        assert heard.headers["user-agent"] == "BandwidthAPI/v2"
        (event,) = heard.json
        assert (event["type"], event["to"]) == ("message-delivered", "+19195551213")
        assert (event["message"]["id"], event["message"]["tag"]) == (message_id, "mine")
        assert event["message"]["text"] == ""


async def test_credentials_are_given_when_they_are_asked_for_each_time_anew() -> None:
    async with sandbox(callback_credentials="user:pass") as box:
        box.application.password = "user:pass"
        await send_v2(box, media=["http://x.y/z"])
        assert [heard.pair for heard in box.application.heard] == [None, "user:pass"] * 2
        without, with_pair, *_ = box.application.heard
        assert without.body == with_pair.body
        posts = (await box.client.get("/sandbox/posts")).json()
        assert [(post["withCredentials"], post["status"]) for post in posts[:2]] == [(False, 401), (True, 200)]


async def test_nobody_asks_so_no_credentials_are_sent() -> None:
    async with sandbox(callback_credentials="user:pass") as box:
        await send_v2(box)
        assert [heard.pair for heard in box.application.heard] == [None]


async def test_a_bare_401_loses_the_callback() -> None:
    async with sandbox(callback_credentials="user:pass") as box:
        box.application.answers["/v2"] = [""]
        message_id = await send_v2(box)
        assert len(box.application.heard) == 1
        assert [truth["status"] for truth in await box.truth(message_id)] == [None]


async def test_another_challenge_than_basic_is_none() -> None:
    async with sandbox(callback_credentials="user:pass") as box:
        box.application.answers["/v2"] = ['Bearer realm="x"']
        await send_v2(box)
        assert len(box.application.heard) == 1


async def test_wrong_credentials_are_tried_again_later() -> None:
    async with sandbox(callback_credentials="user:wrong", speed=10_000) as box:
        box.application.answers["/v2"] = ['Basic realm="x"'] * 4
        message_id = await send_v2(box)
        assert [heard.pair for heard in box.application.heard] == [None, "user:wrong", None, "user:wrong", None]
        assert [truth["status"] for truth in await box.truth(message_id)] == ["delivered"]


@pytest.mark.parametrize("answer", [500, 503, 404, 301, 429])
async def test_v2_tries_again_until_it_is_2xx(answer: int) -> None:
    async with sandbox(speed=10_000) as box:
        box.application.answers["/v2"] = [answer, answer, 204]
        message_id = await send_v2(box)
        first, *others = box.application.heard
        assert len(others) == 2
        assert {heard.body for heard in others} == {first.body}
        posts = (await box.client.get("/sandbox/posts")).json()
        assert [(post["attempt"], post["status"]) for post in posts] == [(1, answer), (2, answer), (3, 204)]
        assert [truth["status"] for truth in await box.truth(message_id)] == ["delivered"]


async def test_v2_tries_again_after_a_timeout() -> None:
    async with sandbox(speed=10_000, callback_timeout=1) as box:
        box.application.answers["/v2"] = [asyncio.Event()]
        message_id = await send_v2(box)
        assert len(box.application.heard) == 2
        assert [(truth["status"], truth["certain"]) for truth in await box.truth(message_id)] == [("delivered", True)]


async def test_v2_gives_up_after_24_hours() -> None:
    async with sandbox(speed=1) as box:
        box.application.answers["/v2"] = [500] * 1000
        message_id = (await box.send(V2, v2_message(), 202)).json()["id"]
        while due := (await box.client.get("/sandbox/idle")).json()["nextTime"]:
            await box.client.post("/sandbox/clock", json={"to": due})
            await until_idle_for_now(box)
        hourly = (24 * 3600 - sum(PAUSES)) // PAUSES[-1]
        assert len(box.application.heard) == 1 + len(PAUSES) + hourly
        assert [truth["status"] for truth in await box.truth(message_id)] == [None]


async def test_the_pauses_follow_the_schedule() -> None:
    async with sandbox(speed=1) as box:
        box.application.answers["/v2"] = [500] * 3
        await box.send(V2, v2_message(), 202)
        await box.client.post("/sandbox/clock", json={"advance": 10})
        for pause in PAUSES[:3]:
            await until_idle_for_now(box)
            before = len(box.application.heard)
            await box.client.post("/sandbox/clock", json={"advance": pause - 5})
            await until_idle_for_now(box)
            assert len(box.application.heard) == before
            await box.client.post("/sandbox/clock", json={"advance": 5})
            await until_idle_for_now(box)
            assert len(box.application.heard) == before + 1
        assert (await box.client.get("/sandbox/idle")).json()["idle"] is True


async def until_idle_for_now(box: Sandbox) -> None:
    """Waits until nothing is under way."""
    async with asyncio.timeout(45):
        while True:
            await asyncio.sleep(0.02)
            if not box.world.caller.state().under_way:
                return


async def test_a_group_has_an_event_for_each_recipient() -> None:
    async with sandbox() as box:
        to = ["+19195551213", "+19195551214", "+19195551215"]
        message_id = await send_v2(box, to=to)
        events = box.application.events()
        delivered = [event["to"] for event in events if event["type"] == "message-delivered"]
        assert sorted(delivered) == to
        assert {event["message"]["id"] for event in events} == {message_id}
        assert all(event["message"]["to"] == to for event in events)


async def test_a_group_with_an_invalid_number_is_delivered_to_all_and_failed_for_one() -> None:
    async with sandbox() as box:
        invalid = of_code(Api.V2, 4720)
        message_id = await send_v2(box, to=["+19195551213", invalid])
        told = [(event["type"], event["to"], event.get("errorCode")) for event in box.application.events()]
        assert told[0] == ("message-failed", invalid, 4720)
        assert ("message-delivered", invalid, None) in told
        assert ("message-delivered", "+19195551213", None) in told
        truths = {truth["recipient"]: truth for truth in await box.truth(message_id)}
        assert (truths[invalid]["status"], truths[invalid]["contradicted"]) == ("failed", True)
        assert (truths["+19195551213"]["status"], truths["+19195551213"]["contradicted"]) == ("delivered", False)


async def test_an_mms_is_sending_then_delivered() -> None:
    async with sandbox() as box:
        await send_v2(box, media=["http://x.y/z"])
        assert [event["type"] for event in box.application.events()] == ["message-sending", "message-delivered"]


async def test_only_the_requested_types_are_posted() -> None:
    async with sandbox(callback_types=["message-failed"]) as box:
        message_id = await send_v2(box, to=["+19195551213", of_code(Api.V2, 4432)], media=["http://x.y/z"])
        assert [event["type"] for event in box.application.events()] == ["message-failed"]
        assert [truth["status"] for truth in await box.truth(message_id)] == ["unknown", "failed"]


async def test_a_batch_is_one_post_of_several_events() -> None:
    async with sandbox() as box:
        await send_v2(box, to=[of(Fault.BATCH), "+19195551213"])
        assert max(len(heard.json) for heard in box.application.heard) > 1


async def test_duplicates_are_the_same_byte_for_byte() -> None:
    async with sandbox() as box:
        await send_v2(box, to=of(Fault.DUPLICATE))
        assert len(box.application.heard) > 1
        assert len({heard.body for heard in box.application.heard}) == 1


async def test_other_machines_are_not_called_unless_allowed() -> None:
    async with sandbox(outbound_url="http://callbacks.invalid/v2") as box:
        message_id = await send_v2(box)
        (post,) = (await box.client.get("/sandbox/posts")).json()
        assert "remote_callbacks" in post["error"]
        assert [truth["certain"] for truth in await box.truth(message_id)] == [True]
    async with sandbox(
        outbound_url="http://callbacks.invalid/v2", remote_callbacks=True, speed=1e6, callback_timeout=60
    ) as box:
        await send_v2(box)
        posts = (await box.client.get("/sandbox/posts")).json()
        assert posts[0]["error"].startswith("unreachable")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3"])
async def test_this_machine_has_several_names(host: str) -> None:
    async with sandbox(outbound_url=lambda url: f"{url.replace('127.0.0.1', host)}/v2", speed=1e6) as box:
        await send_v2(box)
        posts = (await box.client.get("/sandbox/posts")).json()
        assert not any("remote" in (post["error"] or "") for post in posts)


async def test_one_slow_callback_does_not_hold_up_the_others() -> None:
    async with sandbox(callback_timeout=60) as box:
        box.application.answers["/v2"] = [asyncio.Event()]
        await box.send(V2, v2_message(), 202)
        async with asyncio.timeout(45):
            while not box.application.heard:
                await asyncio.sleep(0.01)
            second = (await box.send(V2, v2_message(), 202)).json()["id"]
            while [truth["status"] for truth in await box.truth(second)] != ["delivered"]:
                await asyncio.sleep(0.01)
        assert not box.world.caller.state().idle


async def test_no_more_callbacks_are_under_way_than_allowed() -> None:
    async with sandbox(connections=1, callback_timeout=60) as box:
        box.application.answers["/v2"] = [silence := asyncio.Event()]
        for _ in range(3):
            await box.send(V2, v2_message(), 202)
        async with asyncio.timeout(45):
            while box.world.caller.state().under_way < 3 or not box.application.heard:
                await asyncio.sleep(0.01)
        assert len(box.application.heard) == 1
        silence.set()
        await box.settle()
        assert len(box.application.heard) == 3


async def test_an_impossible_address_stops_nobody_else() -> None:
    async with sandbox() as box:
        await send_v1(box, callbackUrl=f"http://{'a' * 70}.localhost:1/v1")
        (post,) = (await box.client.get("/sandbox/posts")).json()
        assert post["error"].startswith(("unforeseen", "unreachable"))
        await send_v1(box)
        assert len(box.application.heard) == 1


async def test_first_attempts_of_a_message_are_made_in_their_order_at_any_speed() -> None:
    async with sandbox(speed=1e6) as box:
        for _ in range(30):
            await box.send(V2, v2_message(media=["http://x.y/z"]), 202)
        await box.settle()
        by_message: dict[str, list[str]] = {}
        for event in box.application.events():
            by_message.setdefault(event["message"]["id"], []).append(event["type"])
        assert set(map(tuple, by_message.values())) == {("message-sending", "message-delivered")}
        assert len(by_message) == 30


async def test_nothing_is_posted_for_a_message_that_is_forgotten() -> None:
    async with sandbox(speed=1, max_messages=1) as box:
        for _ in range(20):
            await box.send(V2, v2_message(), 202)
        assert box.world.caller.state().waiting == 1
        await box.client.post("/sandbox/clock", json={"advance": 60})
        await box.settle()
        assert len(box.application.heard) == 1


async def test_nothing_is_posted_for_a_message_that_is_forgotten_while_it_waits_for_its_turn() -> None:
    async with sandbox(connections=1, max_messages=1, callback_timeout=60) as box:
        box.application.answers["/v2"] = [silence := asyncio.Event()]
        for tag in ("first", "second", "third"):
            await box.send(V2, v2_message(tag=tag), 202)
            async with asyncio.timeout(45):
                while box.world.caller.state().waiting or not box.application.heard:
                    await asyncio.sleep(0.01)
        silence.set()
        await box.settle()
        assert [event["message"]["tag"] for event in box.application.events()] == ["first", "third"]


# what the receiver makes of it


async def test_everything_the_sandbox_can_say_is_read_by_the_receiver() -> None:
    async with sandbox(speed=1e6, sent_events=True) as box:
        url = f"{box.application.url}/v1"
        for each in magic_numbers():
            if each.api in (Api.V2, None):
                await box.send(V2, v2_message(to=each.number, tag="t"), 202)
                await box.send(V2, v2_message(to=[each.number, "+19195551213"], media=["http://x.y/z"]), 202)
            if each.api in (Api.V1, None):
                for method in ("get", "post"):
                    more = {"to": each.number, "callbackUrl": url, "callbackHttpMethod": method}
                    await box.send(V1, v1_message(**more, receiptRequested="all", tag="t"), 201)
                    await box.send(V1, v1_message(**more, media=["http://x.y/z"]), 201)
        for body in INBOUND:
            await box.send("/sandbox/inbound", {"from": "+19195551213", "to": "+19195551212", **body}, 202)
        await box.settle(60)
        read_types = set()
        for number, heard in enumerate(box.application.heard):
            for element in read(heard.callback(number)):
                if isinstance(element, Event):
                    read_types.add((element.api, element.type))
                else:
                    assert element.reason is Quarantine.UNKNOWN_TYPE
                    assert "message-pondered" in element.detail or "rcs" in element.detail
        assert read_types == {
            (Api.V1, "sms"),
            (Api.V1, "mms"),
            *((Api.V2, each) for each in CALLBACK_TYPES),
            (Api.V2, "message-received"),
            (Api.V2, "suggestion-response"),
            (Api.V2, "requested-location-response"),
            (Api.V2, "request-location-response"),
            (Api.V2, "location-request-response"),
        }


INBOUND: list[dict[str, Any]] = [
    {"text": "hi"},
    {"text": "hi", "media": ["http://x.y/z"], "carrierName": "AT&T"},
    {"text": "hi", "others": ["+19195551214"]},
    {"text": "hi", "channel": "RBM", "media": ["http://x.y/z"]},
    {"text": "Yes", "channel": "RBM", "event": "suggestion-response", "postbackData": "eA=="},
    {"channel": "RBM", "event": "requested-location-response"},
    {"channel": "RBM", "event": "request-location-response"},
    {"channel": "RBM", "event": "location-request-response"},
    {"api": "v1", "text": "hi"},
    {"api": "v1", "text": "hi", "media": ["http://x.y/z"]},
]
