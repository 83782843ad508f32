"""The sandbox's own routes."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from receiver.sandbox.app import application
from receiver.sandbox.faults import Fault, Rates
from receiver.sandbox.numbers import magic_numbers, of
from receiver.sandbox.settings import SandboxSettings
from tests.sandboxes import V1, V2, sandbox, v1_message, v2_message
from tests.web import serving

pytestmark = pytest.mark.anyio

INBOUND = {"from": "+19195551213", "to": "+19195551212", "text": "hi"}


async def test_an_inbound_message_comes_to_the_v2_url() -> None:
    async with sandbox() as box:
        (told,) = (await box.send("/sandbox/inbound", INBOUND, 202)).json()["messages"]
        await box.settle()
        ((event,),) = [heard.json for heard in box.application.on("/v2")]
        assert (event["type"], event["to"], event["message"]["text"]) == ("message-received", "+19195551212", "hi")
        assert (event["message"]["id"], told["to"]) == (told["id"], "+19195551212")
        assert [truth["status"] for truth in await box.truth(told["id"])] == ["received"]


async def test_an_inbound_message_has_a_url_of_its_own_if_wished() -> None:
    async with sandbox(inbound_url=lambda url: f"{url}/inbound") as box:
        await box.send("/sandbox/inbound", INBOUND, 202)
        await box.send(V2, v2_message(), 202)
        await box.settle()
        assert sorted(heard.path for heard in box.application.heard) == ["/inbound", "/v2"]


async def test_each_of_our_numbers_in_a_group_gets_a_message_of_its_own() -> None:
    async with sandbox() as box:
        ours, others = ["+19195551212", "+19195551219"], [f"+1919555{number:04}" for number in range(12)]
        told = (await box.send("/sandbox/inbound", {**INBOUND, "to": ours, "others": others}, 202)).json()
        await box.settle()
        events = box.application.events()
        assert {(event["message"]["id"], event["to"]) for event in events} == {
            (each["id"], each["to"]) for each in told["messages"]
        }
        assert len({event["message"]["id"] for event in events}) == 2
        assert all(event["message"]["to"] == [*ours, *others] for event in events)
        assert len(await box.truth(told["messages"][0]["id"])) == 14


@pytest.mark.parametrize("method", ["get", "post"])
async def test_an_inbound_v1_message_is_told_by_the_method_of_the_application(method: str) -> None:
    async with sandbox(v1_inbound_method=method) as box:
        (told,) = (await box.send("/sandbox/inbound", {**INBOUND, "api": "v1"}, 202)).json()["messages"]
        await box.settle()
        (heard,) = box.application.on("/v1")
        assert heard.method == method.upper()
        shown = (await box.client.get(f"/v1/users/sandbox/messages/{told['id']}")).json()
        assert (shown["direction"], shown["state"], shown["text"]) == ("in", "received", "hi")


async def test_an_inbound_v1_message_falls_back() -> None:
    async with sandbox(v1_inbound_fallback_url=lambda url: f"{url}/fallback", v1_inbound_timeout=1000) as box:
        box.application.answers["/v1"] = [asyncio.Event()]
        await box.send("/sandbox/inbound", {**INBOUND, "api": "v1"}, 202)
        await box.settle()
        assert [heard.path for heard in box.application.heard] == ["/v1", "/fallback"]


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
async def test_an_impossible_inbound_message_is_refused(wrong: dict[str, Any]) -> None:
    async with sandbox() as box:
        assert (await box.send("/sandbox/inbound", {**INBOUND, **wrong}, 400)).json()["error"]


async def test_numbers_are_listed() -> None:
    async with sandbox() as box:
        listed = (await box.client.get("/sandbox/numbers")).json()
        assert len(listed) == len(magic_numbers())
        by_number = {each["number"]: each for each in listed}
        assert by_number["+15552024720"]["code"] == 4720
        assert by_number["+15552010720"]["api"] == "v1"
        assert by_number[of(Fault.LATE)]["misbehaviour"] == "late"
        assert by_number[of(Fault.LATE)]["api"] is None


async def test_the_clock_goes_forward_only() -> None:
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


async def test_what_falls_due_when_the_clock_is_moved_is_posted_at_once() -> None:
    async with sandbox(speed=1) as box:
        sent = (await box.send(V2, v2_message(to=of(Fault.LATE)), 202)).json()["id"]
        idle = (await box.client.get("/sandbox/idle")).json()
        assert (idle["idle"], idle["waiting"]) == (False, 1)
        assert idle["nextTime"] > datetime.now(UTC).isoformat()
        await box.send("/sandbox/clock", {"advance": 21 * 3600}, 200)
        assert (await box.client.get("/sandbox/idle?wait=10")).json()["idle"] is True
        assert [truth["status"] for truth in await box.truth(sent)] == ["delivered"]


async def test_idle_waits_only_so_long() -> None:
    async with sandbox(speed=1) as box:
        await box.send(V2, v2_message(to=of(Fault.LATE)), 202)
        assert (await box.client.get("/sandbox/idle?wait=0.1")).json()["idle"] is False
        for wrong in ("-1", "601", "long", "nan"):
            assert (await box.client.get(f"/sandbox/idle?wait={wrong}")).status_code == 400


async def test_rates_change_one_by_one() -> None:
    async with sandbox(rates=Rates(late=0.5)) as box:
        assert (await box.client.get("/sandbox/rates")).json()["late"] == 0.5
        changed = (await box.send("/sandbox/rates", {"unknownType": 0.25, "missing": 1}, 200)).json()
        assert (changed["late"], changed["unknownType"], changed["missing"]) == (0.5, 0.25, 1)
        for wrong in ({"late": 2}, {"lates": 0}, {"failed": 1, "unconfirmed": 1}, [1]):
            await box.send("/sandbox/rates", wrong, 400)
        await box.send(V2, v2_message(), 202)
        await box.settle()
        assert not [event for event in box.application.events() if event["type"] == "message-delivered"]


async def test_the_same_seed_misbehaves_the_same_way() -> None:
    rates = Rates(failed=0.3, duplicate=0.5, reorder=0.3, unknown_type=0.3, batch=0.3, missing=0.2)

    async def told(seed: int) -> list[list[tuple[str, str, int | None]]]:
        async with sandbox(rates=rates, seed=seed) as box:
            for _ in range(20):
                await box.send(V2, v2_message(to=["+19195551213", "+19195551214"]), 202)
                await box.settle()
            return [
                [(event["type"], event["to"], event.get("errorCode")) for event in heard.json]
                for heard in box.application.heard
            ]

    first = await told(7)
    assert first == await told(7)
    assert first != await told(8)


async def test_after_a_reset_everything_begins_again() -> None:
    async with sandbox(speed=1, rates=Rates(failed=0.5), seed=3) as box:

        async def codes() -> list[int]:
            for _ in range(10):
                await box.send(V2, v2_message(), 202)
            await box.send("/sandbox/clock", {"advance": 60}, 200)
            await box.settle()
            return [truth["code"] for truth in (await box.client.get("/sandbox/truth")).json()]

        first = await codes()
        await box.send(V2, v2_message(), 202)
        await box.send("/sandbox/rates", {"late": 1}, 200)
        await box.send("/sandbox/reset", {}, 204)
        for path in ("truth", "posts"):
            assert (await box.client.get(f"/sandbox/{path}")).json() == []
        assert (await box.client.get("/sandbox/idle")).json()["idle"] is True
        assert (await box.client.get("/sandbox/rates")).json()["late"] == 0
        now = datetime.fromisoformat((await box.client.get("/sandbox/clock")).json()["now"])
        assert abs(now - datetime.now(UTC)) < timedelta(minutes=1)
        assert await codes() == first
        await box.send("/sandbox/reset", {"seed": 4}, 204)
        assert await codes() != first


async def test_a_reset_ends_what_is_under_way() -> None:
    async with sandbox() as box:
        box.application.answers["/v2"] = [asyncio.Event()]
        await box.send(V2, v2_message(), 202)
        while not box.application.heard:
            await box.client.get("/sandbox/idle?wait=0.02")
        assert (await box.client.post("/sandbox/reset")).status_code == 204
        assert (await box.client.get("/sandbox/idle")).json()["idle"] is True
        sent = (await box.send(V2, v2_message(), 202)).json()["id"]
        await box.settle()
        assert [truth["status"] for truth in await box.truth(sent)] == ["delivered"]


async def test_posts_are_told_with_their_bodies() -> None:
    async with sandbox(max_posts=3) as box:
        for number in range(4):
            await box.send(V2, v2_message(tag=str(number)), 202)
            await box.settle()
        posts = (await box.client.get("/sandbox/posts")).json()
        assert [post["body"][0]["message"]["tag"] for post in posts] == ["1", "2", "3"]
        assert posts[-1]["url"] == f"{box.application.url}/v2"
        (last,) = (await box.client.get("/sandbox/posts?limit=1")).json()
        assert last == posts[-1]
        assert (await box.client.get("/sandbox/posts?limit=x")).status_code == 400


async def test_a_page_of_another_origin_can_change_nothing() -> None:
    async with sandbox() as box:
        for path in ("inbound", "clock", "rates", "reset"):
            answer = await box.client.post(
                f"/sandbox/{path}", content=b'{"advance": 5}', headers={"content-type": "text/plain"}
            )
            assert answer.status_code == 415
        assert (await box.client.get("/sandbox/elsewhere")).json() == {"error": "Not Found"}
        assert (await box.client.get("/sandbox/reset")).status_code == 405


async def test_a_public_url_is_what_addresses_begin_with() -> None:
    async with sandbox(public_url="https://sandbox.example.com") as box:
        (result,) = (await box.send(V1, [v1_message()], 202)).json()
        assert result["location"].startswith("https://sandbox.example.com/v1/users/u-1/messages/m-")


async def test_a_sandbox_can_be_started_again() -> None:
    async with sandbox() as other:
        other.application.answers["/v2"] = [asyncio.Event()]
        app = application(SandboxSettings(speed=1000, outbound_url=f"{other.application.url}/v2", credentials=()))
        for heard in (1, 2):
            async with serving(app) as url:
                await other.client.post(f"{url}{V2}", json=v2_message())
                async with asyncio.timeout(45):
                    while len(other.application.heard) < heard:
                        await asyncio.sleep(0.01)
        assert app.state.caller.state().idle


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
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SandboxSettings(**wrong)
