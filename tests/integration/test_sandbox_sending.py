"""Sending with both API versions, over HTTP."""

import re
import time
from typing import Any
from urllib.parse import quote

import httpx2
import pytest

from tests.processes import PATIENT
from tests.sandboxes import V1, V2, sandbox, v1_message, v2_message

pytestmark = pytest.mark.anyio


async def test_v1_message_is_created_and_can_be_fetched() -> None:
    async with sandbox() as box:
        answer = await box.send(V1, v1_message(), 201)
        assert answer.content == b""
        location = answer.headers["location"]
        assert re.fullmatch(r"/v1/users/u-1/messages/m-[a-z2-7]{23}", location)
        shown = (await box.client.get(location)).json()
        assert shown["id"] == shown["messageId"] == location.rpartition("/")[2]
        assert (shown["from"], shown["to"], shown["text"]) == ("+19195551212", "+19195551213", "hello")
        assert (shown["direction"], shown["media"]) == ("out", [])
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", shown["time"])


@pytest.mark.parametrize("path", ["/v1/users/u-1/", "/v1/users/u-1"])
async def test_v1_message_posted_to_the_user_is_created_with_a_hint(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Every curl example of v1's documents leaves `messages` out."""
    async with sandbox() as box:
        answer = await box.send(path, v1_message(), 201)
        assert answer.headers["x-sandbox-hint"] == "did you mean /v1/users/u-1/messages?"
        assert (await box.client.get(answer.headers["location"])).json()["text"] == "hello"
        assert (await box.send(path, [v1_message()], 202)).json()[0]["result"] == "accepted"
        assert (await box.send(path, v1_message(to=""), 400)).json()["code"] == "blank-property"
        assert (await box.client.post(path, json=v1_message(), auth=("token", "wrong"))).status_code == 401
        assert "x-sandbox-hint" not in (await box.send(V1, v1_message(), 201)).headers


async def test_message_with_a_media_file_called_too_large_is_refused() -> None:
    media = ["http://x.y/small.jpg", "https://x.y/files/too-large.jpg?size=9"]
    async with sandbox() as box:
        sent = (await box.send(V2, v2_message(media=media), 202)).json()
        location = (await box.send(V1, v1_message(media=media), 201)).headers["location"]
        await box.send(V2, v2_message(media=media[:1]), 202)
        await box.wait_until_idle()
        finals = [(event["type"], event.get("errorCode")) for event in box.application.events()]
        assert (await box.expected(sent["id"]))[0]["code"] == 4411
        assert (await box.client.get(location)).json()["state"] == "error"
    assert ("message-failed", 4411) in finals
    assert finals.count(("message-delivered", None)) == 1


async def test_v1_code_is_a_number_in_get_and_a_text_in_callbacks() -> None:
    async with sandbox() as box:
        message = v1_message(receiptRequested="all", callbackUrl=f"{box.application.url}/v1", to="+15552010720")
        location = (await box.send(V1, message, 201)).headers["location"]
        await box.wait_until_idle()
        shown = (await box.client.get(location)).json()
        assert (shown["deliveryCode"], shown["deliveryDescription"]) == (720, "Invalid destination number")
        [listed] = (await box.client.get(V1, params={"deliveryState": "not-delivered"})).json()
        assert listed["deliveryCode"] == 720
        assert box.application.on("/v1")[-1].json["deliveryCode"] == "720"


async def test_v1_array_has_a_result_for_each_message_in_order() -> None:
    async with sandbox() as box:
        sent = [v1_message(), v1_message(to=""), v1_message(text="there")]
        results = (await box.send(V1, sent, 202)).json()
        assert [result["result"] for result in results] == ["accepted", "error", "accepted"]
        assert results[1] == {
            "result": "error",
            "error": {
                "category": "bad-request",
                "code": "blank-property",
                "message": "The 'message' resource property 'to' must contain at least one non-whitespace character",
                "details": [],
            },
        }
        assert results[2]["location"].startswith(f"{box.client.base_url}".rstrip("/") + V1)
        assert (await box.client.get(results[2]["location"])).json()["text"] == "there"


async def test_v1_array_is_limited_to_50_messages() -> None:
    async with sandbox() as box:
        assert len((await box.send(V1, [v1_message()] * 50, 202)).json()) == 50
        refused = (await box.send(V1, [v1_message()] * 51, 403)).json()
        assert (refused["category"], refused["code"]) == ("limit", "multi-message-limit")
        assert (await box.send(V1, [], 202)).json() == []


async def test_v1_error_has_details_of_the_request() -> None:
    async with sandbox() as box:
        refused = (await box.send(V1, v1_message(text=None), 400)).json()
        assert refused["code"] == "missing-property"
        assert refused["details"] == [
            {"name": "requestMethod", "value": "POST"},
            {"name": "remoteAddress", "value": "127.0.0.1"},
            {"name": "requestPath", "value": "users/u-1/messages"},
        ]


@pytest.mark.parametrize(
    ("path", "body", "kind", "status"),
    [
        (V1, b"{", "application/json", 400),
        (V1, b"{}", "text/plain", 415),
        (V1, b'{"text": "\\ud800"}', "application/json", 400),
        (V2, b"{", "application/json", 400),
        (V2, b"{}", "application/x-www-form-urlencoded", 415),
        (V2, b"\xff", "application/json; charset=utf-8", 400),
    ],
)
async def test_body_and_content_type_must_be_json(path: str, body: bytes, kind: str, status: int) -> None:
    async with sandbox() as box:
        answer = await box.client.post(path, content=body, headers={"content-type": kind})
        assert answer.status_code == status
        assert ("category" if path == V1 else "type") in answer.json()


@pytest.mark.parametrize("auth", [None, ("token", "wrong"), ("", ""), ("tokén", "x")])
@pytest.mark.parametrize(
    ("method", "path", "error"),
    [
        ("POST", V1, ("category", "authorization", "code", "access-denied")),
        ("GET", V1, ("category", "authorization", "code", "access-denied")),
        ("GET", f"{V1}/m-1", ("category", "authorization", "code", "access-denied")),
        ("POST", V2, ("type", "unauthorized", "description", "Authentication Failed")),
        ("GET", V2, ("type", "unauthorized", "description", "Authentication Failed")),
    ],
)
async def test_wrong_credentials_are_401(
    auth: tuple[str, str] | None, method: str, path: str, error: tuple[str, ...]
) -> None:
    async with sandbox() as box, httpx2.AsyncClient(base_url=box.client.base_url, **PATIENT) as client:
        answer = await client.request(method, path, auth=auth, content=b"{" if method == "POST" else None)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Basic realm=")
        body = answer.json()
        assert (body[error[0]], body[error[2]]) == (error[1], error[3])


async def test_empty_credentials_setting_accepts_everyone() -> None:
    async with sandbox(credentials=()) as box:
        answer = await box.client.post(V1, json=v1_message(), headers={"authorization": "Bearer anything"})
        assert answer.status_code == 201


async def test_unknown_user_is_401() -> None:
    async with sandbox(users=("u-1",)) as box:
        await box.send(V1, v1_message(), 201)
        await box.send("/v1/users/u-2/messages", v1_message(), 401)
        await box.send("/api/v2/users/u-2/messages", v2_message(), 401)


async def test_v1_rejects_a_sender_of_another_user() -> None:
    async with sandbox(numbers=("+19195551212",)) as box:
        await box.send(V1, v1_message(), 201)
        refused = (await box.send(V1, v1_message(**{"from": "+19195551211"}), 401)).json()
        assert (refused["code"], refused["details"][:2]) == (
            "number-access-denied",
            [{"name": "userId", "value": "u-1"}, {"name": "number", "value": "+19195551211"}],
        )
        (result,) = (await box.send(V1, [v1_message(**{"from": "+19195551211"})], 202)).json()
        assert result["error"]["category"] == "authorization"
        assert len(result["error"]["details"]) == 2


async def test_v2_fails_for_a_sender_of_another_user_with_4405() -> None:
    async with sandbox(numbers=("+19195551212",)) as box:
        sent = (await box.send(V2, v2_message(**{"from": "+19195551211"}), 202)).json()
        await box.wait_until_idle()
        (expected,) = await box.expected(sent["id"])
        assert (expected["status"], expected["code"]) == ("failed", 4405)


async def test_v1_rate_limit_is_429_with_x_ratelimit_reset() -> None:
    async with sandbox(messages_per_second=0.01) as box:
        before = time.time()
        await box.send(V1, v1_message(), 201)
        after = time.time()
        refused = await box.send(V1, v1_message(), 429)
        assert (refused.json()["category"], refused.json()["code"]) == ("limit", "message-rate-limit-per-tn")
        assert before + 100 <= int(refused.headers["x-ratelimit-reset"]) <= after + 101
        await box.send(V1, v1_message(**{"from": "+19195551219"}), 201)
        await box.client.post("/sandbox/clock", json={"advance": 100})
        await box.send(V1, v1_message(), 201)


async def test_v1_rate_limit_counts_inside_an_array_but_not_rejected_messages() -> None:
    async with sandbox(messages_per_second=0.01) as box:
        results = (await box.send(V1, [v1_message(to=""), v1_message(), v1_message()], 202)).json()
        assert [result.get("error", {}).get("code") for result in results] == [
            "blank-property",
            None,
            "message-rate-limit-per-tn",
        ]


async def test_rate_limit_can_be_disabled_and_is_only_v1() -> None:
    async with sandbox(messages_per_second=0) as box:
        for _ in range(3):
            await box.send(V1, v1_message(), 201)
    async with sandbox(messages_per_second=1) as box:
        for _ in range(3):
            await box.send(V2, v2_message(), 202)


async def test_v1_pages_are_linked() -> None:
    async with sandbox() as box:
        for number in range(5):
            await box.send(V1, v1_message(text=str(number)), 201)
        seen: list[list[str]] = []
        url = f"{V1}?size=2&from=%2b19195551212"
        while url:
            answer = await box.client.get(url)
            seen.append([message["text"] for message in answer.json()])
            link = re.fullmatch(r'<([^>]+)>; rel="next"', answer.headers.get("link", ""))
            url = link[1] if link else ""
        assert seen == [["0", "1"], ["2", "3"], ["4"]]


async def test_list_has_only_messages_of_the_user_and_api_version() -> None:
    async with sandbox() as box:
        await box.send(V1, v1_message(text="mine"), 201)
        await box.send("/v1/users/u-2/messages", v1_message(text="theirs"), 201)
        await box.send(V2, v2_message(), 202)
        assert [message["text"] for message in (await box.client.get(V1)).json()] == ["mine"]


async def test_invalid_list_parameters_are_400() -> None:
    async with sandbox() as box:
        answer = await box.client.get(V1, params={"size": 1001})
        assert (answer.status_code, answer.json()["code"]) == (400, "validation-error")
        answer = await box.client.get(V2)
        assert (answer.status_code, answer.json()["type"]) == (400, "request-validation")


async def test_404_and_405_have_the_format_of_each_api() -> None:
    async with sandbox() as box:
        answer = await box.client.get(f"{V1}/m-unknown")
        assert (answer.status_code, answer.json()["code"]) == (404, "message-not-found")
        assert {"name": "messageId", "value": "m-unknown"} in answer.json()["details"]
        assert (await box.client.get("/v1/elsewhere")).json()["code"] == "resource-not-found"
        assert (await box.client.get("/api/v2/users/u-1/messages/happy")).json()["error"] == "Not Found"
        assert (await box.client.get(f"{V1}/")).status_code == 404
        refused = await box.client.put(V1)
        assert (refused.status_code, sorted(refused.headers["allow"].split(", "))) == (405, ["GET", "HEAD", "POST"])
        assert (await box.client.head(V1)).status_code == 200
        assert (await box.client.put(V2)).json()["type"] == "method-not-allowed"


async def test_message_of_another_user_is_404() -> None:
    async with sandbox() as box:
        location = (await box.send(V1, v1_message(), 201)).headers["location"]
        theirs = location.replace("u-1", "u-2")
        assert (await box.client.get(theirs)).status_code == 404


async def test_text_is_absent_after_30_days() -> None:
    async with sandbox() as box:
        location = (await box.send(V1, v1_message(), 201)).headers["location"]
        await box.client.post("/sandbox/clock", json={"advance": 30 * 86400 - 60})
        assert (await box.client.get(location)).json()["text"] == "hello"
        await box.client.post("/sandbox/clock", json={"advance": 120})
        assert "text" not in (await box.client.get(location)).json()


async def test_v2_message_is_accepted() -> None:
    async with sandbox() as box:
        sent = (await box.send(V2, v2_message(tag="mine", media=["http://x.y/z"]), 202)).json()
        assert re.fullmatch(r"\d{13}[a-z2-7]{16}", sent["id"])
        expected: dict[str, Any] = {
            "owner": "+19195551212",
            "applicationId": "app-1",
            "segmentCount": 1,
            "direction": "out",
            "to": ["+19195551213"],
            "from": "+19195551212",
            "media": ["http://x.y/z"],
            "text": "hello",
            "tag": "mine",
        }
        assert {name: sent[name] for name in sent if name not in ("id", "time")} == expected


@pytest.mark.parametrize(
    ("more", "count"),
    [
        ({"text": "a" * 161}, 2),
        ({"text": "я" * 71}, 2),
        ({"text": "a" * 161, "media": ["http://x.y/z"]}, 1),
        ({"text": "a" * 161, "to": ["+19195551213", "+19195551214"]}, 1),
    ],
    ids=str,
)
async def test_segment_count_of_sms_and_mms(more: dict[str, Any], count: int) -> None:
    async with sandbox() as box:
        assert (await box.send(V2, v2_message(**more), 202)).json()["segmentCount"] == count


async def test_v2_accepts_its_old_path_prefix() -> None:
    async with sandbox() as box:
        sent = (await box.send("/v2/users/u-1/messages", v2_message(to="+19195551213"), 202)).json()
        assert sent["to"] == ["+19195551213"]


async def test_v2_rejects_an_unknown_application_id() -> None:
    async with sandbox(application_ids=("app-1",)) as box:
        await box.send(V2, v2_message(), 202)
        refused = (await box.send(V2, v2_message(applicationId="app-2"), 400)).json()
        assert refused["fieldErrors"][0]["fieldName"] == "applicationId"


async def test_v2_pages_are_linked() -> None:
    async with sandbox() as box:
        for number in range(5):
            await box.send(V2, v2_message(to=[f"+1919555000{number}"]), 202)
        seen: list[str] = []
        params = {"sourceTn": "+19195551212", "sort": "destinationTn:asc", "limit": "2"}
        while True:
            page = (await box.client.get(V2, params=params)).json()
            assert page["totalCount"] == 5
            seen += [message["destinationTn"] for message in page["messages"]]
            if "nextPageToken" not in page["pageInfo"]:
                break
            following = (await box.client.get(page["pageInfo"]["nextPage"])).json()
            params["pageToken"] = page["pageInfo"]["nextPageToken"]
            assert following == (await box.client.get(V2, params=params)).json()
        assert seen == [f"+1919555000{number}" for number in range(5)]
        assert "prevPageToken" in page["pageInfo"]
        assert (await box.client.get(V2, params={**params, "pageToken": "?"})).status_code == 400


async def test_max_messages_evicts_the_oldest() -> None:
    async with sandbox(max_messages=3) as box:
        for number in range(5):
            await box.send(V1, v1_message(text=str(number)), 201)
        assert [message["text"] for message in (await box.client.get(V1)).json()] == ["2", "3", "4"]
        assert len((await box.client.get("/sandbox/expected")).json()) == 3


async def test_too_large_body_is_413() -> None:
    async with sandbox() as box:
        answer = await box.client.post(V1, json=[v1_message(tag="x" * 3_000_000)])
        assert answer.status_code == 413


@pytest.mark.parametrize("user", ["a b?c", "\N{HOT BEVERAGE}", "a\r\nb"])
async def test_user_id_with_special_characters(user: str) -> None:
    async with sandbox() as box:
        path = f"/v1/users/{quote(user, safe='')}/messages"
        location = (await box.send(path, v1_message(), 201)).headers["location"]
        [result] = (await box.send(path, [v1_message()], 202)).json()
        for address in (location, result["location"]):
            assert (await box.client.get(address)).status_code == 200
        page = await box.client.get(path, params={"size": 1})
        assert len((await box.client.get(page.links["next"]["url"])).json()) == 1
