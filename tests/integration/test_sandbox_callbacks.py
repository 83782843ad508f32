"""Callbacks over real sockets."""

import asyncio
import socket
from typing import Any

import pytest

from receiver.domain.events import Api, Event, Quarantine, Status
from receiver.providers import parse
from receiver.sandbox.callback_sender import RETRY_DELAYS
from receiver.sandbox.scenario_writer import code_number, fault_number, magic_numbers
from receiver.sandbox.settings import CALLBACK_TYPES, Fault
from tests.sandboxes import V1, V2, Application, Sandbox, sandbox, v1_message, v2_message

pytestmark = pytest.mark.anyio


async def send_v1(box: Sandbox, **more: Any) -> str:
    """Sends a message whose callback URL is /v1 by default. Returns its id."""
    message = v1_message(**{"callbackUrl": f"{box.application.url}/v1", **more})
    location = (await box.send(V1, message, 201)).headers["location"]
    await box.wait_until_idle()
    return str(location.rpartition("/")[2])


async def send_v2(box: Sandbox, **more: Any) -> str:
    message_id = (await box.send(V2, v2_message(**more), 202)).json()["id"]
    await box.wait_until_idle()
    return str(message_id)


def states(application: Application, path: str = "/v1") -> list[tuple[str | None, ...]]:
    fields = ("state", "deliveryState", "deliveryCode")
    return [tuple(request.json.get(name) for name in fields) for request in application.on(path)]


# --- v1


@pytest.mark.parametrize(
    ("receipts", "to", "outcomes"),
    [
        ("none", "+19195551213", [("sent", None, None)]),
        ("none", code_number(Api.V1, 720), [("sent", None, None)]),
        ("none", code_number(Api.V1, 187), [("error", None, None)]),
        ("all", "+19195551213", [("sent", "waiting", None), ("sent", "delivered", "0")]),
        ("all", code_number(Api.V1, 720), [("sent", "waiting", None), ("sent", "not-delivered", "720")]),
        ("all", code_number(Api.V1, 187), [("error", "not-delivered", "187")]),
        ("error", "+19195551213", [("sent", None, None)]),
        ("error", code_number(Api.V1, 720), [("sent", None, None), ("sent", "not-delivered", "720")]),
    ],
)
async def test_v1_receipt_requested_decides_the_callbacks(
    receipts: str, to: str, outcomes: list[tuple[str | None, ...]]
) -> None:
    async with sandbox() as box:
        await send_v1(box, to=to, receiptRequested=receipts)
        assert states(box.application) == outcomes


async def test_v1_callback_is_a_post_of_one_object() -> None:
    async with sandbox() as box:
        message_id = await send_v1(box, tag="mine")
        (request,) = box.application.requests
        assert request.method == "POST"
        assert request.headers["content-type"] == "application/json; charset=utf-8"
        assert request.headers["user-agent"] == "BandwidthAPI/v1"
        assert request.credentials is None
        event = request.json
        assert (event["messageId"], event["tag"]) == (message_id, "mine")
        shown = (await box.client.get(event["messageUri"])).json()
        assert (shown["id"], shown["time"]) == (message_id, event["time"])


async def test_v1_get_callback_has_the_event_in_its_query() -> None:
    async with sandbox() as box:
        url = f"{box.application.url}/v1?mine=1"
        message_id = await send_v1(
            box, callbackUrl=url, callbackHttpMethod="get", text="a+b & c", media=["http://x.y/a", "http://x.y/b"]
        )
        (request,) = box.application.requests
        assert (request.method, request.body) == ("GET", b"")
        assert request.query.startswith("mine=1&eventType=mms&")
        assert "content-type" not in request.headers
        (event,) = parse(request.callback())
        assert isinstance(event, Event)
        assert (event.message_id, event.status) == (message_id, Status.SENT)
        assert (event.fields.text, event.fields.media) == ("a+b & c", ("http://x.y/a", "http://x.y/b"))
        assert event.recipient == "+19195551213"


