"""The published Bandwidth clients, old and new, pointed at the sandbox and then at receiver by their base URL."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bandwidth
import pytest

from tests.sandboxes import API_TOKEN, SECRET, TOKEN, USER, RoundTrip, round_trip

pytestmark = pytest.mark.anyio

DRIVERS = Path(__file__).parent / "clients"
INSTALL_SECONDS = 180
FROM, TO, OTHER = "+19195551212", "+19195551213", "+19195551214"
V1_FAILS, V1_CODE = "+15552010720", 720
V2_FAILS, V2_CODE = "+15552024720", 4720
PICTURE = "https://example.com/cat.png"


@dataclass(frozen=True, slots=True)
class OldClient:
    """A retired client of v1, installed outside of this environment, and the program that drives it."""

    name: str
    program: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)

    async def run(self, step: str, url: str, token: str, secret: str, **more: Any) -> dict[str, Any]:
        order = {"step": step, "url": url, "user": USER, "token": token, "secret": secret, "from": FROM, **more}
        process = await asyncio.create_subprocess_exec(
            *self.program,
            json.dumps(order),
            env={**os.environ, **self.environment, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(180):
                output, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, errors.decode()
        result: dict[str, Any] = json.loads(output)
        return result


def python_client(folder: Path, version: str, driver: str) -> OldClient:
    install([sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), f"bandwidth-sdk=={version}"])
    program = (sys.executable, str(DRIVERS / driver))
    return OldClient(f"bandwidth-sdk {version}", program, {"PYTHONPATH": str(folder)})


def bandwidth_sdk_1(folder: Path) -> OldClient:
    return python_client(folder, "1.10.0", "bandwidth_sdk_1.py")


def bandwidth_sdk_3(folder: Path) -> OldClient:
    return python_client(folder, "3.1.0", "bandwidth_sdk_3.py")


def node_bandwidth(folder: Path) -> OldClient:
    node, npm = shutil.which("node"), shutil.which("npm")
    if not (node and npm):
        pytest.skip("node-bandwidth needs node and npm, which are not here")
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    install([npm, "install", "--prefix", str(folder), *options, "node-bandwidth@2.6.5"])
    program = (node, "--no-deprecation", str(DRIVERS / "node_bandwidth.js"))
    return OldClient("node-bandwidth 2.6.5", program, {"NODE_PATH": str(folder / "node_modules")})


def install(command: Sequence[str]) -> None:
    """Runs a package manager; a client that cannot be had here is a skip, and says why."""
    name = command[-1]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=INSTALL_SECONDS, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{name} could not be installed within {INSTALL_SECONDS} s")
    except subprocess.CalledProcessError as error:
        why = error.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        pytest.skip(f"{name} could not be installed: {why}")


@pytest.fixture(
    scope="session", params=[bandwidth_sdk_1, bandwidth_sdk_3, node_bandwidth], ids=lambda make: make.__name__
)
def old_client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OldClient:
    make: Callable[[Path], OldClient] = request.param
    return make(tmp_path_factory.mktemp("client"))


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[RoundTrip]:
    async with round_trip(tmp_path) as running:
        yield running


# installs three old clients
@pytest.mark.slow
async def test_catapult_sdk_sends_to_the_sandbox_and_reads_from_both(there: RoundTrip, old_client: OldClient) -> None:
    sent = await old_client.run("send", there.sandbox_url, TOKEN, SECRET, **orders(there))
    await there.settle()
    assert sent["errors"] == ["The 'message' resource property 'to' must contain at least one non-whitespace character"]
    ids = [sent["single"], *sent["several"], sent["picture"]]
    groups = [sent["group"]] if "group" in sent else []
    wanted = [
        shown(ids[0], TO, "delivered", 0),
        shown(ids[1], TO, "delivered", 0),
        shown(ids[2], V1_FAILS, "not-delivered", V1_CODE),
        shown(ids[3], TO, None, None),
    ]

    from_sandbox = await old_client.run("read", there.sandbox_url, TOKEN, SECRET, ids=ids)
    assert with_numbers(from_sandbox["messages"]) == wanted
    assert from_sandbox["listed"] == ids

    # the same client, the same questions: any user name, and the API token as the secret
    from_receiver = await old_client.run("read", there.server.url, "anyone", API_TOKEN, ids=ids)
    assert from_receiver["messages"] == wanted
    assert sorted(from_receiver["listed"]) == sorted([*ids, *groups])
    await assert_received(there, old_client, sent)


def orders(there: RoundTrip) -> dict[str, str]:
    return {
        "delivered": TO,
        "failed": V1_FAILS,
        "other": OTHER,
        "media": PICTURE,
        "tag": "order-17",
        "callbackUrl": there.v1_callback_url(),
        "brokenUrl": there.v1_callback_url("/elsewhere"),
        "fallbackUrl": there.v1_callback_url("/callbacks/bandwidth/v1/fallback"),
    }


def shown(message_id: str, to: str, delivery_state: str | None, code: int | None) -> dict[str, Any]:
    return {
        "id": message_id,
        "from": FROM,
        "to": to,
        "state": "sent",
        "deliveryState": delivery_state,
        "deliveryCode": code,
    }


def with_numbers(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with the code as a number: the API shows it as a text."""
    return [{**one, "deliveryCode": one["deliveryCode"] and int(one["deliveryCode"])} for one in messages]


