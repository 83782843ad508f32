"""The control API of the sandbox."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from receiver.sandbox.app import application
from receiver.sandbox.scenario_writer import fault_number, magic_numbers
from receiver.sandbox.settings import Fault, Rates, SandboxSettings
from tests.sandboxes import V1, V2, sandbox, v1_message, v2_message
from tests.web import serving

pytestmark = pytest.mark.anyio

INBOUND = {"from": "+19195551213", "to": "+19195551212", "text": "hi"}


async def test_inbound_message_is_sent_to_the_outbound_url() -> None:
    async with sandbox() as box:
        (created,) = (await box.send("/sandbox/inbound", INBOUND, 202)).json()["messages"]
        await box.wait_until_idle()
        ((event,),) = [request.json for request in box.application.on("/v2")]
        assert (event["type"], event["to"], event["message"]["text"]) == ("message-received", "+19195551212", "hi")
        assert (event["message"]["id"], created["to"]) == (created["id"], "+19195551212")
        assert [expected["status"] for expected in await box.expected(created["id"])] == ["received"]


async def test_inbound_message_is_sent_to_inbound_url_if_set() -> None:
    async with sandbox(inbound_url=lambda url: f"{url}/inbound") as box:
        await box.send("/sandbox/inbound", INBOUND, 202)
        await box.send(V2, v2_message(), 202)
        await box.wait_until_idle()
        assert sorted(request.path for request in box.application.requests) == ["/inbound", "/v2"]


async def test_inbound_group_has_a_message_for_each_own_number() -> None:
    async with sandbox() as box:
        own_numbers, others = ["+19195551212", "+19195551219"], [f"+1919555{number:04}" for number in range(12)]
        created = (await box.send("/sandbox/inbound", {**INBOUND, "to": own_numbers, "others": others}, 202)).json()
        await box.wait_until_idle()
        events = box.application.events()
        assert {(event["message"]["id"], event["to"]) for event in events} == {
            (message["id"], message["to"]) for message in created["messages"]
        }
        assert len({event["message"]["id"] for event in events}) == 2
        assert all(event["message"]["to"] == [*own_numbers, *others] for event in events)
        assert len(await box.expected(created["messages"][0]["id"])) == 14


@pytest.mark.parametrize("method", ["get", "post"])
async def test_v1_inbound_method_is_used(method: str) -> None:
    async with sandbox(v1_inbound_method=method) as box:
        (created,) = (await box.send("/sandbox/inbound", {**INBOUND, "api": "v1"}, 202)).json()["messages"]
        await box.wait_until_idle()
        (request,) = box.application.on("/v1")
        assert request.method == method.upper()
        shown = (await box.client.get(f"/v1/users/sandbox/messages/{created['id']}")).json()
        assert (shown["direction"], shown["state"], shown["text"]) == ("in", "received", "hi")


async def test_v1_inbound_fallback_url_is_used_after_a_timeout() -> None:
    async with sandbox(v1_inbound_fallback_url=lambda url: f"{url}/fallback", v1_inbound_timeout=2500) as box:
        box.application.answers["/v1"] = [asyncio.Event()]
        await box.send("/sandbox/inbound", {**INBOUND, "api": "v1"}, 202)
        await box.wait_until_idle()
        assert [request.path for request in box.application.requests] == ["/v1", "/fallback"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"to": []},
        {"from": None},
        {"colour": "red"},
        {"event": "message-delivered"},
        {"api": "v1", "others": ["+1"]},
        {"api": "v1", "event": "suggestion-response"},
        {"others": ["+19195551212"]},
    ],
    ids=str,
)
async def test_invalid_inbound_message_is_rejected(wrong: dict[str, Any]) -> None:
    async with sandbox() as box:
        assert (await box.send("/sandbox/inbound", {**INBOUND, **wrong}, 400)).json()["error"]


async def test_numbers_lists_the_magic_numbers() -> None:
    async with sandbox() as box:
        listed = (await box.client.get("/sandbox/numbers")).json()
        assert len(listed) == len(magic_numbers())
        by_number = {each["number"]: each for each in listed}
        assert by_number["+15552024720"]["code"] == 4720
        assert by_number["+15552010720"]["api"] == "v1"
        assert by_number[fault_number(Fault.LATE)]["fault"] == "late"
        assert by_number[fault_number(Fault.LATE)]["api"] is None


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:8090", "localhost", "[::1]:8090", "sandbox:80", "192.0.2.7", "a.localhost.", "host.docker.internal"],
)
async def test_host_header_that_is_no_strangers_name_is_served(host: str) -> None:
    async with sandbox() as box:
        assert (await box.client.get("/sandbox/posts", headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8090", "127.0.0.1.evil.example", "user@evil.example", "[::"]
)
async def test_host_header_with_a_strangers_name_is_421(host: str) -> None:
    """DNS rebinding: a web page from that name would read the messages."""
    async with sandbox() as box:
        for path in ("/sandbox/posts", V1, V2, "/"):
            refused = await box.client.get(path, headers={"host": host})
            assert refused.status_code == 421
            assert "public_url" in refused.text or path == V2
    async with sandbox(public_url="http://evil.example/") as box:
        assert (await box.client.get("/sandbox/posts", headers={"host": "evil.example"})).status_code == 200


@pytest.mark.parametrize("path", ["/sandbox/posts", "/sandbox/nothing", V1, f"{V1}/nobody", f"{V2}?limit=1", "/v2/x"])
async def test_json_ends_with_the_end_of_a_line(path: str) -> None:
    async with sandbox() as box:
        answer = await box.client.get(path)
        assert answer.content.endswith(b"\n")
        assert answer.json() is not None


async def test_root_says_what_the_server_is() -> None:
    async with sandbox() as box:
        shown = await box.client.get("/", auth=None)
        assert shown.headers["content-type"].startswith("text/plain")
        assert shown.text.count("\n") == 1
        for path in ("/api/v2/users/u-1/messages", "/v1/users/u-1/messages", "/sandbox/posts", "/sandbox/numbers"):
            assert path in shown.text


async def test_clock_moves_only_forward() -> None:
    async with sandbox() as box:
        now = datetime.fromisoformat((await box.client.get("/sandbox/clock")).json()["now"])
        assert abs(now - datetime.now(UTC)) < timedelta(minutes=1)
        to = now + timedelta(days=2)
        moved = (await box.send("/sandbox/clock", {"to": to.isoformat()}, 200)).json()["now"]
        assert timedelta() <= datetime.fromisoformat(moved) - to < timedelta(minutes=1)
        for wrong in (
            {"to": "2020-01-01T00:00:00Z"},
            {"advance": -1},
            {},
            {"advance": 1, "to": moved},
            {"advance": 1e12},
        ):
            await box.send("/sandbox/clock", wrong, 400)
        await box.send("/sandbox/clock", {"to": "9999-12-31T00:00:00Z"}, 400)


async def test_moving_the_clock_sends_due_callbacks_at_once() -> None:
    async with sandbox(speed=1) as box:
        sent = (await box.send(V2, v2_message(to=fault_number(Fault.LATE)), 202)).json()["id"]
        idle = (await box.client.get("/sandbox/idle")).json()
        assert (idle["idle"], idle["waiting"]) == (False, 1)
        assert idle["nextTime"] > datetime.now(UTC).isoformat()
        await box.send("/sandbox/clock", {"advance": 21 * 3600}, 200)
        assert (await box.client.get("/sandbox/idle?wait=10")).json()["idle"] is True
        assert [expected["status"] for expected in await box.expected(sent)] == ["delivered"]


async def test_idle_wait_has_a_limit() -> None:
    async with sandbox(speed=1) as box:
        await box.send(V2, v2_message(to=fault_number(Fault.LATE)), 202)
        assert (await box.client.get("/sandbox/idle?wait=0.1")).json()["idle"] is False
        for wrong in ("-1", "601", "long", "nan"):
            assert (await box.client.get(f"/sandbox/idle?wait={wrong}")).status_code == 400


async def test_rates_change_only_where_named() -> None:
    async with sandbox(rates=Rates(late=0.5)) as box:
        assert (await box.client.get("/sandbox/rates")).json()["late"] == 0.5
        changed = (await box.send("/sandbox/rates", {"unknownType": 0.25, "missing": 1}, 200)).json()
        assert (changed["late"], changed["unknownType"], changed["missing"]) == (0.5, 0.25, 1)
        for wrong in ({"late": 2}, {"lates": 0}, {"failed": 1, "unconfirmed": 1}, [1]):
            await box.send("/sandbox/rates", wrong, 400)
        await box.send(V2, v2_message(), 202)
        await box.wait_until_idle()
        assert not [event for event in box.application.events() if event["type"] == "message-delivered"]


async def test_same_seed_gives_the_same_faults() -> None:
    rates = Rates(failed=0.3, duplicate=0.5, reorder=0.3, unknown_type=0.3, batch=0.3, missing=0.2)

    async def events(seed: int) -> list[list[tuple[str, str, int | None]]]:
        async with sandbox(rates=rates, seed=seed) as box:
            for _ in range(20):
                await box.send(V2, v2_message(to=["+19195551213", "+19195551214"]), 202)
                await box.wait_until_idle()
            return [
                [(event["type"], event["to"], event.get("errorCode")) for event in request.json]
                for request in box.application.requests
            ]

    first = await events(7)
    assert first == await events(7)
    assert first != await events(8)


async def test_reset_restores_rates_clock_and_seed() -> None:
    async with sandbox(speed=1, rates=Rates(failed=0.5), seed=3) as box:

        async def codes() -> list[int]:
            for _ in range(10):
                await box.send(V2, v2_message(), 202)
            await box.send("/sandbox/clock", {"advance": 60}, 200)
            await box.wait_until_idle()
            return [expected["code"] for expected in (await box.client.get("/sandbox/expected")).json()]

        first = await codes()
        await box.send(V2, v2_message(), 202)
        await box.send("/sandbox/rates", {"late": 1}, 200)
        await box.send("/sandbox/reset", {}, 204)
        for path in ("expected", "posts"):
            assert (await box.client.get(f"/sandbox/{path}")).json() == []
        assert (await box.client.get("/sandbox/idle")).json()["idle"] is True
        assert (await box.client.get("/sandbox/rates")).json()["late"] == 0
        now = datetime.fromisoformat((await box.client.get("/sandbox/clock")).json()["now"])
        assert abs(now - datetime.now(UTC)) < timedelta(minutes=1)
        assert await codes() == first
        await box.send("/sandbox/reset", {"seed": 4}, 204)
        assert await codes() != first


async def test_reset_cancels_callbacks_in_flight() -> None:
    async with sandbox() as box:
        box.application.answers["/v2"] = [asyncio.Event()]
        await box.send(V2, v2_message(), 202)
        while not box.application.requests:
            await box.client.get("/sandbox/idle?wait=0.02")
        assert (await box.client.post("/sandbox/reset")).status_code == 204
        assert (await box.client.get("/sandbox/idle")).json()["idle"] is True
        sent = (await box.send(V2, v2_message(), 202)).json()["id"]
        await box.wait_until_idle()
        assert [expected["status"] for expected in await box.expected(sent)] == ["delivered"]


async def test_posts_lists_callbacks_with_their_bodies() -> None:
    async with sandbox(max_posts=3) as box:
        for number in range(4):
            await box.send(V2, v2_message(tag=str(number)), 202)
            await box.wait_until_idle()
        posts = (await box.client.get("/sandbox/posts")).json()
        assert [post["body"][0]["message"]["tag"] for post in posts] == ["1", "2", "3"]
        assert posts[-1]["url"] == f"{box.application.url}/v2"
        (last,) = (await box.client.get("/sandbox/posts?limit=1")).json()
        assert last == posts[-1]
        assert (await box.client.get("/sandbox/posts?limit=x")).status_code == 400


async def test_other_content_types_are_rejected_against_cross_origin_requests() -> None:
    async with sandbox() as box:
        for path in ("inbound", "clock", "rates", "reset"):
            answer = await box.client.post(
                f"/sandbox/{path}", content=b'{"advance": 5}', headers={"content-type": "text/plain"}
            )
            assert answer.status_code == 415
        assert (await box.client.get("/sandbox/elsewhere")).json() == {"error": "Not Found"}
        assert (await box.client.get("/sandbox/reset")).status_code == 405


async def test_public_url_starts_message_urls() -> None:
    async with sandbox(public_url="https://sandbox.example.com") as box:
        (result,) = (await box.send(V1, [v1_message()], 202)).json()
        assert result["location"].startswith("https://sandbox.example.com/v1/users/u-1/messages/m-")


async def test_sandbox_can_be_restarted() -> None:
    async with sandbox() as other:
        other.application.answers["/v2"] = [asyncio.Event()]
        app = application(SandboxSettings(speed=1000, outbound_url=f"{other.application.url}/v2", credentials=()))
        for count in (1, 2):
            async with serving(app) as url:
                await other.client.post(f"{url}{V2}", json=v2_message())
                async with asyncio.timeout(45):
                    while len(other.application.requests) < count:
                        await asyncio.sleep(0.01)
        assert app.state.callback_sender.queue_state().is_idle


@pytest.mark.parametrize(
    "wrong",
    [
        {"speed": 0},
        {"credentials": ["token"]},
        {"outbound_url": "example.com"},
        {"callback_types": ["message-forgotten"]},
        {"colour": "red"},
        {"v1_inbound_timeout": 10_001},
    ],
    ids=str,
)
def test_invalid_settings_are_rejected(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SandboxSettings(**wrong)