async def test_v1_credentials_in_the_url_are_sent_and_not_shown() -> None:
    async with sandbox() as box:
        url = box.application.url.replace("http://", "http://user:p%40ss@")
        await send_v1(box, callbackUrl=f"{url}/v1")
        (request,) = box.application.requests
        assert request.credentials == "user:p@ss"
        posts = await box.client.get("/sandbox/posts")
        assert "p%40ss" not in posts.text
        assert "p@ss" not in posts.text
        assert posts.json()[0]["withCredentials"] is True


@pytest.mark.parametrize("answer", [500, 404, 301, 401])
async def test_fallback_url_is_used_after_an_error_status(answer: int) -> None:
    async with sandbox() as box:
        box.application.answers["/v1"] = [answer]
        message_id = await send_v1(box, fallbackUrl=f"{box.application.url}/fallback")
        first, second = box.application.requests
        assert (first.path, second.path) == ("/v1", "/fallback")
        assert first.body == second.body
        (expected,) = await box.expected(message_id)
        assert (expected["status"], expected["certain"]) == ("sent", True)
        posts = (await box.client.get("/sandbox/posts", params={"messageId": message_id})).json()
        assert [(post["route"], post["status"]) for post in posts] == [("primary", answer), ("fallback", 200)]


async def test_fallback_url_is_used_after_the_callback_timeout() -> None:
    async with sandbox() as box:
        box.application.answers["/v1"] = [asyncio.Event()]
        message_id = await send_v1(box, callbackTimeout=1000, fallbackUrl=f"{box.application.url}/fallback")
        assert [request.path for request in box.application.requests] == ["/v1", "/fallback"]
        posts = (await box.client.get("/sandbox/posts")).json()
        assert posts[0]["error"] == "timeout"
        assert 1 <= posts[0]["seconds"] < 9
        assert [expected["status"] for expected in await box.expected(message_id)] == ["sent"]


async def test_fallback_url_is_used_after_a_refused_connection() -> None:
    async with sandbox() as box:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{nobody.getsockname()[1]}/v1"
            await send_v1(box, callbackUrl=url, fallbackUrl=f"{box.application.url}/fallback")
        assert [request.path for request in box.application.requests] == ["/fallback"]
        assert (await box.client.get("/sandbox/posts")).json()[0]["error"].startswith("unreachable")


async def test_v1_has_no_retries() -> None:
    async with sandbox() as box:
        box.application.answers = {"/v1": [500], "/fallback": [500]}
        message_id = await send_v1(box, fallbackUrl=f"{box.application.url}/fallback")
        assert len(box.application.requests) == 2
        (expected,) = await box.expected(message_id)
        assert (expected["status"], expected["certain"]) == (None, True)


async def test_expected_status_is_uncertain_after_a_timeout() -> None:
    async with sandbox() as box:
        box.application.answers["/v1"] = [asyncio.Event()]
        message_id = await send_v1(box, callbackTimeout=50)
        (expected,) = await box.expected(message_id)
        assert (expected["status"], expected["certain"]) == (None, False)


async def test_v1_without_callback_url_sends_no_callback() -> None:
    async with sandbox() as box:
        await box.send(V1, v1_message(receiptRequested="all"), 201)
        await box.wait_until_idle()
        assert box.application.requests == []


# --- v2


async def test_v2_callback_is_a_post_of_an_array() -> None:
    async with sandbox() as box:
        message_id = await send_v2(box, tag="mine")
        (request,) = box.application.requests
        assert (request.method, request.path) == ("POST", "/v2")
        assert request.headers["content-type"] == "application/json; charset=utf-8"
        assert request.headers["user-agent"] == "BandwidthAPI/v2"
        (event,) = request.json
        assert (event["type"], event["to"]) == ("message-delivered", "+19195551213")
        assert (event["message"]["id"], event["message"]["tag"]) == (message_id, "mine")
        assert event["message"]["text"] == ""