async def assert_received(there: RoundTrip, client: OldClient, sent: dict[str, Any]) -> None:
    """Receiver knows what no old client shows: the tag, the route, the members of a group."""
    answer = await there.receiver.get("/api/messages", params={"tag": "order-17"})
    assert {one["id"] for one in answer.json()} == {
        sent["single"],
        *sent["several"],
        sent["picture"],
        *([sent["group"]] if "group" in sent else []),
    }
    if "3.1" in client.name:
        events = (await there.receiver.get(f"/api/messages/{sent['several'][0]}/events")).json()
        assert {event["route"] for event in events} == {"fallback"}
    if "group" in sent:
        group = (await there.receiver.get(f"/api/messages/{sent['group']}")).json()
        assert {one["to"]: one["status"] for one in group["recipients"]} == {TO: "delivered", OTHER: "delivered"}


@pytest.mark.slow
@pytest.mark.parametrize("old_client", [node_bandwidth], indirect=True)
async def test_catapult_sdk_is_rate_limited_by_the_sandbox(tmp_path: Path, old_client: OldClient) -> None:
    async with round_trip(tmp_path, messages_per_second=1 / 60) as there:
        result = await old_client.run("hurry", there.sandbox_url, TOKEN, SECRET, delivered=TO)
    assert result["refusedFor"] is True
    assert result["limitReset"].isdecimal()


class TodaysClient:
    """`bandwidth-sdk` of today, which is made for v2; each call in a thread of its own."""

    def __init__(self, url: str, password: str = SECRET) -> None:
        configuration = bandwidth.Configuration(
            host=f"{url}/api/v2", ignore_operation_servers=True, username=TOKEN, password=password
        )
        self._client = bandwidth.ApiClient(configuration)
        self._messages = bandwidth.MessagesApi(self._client)

    async def send(self, *to: str, **more: Any) -> bandwidth.Message:
        request = bandwidth.MessageRequest(
            **{"application_id": "app-1", "to": list(to), "var_from": FROM, "text": "hello", "tag": "order-17", **more}
        )
        return await asyncio.to_thread(self._messages.create_message, USER, request)

    async def list(self, **asked: Any) -> bandwidth.MessagesList:
        return await asyncio.to_thread(self._messages.list_messages, USER, **asked)

    def close(self) -> None:
        self._client.rest_client.pool_manager.clear()


@pytest.fixture
def today(there: RoundTrip) -> Any:
    client = TodaysClient(there.sandbox_url)
    yield client
    client.close()


async def test_v2_sdk_sends_and_receiver_has_the_status(there: RoundTrip, today: TodaysClient) -> None:
    single = await today.send(TO)
    failed = await today.send(V2_FAILS, text="é" * 71 + "ё")
    group = await today.send(TO, OTHER, V2_FAILS)
    picture = await today.send(TO, media=[PICTURE], priority="high")
    await there.settle()

    assert single.to == [TO]
    assert (single.var_from, single.owner, single.text, single.tag) == (FROM, FROM, "hello", "order-17")
    assert (single.direction, single.segment_count, failed.segment_count) == ("out", 1, 2)
    assert picture.media == [PICTURE]
    assert picture.priority == "high"
    assert await statuses(there, single) == {TO: ("delivered", None)}
    assert await statuses(there, failed) == {V2_FAILS: ("failed", V2_CODE)}
    assert await statuses(there, picture) == {TO: ("delivered", None)}
    # In a group every number is reported delivered, the invalid number too: failed wins.
    assert await statuses(there, group) == {
        TO: ("delivered", None),
        OTHER: ("delivered", None),
        V2_FAILS: ("failed", V2_CODE),
    }


async def statuses(there: RoundTrip, message: bandwidth.Message) -> dict[str, tuple[str, int | None]]:
    answer = await there.receiver.get(f"/api/messages/{message.id}")
    assert answer.status_code == 200
    return {one["to"]: (one["status"], one["deliveryCode"]) for one in answer.json()["recipients"]}


@pytest.mark.slow
async def test_v2_sdk_lists_pages(there: RoundTrip, today: TodaysClient) -> None:
    sent = [(await today.send(to)).id for to in (TO, OTHER, V2_FAILS)]
    await there.settle()
    first = await today.list(source_tn=FROM, limit=2, sort="receiveTime:asc")
    second = await today.list(
        source_tn=FROM, limit=2, sort="receiveTime:asc", page_token=first.page_info.next_page_token
    )
    assert first.total_count == 3
    assert [one.message_id for page in (first, second) for one in page.messages] == sent
    [failed] = (await today.list(message_id=sent[2])).messages
    assert (failed.message_status, failed.error_code, failed.destination_tn) == ("FAILED", V2_CODE, V2_FAILS)


@pytest.mark.slow
async def test_v2_sdk_parses_errors(there: RoundTrip, today: TodaysClient) -> None:
    with pytest.raises(bandwidth.exceptions.BadRequestException) as refused:
        await today.send("919")
    assert json.loads(refused.value.body)["type"] == "request-validation"
    stranger = TodaysClient(there.sandbox_url, password="wrong")
    with pytest.raises(bandwidth.exceptions.UnauthorizedException):
        await stranger.send(TO)
    stranger.close()


@pytest.mark.slow
async def test_v2_sdk_parses_every_callback(there: RoundTrip, today: TodaysClient) -> None:
    group = await today.send(TO, V2_FAILS, media=[PICTURE])
    inbound = {"from": OTHER, "to": [FROM], "text": "hi", "media": [PICTURE]}
    [received] = (await there.sandbox.post("/sandbox/inbound", json=inbound)).json()["messages"]
    await there.settle()

    statuses = [bandwidth.StatusCallback.from_dict(event) for event in await events(there, group.id)]
    assert {one.message.id for one in statuses} == {group.id}
    assert {(one.to, one.type.value, one.error_code) for one in statuses} == {
        (TO, "message-sending", None),
        (TO, "message-delivered", None),
        (V2_FAILS, "message-failed", V2_CODE),
        (V2_FAILS, "message-delivered", None),
    }
    [event] = [bandwidth.InboundCallback.from_dict(event) for event in await events(there, received["id"])]
    assert (event.type, event.to, event.message.var_from, event.message.text) == ("message-received", FROM, OTHER, "hi")


async def events(there: RoundTrip, message_id: str) -> list[dict[str, Any]]:
    """The elements of all callbacks of a message that were answered 200."""
    posts = (await there.sandbox.get("/sandbox/posts", params={"messageId": message_id})).json()
    return [event for post in posts if post["status"] == 200 for event in post["body"]]