async def test_v2_credentials_are_sent_after_each_challenge() -> None:
    async with sandbox(callback_credentials="user:pass") as box:
        box.application.password = "user:pass"
        await send_v2(box, media=["http://x.y/z"])
        assert [request.credentials for request in box.application.requests] == [None, "user:pass"] * 2
        without, with_pair, *_ = box.application.requests
        assert without.body == with_pair.body
        posts = (await box.client.get("/sandbox/posts")).json()
        assert [(post["withCredentials"], post["status"]) for post in posts[:2]] == [(False, 401), (True, 200)]


async def test_v2_credentials_are_not_sent_without_a_challenge() -> None:
    async with sandbox(callback_credentials="user:pass") as box:
        await send_v2(box)
        assert [request.credentials for request in box.application.requests] == [None]


async def test_v2_callback_is_lost_after_401_without_challenge() -> None:
    async with sandbox(callback_credentials="user:pass") as box:
        box.application.answers["/v2"] = [""]
        message_id = await send_v2(box)
        assert len(box.application.requests) == 1
        assert [expected["status"] for expected in await box.expected(message_id)] == [None]


async def test_v2_ignores_challenges_other_than_basic() -> None:
    async with sandbox(callback_credentials="user:pass") as box:
        box.application.answers["/v2"] = ['Bearer realm="x"']
        await send_v2(box)
        assert len(box.application.requests) == 1


async def test_v2_retries_after_wrong_credentials() -> None:
    async with sandbox(callback_credentials="user:wrong", speed=10_000) as box:
        box.application.answers["/v2"] = ['Basic realm="x"'] * 4
        message_id = await send_v2(box)
        assert [request.credentials for request in box.application.requests] == [
            None,
            "user:wrong",
            None,
            "user:wrong",
            None,
        ]
        assert [expected["status"] for expected in await box.expected(message_id)] == ["delivered"]


@pytest.mark.parametrize("answer", [500, 503, 404, 301, 429])
async def test_v2_retries_until_2xx(answer: int) -> None:
    async with sandbox(speed=10_000) as box:
        box.application.answers["/v2"] = [answer, answer, 204]
        message_id = await send_v2(box)
        first, *others = box.application.requests
        assert len(others) == 2
        assert {request.body for request in others} == {first.body}
        posts = (await box.client.get("/sandbox/posts")).json()
        assert [(post["attempt"], post["status"]) for post in posts] == [(1, answer), (2, answer), (3, 204)]
        assert [expected["status"] for expected in await box.expected(message_id)] == ["delivered"]


async def test_v2_retries_after_a_timeout() -> None:
    async with sandbox(speed=10_000, callback_timeout=1) as box:
        box.application.answers["/v2"] = [asyncio.Event()]
        message_id = await send_v2(box)
        assert len(box.application.requests) == 2
        (expected,) = await box.expected(message_id)
        assert (expected["status"], expected["certain"]) == ("delivered", True)


async def test_v2_retries_end_after_24_hours() -> None:
    async with sandbox(speed=1) as box:
        box.application.answers["/v2"] = [500] * 1000
        message_id = (await box.send(V2, v2_message(), 202)).json()["id"]
        while due := (await box.client.get("/sandbox/idle")).json()["nextTime"]:
            await box.client.post("/sandbox/clock", json={"to": due})
            await until_none_in_flight(box)
        hourly = (24 * 3600 - sum(RETRY_DELAYS)) // RETRY_DELAYS[-1]
        assert len(box.application.requests) == 1 + len(RETRY_DELAYS) + hourly
        assert [expected["status"] for expected in await box.expected(message_id)] == [None]


async def test_v2_retry_delays_follow_the_schedule() -> None:
    async with sandbox(speed=1) as box:
        box.application.answers["/v2"] = [500] * 3
        await box.send(V2, v2_message(), 202)
        await box.client.post("/sandbox/clock", json={"advance": 10})
        for pause in RETRY_DELAYS[:3]:
            await until_none_in_flight(box)
            before = len(box.application.requests)
            await box.client.post("/sandbox/clock", json={"advance": pause - 5})
            await until_none_in_flight(box)
            assert len(box.application.requests) == before
            await box.client.post("/sandbox/clock", json={"advance": 5})
            await until_none_in_flight(box)
            assert len(box.application.requests) == before + 1
        assert (await box.client.get("/sandbox/idle")).json()["idle"] is True


async def until_none_in_flight(box: Sandbox) -> None:
    """Waits until no callback is in flight."""
    async with asyncio.timeout(45):
        while True:
            await asyncio.sleep(0.02)
            if not box.state.callback_sender.queue_state().in_flight:
                return


async def test_group_has_an_event_for_each_recipient() -> None:
    async with sandbox() as box:
        to = ["+19195551213", "+19195551214", "+19195551215"]
        message_id = await send_v2(box, to=to)
        events = box.application.events()
        delivered = [event["to"] for event in events if event["type"] == "message-delivered"]
        assert sorted(delivered) == to
        assert {event["message"]["id"] for event in events} == {message_id}
        assert all(event["message"]["to"] == to for event in events)


async def test_group_with_invalid_number_is_delivered_to_all_and_failed_for_one() -> None:
    async with sandbox() as box:
        invalid = code_number(Api.V2, 4720)
        message_id = await send_v2(box, to=["+19195551213", invalid])
        outcomes = [(event["type"], event["to"], event.get("errorCode")) for event in box.application.events()]
        assert outcomes[0] == ("message-failed", invalid, 4720)
        assert ("message-delivered", invalid, None) in outcomes
        assert ("message-delivered", "+19195551213", None) in outcomes
        by_recipient = {expected["recipient"]: expected for expected in await box.expected(message_id)}
        assert (by_recipient[invalid]["status"], by_recipient[invalid]["contradicted"]) == ("failed", True)
        assert (by_recipient["+19195551213"]["status"], by_recipient["+19195551213"]["contradicted"]) == (
            "delivered",
            False,
        )


async def test_mms_is_sending_then_delivered() -> None:
    async with sandbox() as box:
        await send_v2(box, media=["http://x.y/z"])
        assert [event["type"] for event in box.application.events()] == ["message-sending", "message-delivered"]


async def test_callback_types_limits_the_callbacks() -> None:
    async with sandbox(callback_types=["message-failed"]) as box:
        message_id = await send_v2(box, to=["+19195551213", code_number(Api.V2, 4432)], media=["http://x.y/z"])
        assert [event["type"] for event in box.application.events()] == ["message-failed"]
        assert [expected["status"] for expected in await box.expected(message_id)] == ["unknown", "failed"]


async def test_batch_is_one_callback_with_several_events() -> None:
    async with sandbox() as box:
        await send_v2(box, to=[fault_number(Fault.BATCH), "+19195551213"])
        assert max(len(request.json) for request in box.application.requests) > 1


async def test_duplicates_are_identical() -> None:
    async with sandbox() as box:
        await send_v2(box, to=fault_number(Fault.DUPLICATE))
        assert len(box.application.requests) > 1
        assert len({request.body for request in box.application.requests}) == 1


async def test_remote_callbacks_must_be_allowed() -> None:
    async with sandbox(outbound_url="http://callbacks.invalid/v2") as box:
        message_id = await send_v2(box)
        (post,) = (await box.client.get("/sandbox/posts")).json()
        assert "remote_callbacks" in post["error"]
        assert [expected["certain"] for expected in await box.expected(message_id)] == [True]
    async with sandbox(
        outbound_url="http://callbacks.invalid/v2", remote_callbacks=True, speed=1e6, callback_timeout=60
    ) as box:
        await send_v2(box)
        posts = (await box.client.get("/sandbox/posts")).json()
        assert posts[0]["error"].startswith("unreachable")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3"])
async def test_loopback_names_are_not_remote(host: str) -> None:
    async with sandbox(outbound_url=lambda url: f"{url.replace('127.0.0.1', host)}/v2", speed=1e6) as box:
        await send_v2(box)
        posts = (await box.client.get("/sandbox/posts")).json()
        assert not any("remote" in (post["error"] or "") for post in posts)


async def test_slow_callback_does_not_delay_other_messages() -> None:
    async with sandbox(callback_timeout=60) as box:
        box.application.answers["/v2"] = [asyncio.Event()]
        await box.send(V2, v2_message(), 202)
        async with asyncio.timeout(45):
            while not box.application.requests:
                await asyncio.sleep(0.01)
            second = (await box.send(V2, v2_message(), 202)).json()["id"]
            while [expected["status"] for expected in await box.expected(second)] != ["delivered"]:
                await asyncio.sleep(0.01)
        assert not box.state.callback_sender.queue_state().is_idle


async def test_connections_limits_callbacks_in_flight() -> None:
    async with sandbox(connections=1, callback_timeout=60) as box:
        box.application.answers["/v2"] = [answered := asyncio.Event()]
        for _ in range(3):
            await box.send(V2, v2_message(), 202)
        async with asyncio.timeout(45):
            while box.state.callback_sender.queue_state().in_flight < 3 or not box.application.requests:
                await asyncio.sleep(0.01)
        assert len(box.application.requests) == 1
        answered.set()
        await box.wait_until_idle()
        assert len(box.application.requests) == 3


async def test_invalid_host_does_not_stop_other_callbacks() -> None:
    async with sandbox() as box:
        await send_v1(box, callbackUrl=f"http://{'a' * 70}.localhost:1/v1")
        (post,) = (await box.client.get("/sandbox/posts")).json()
        assert post["error"].startswith(("unexpected", "unreachable"))
        await send_v1(box)
        assert len(box.application.requests) == 1


async def test_first_attempts_of_a_message_are_in_order_at_any_speed() -> None:
    async with sandbox(speed=1e6) as box:
        for _ in range(30):
            await box.send(V2, v2_message(media=["http://x.y/z"]), 202)
        await box.wait_until_idle()
        by_message: dict[str, list[str]] = {}
        for event in box.application.events():
            by_message.setdefault(event["message"]["id"], []).append(event["type"])
        assert set(map(tuple, by_message.values())) == {("message-sending", "message-delivered")}
        assert len(by_message) == 30


async def test_evicted_message_sends_no_callbacks() -> None:
    async with sandbox(speed=1, max_messages=1) as box:
        for _ in range(20):
            await box.send(V2, v2_message(), 202)
        assert box.state.callback_sender.queue_state().waiting == 1
        await box.client.post("/sandbox/clock", json={"advance": 60})
        await box.wait_until_idle()
        assert len(box.application.requests) == 1


async def test_evicted_message_sends_no_callback_from_the_queue() -> None:
    async with sandbox(connections=1, max_messages=1, callback_timeout=60) as box:
        box.application.answers["/v2"] = [answered := asyncio.Event()]
        for tag in ("first", "second", "third"):
            await box.send(V2, v2_message(tag=tag), 202)
            async with asyncio.timeout(45):
                while box.state.callback_sender.queue_state().waiting or not box.application.requests:
                    await asyncio.sleep(0.01)
        answered.set()
        await box.wait_until_idle()
        assert [event["message"]["tag"] for event in box.application.events()] == ["first", "third"]


# --- the receiver


async def test_receiver_parses_every_callback_of_the_sandbox() -> None:
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
        await box.wait_until_idle(60)
        read_types = set()
        for number, request in enumerate(box.application.requests):
            for element in parse(request.callback(number)):
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
