"""Version 1: what is refused and in which error, what is shown, listed and posted."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.domain.events import Api, Direction
from receiver.providers.fields import parse_query as parse
from receiver.providers.fields import urls
from receiver.sandbox import v1
from receiver.sandbox.messages import CallbackTarget, SandboxMessage
from receiver.sandbox.scenario import Kind, PlannedCallback, Receipts, Scenario, Sending, Step
from receiver.sandbox.scenario_writer import code_number
from receiver.sandbox.v1_requests import (
    V1Error,
    multi_message_limit,
    not_found,
    number_access_denied,
    parse_list_parameters,
    parse_message,
    rate_limited,
)
from tests.sandboxes import v1_message
from tests.unit.test_sandbox_expected import CREATED_AT, URI, message

SPEED = 1.0
LATER = CREATED_AT + timedelta(hours=1)


def error_of(body: object) -> V1Error:
    with pytest.raises(V1Error) as caught:
        parse_message(body)
    return caught.value


def test_message_with_every_property_is_accepted() -> None:
    taken = parse_message(
        v1_message(
            media="http://example.com/a.jpg",
            callbackUrl="http://user:pass@127.0.0.1:8080/here?x=1",
            callbackHttpMethod="GET",
            callbackTimeout=2000,
            fallbackUrl="https://example.com/there",
            tag="any\nstring",
            receiptRequested="none",
            unknownProperty=1,
        )
    )
    assert taken.media == ("http://example.com/a.jpg",)
    assert taken.tag == "any\nstring"
    assert taken.target == CallbackTarget(
        url="http://user:pass@127.0.0.1:8080/here?x=1",
        fallback_url="https://example.com/there",
        method="get",
        timeout=2.0,
    )


def test_missing_properties_have_the_documented_defaults() -> None:
    taken = parse_message(v1_message(media=None, tag=None, callbackUrl=None))
    assert (taken.receipt_requested, taken.callback_http_method, taken.callback_timeout) == ("none", "post", 10_000)
    assert (taken.media, taken.callback_url, taken.fallback_url, taken.tag) == ((), None, None, None)


_MISSING = "The 'message' resource property '{}' is required but was not specified"
_BLANK = "The 'message' resource property '{}' must contain at least one non-whitespace character"
_STRING = "The 'message' resource property '{}' must be a string"
_NOT_URL = "The URL '{}' is not a valid callbackUrl/fallbackUrl"


@pytest.mark.parametrize(
    ("body", "category", "code", "error"),
    [
        *(({name: None}, "bad-request", "missing-property", _MISSING.format(name)) for name in ("from", "to", "text")),
        *(({name: ""}, "bad-request", "blank-property", _BLANK.format(name)) for name in ("from", "to", "text")),
        ({"to": " \t"}, "bad-request", "blank-property", _BLANK.format("to")),
        *(({name: 5}, "bad-request", "validation-error", _STRING.format(name)) for name in ("from", "text", "tag")),
        ({"to": ["+19195551213"]}, "bad-request", "validation-error", _STRING.format("to")),
        ({"to": "9195551213 "}, "bad-request", "validation-error", "Invalid phone number"),
        ({"to": "+09195551213"}, "bad-request", "validation-error", "Invalid phone number"),
        ({"from": "+1919555121234567"}, "bad-request", "validation-error", "Invalid phone number"),
        ({"text": "a" * 2049}, "bad-request", "validation-error", "The message text must be 2,048 characters or less"),
        (
            {"text": "п😀"},
            "bad-request",
            "validation-error",
            "The message text has characters that GSM 03.38 does not have: CYRILLIC SMALL LETTER PE, GRINNING FACE",
        ),
        ({"media": "a.jpg"}, "forbidden", "media-invalid-url", "The media URL 'a.jpg' is invalid."),
        ({"media": ["http://x.y", 5]}, "forbidden", "media-invalid-url", "The media URL '5' is invalid."),
        ({"media": "ftp://x.y/{z}"}, "forbidden", "media-invalid-url", "The media URL 'ftp://x.y/{z}' is invalid."),
        (
            {"receiptRequested": "yes"},
            "bad-request",
            "validation-error",
            "The 'message' resource property 'receiptRequested' must be one of the following values: none, all, error",
        ),
        (
            {"receiptRequested": "all", "media": ["http://x.y/z"]},
            "bad-request",
            "validation-error",
            "receiptRequested is not supported for MMS",
        ),
        (
            {"receiptRequested": "error", "media": "http://x.y/z"},
            "bad-request",
            "validation-error",
            "receiptRequested is not supported for MMS",
        ),
        ({"callbackUrl": "my.host"}, "bad-request", "callback-invalid-url", _NOT_URL.format("my.host")),
        ({"callbackUrl": "http://"}, "bad-request", "callback-invalid-url", _NOT_URL.format("http://")),
        ({"callbackUrl": "http://x:99999"}, "bad-request", "callback-invalid-url", _NOT_URL.format("http://x:99999")),
        ({"callbackUrl": "http://x:0"}, "bad-request", "callback-invalid-url", _NOT_URL.format("http://x:0")),
        ({"callbackUrl": ""}, "bad-request", "blank-property", _BLANK.format("callbackUrl")),
        ({"fallbackUrl": "x"}, "bad-request", "callback-invalid-url", _NOT_URL.format("x")),
        (
            {"callbackHttpMethod": "put"},
            "bad-request",
            "validation-error",
            "The 'message' resource property 'callbackHttpMethod' must be one of the following values: get, post",
        ),
        (
            {"callbackTimeout": 10_001},
            "bad-request",
            "validation-error",
            "The 'message' resource property 'callbackTimeout' exceeds the limit of 10000",
        ),
        (
            {"callbackTimeout": 0},
            "bad-request",
            "validation-error",
            "The 'message' resource property 'callbackTimeout' must be greater than 0",
        ),
        (
            {"callbackTimeout": "soon"},
            "bad-request",
            "validation-error",
            "The 'message' resource property 'callbackTimeout' must be a number",
        ),
    ],
)
def test_errors_have_the_documented_format_and_wording(
    body: dict[str, Any], category: str, code: str, error: str
) -> None:
    assert error_of(v1_message(**body)).body() == {
        "category": category,
        "code": code,
        "message": error,
        "details": [],
    }


def test_first_of_several_errors_is_reported() -> None:
    assert error_of({"to": "", "callbackTimeout": "x"}).message == _MISSING.format("from")


@pytest.mark.parametrize("body", ["hello", 5, None, ["+1"]])
def test_message_must_be_a_json_object(body: object) -> None:
    assert error_of(body).code == "validation-error"


@pytest.mark.parametrize(
    "good",
    [
        {"text": "a" * 2048},
        {"text": "{}[]~\\^|€\f"},
        {"from": "12345", "to": "123456"},
        {"to": "+12"},
        {"media": []},
        {"callbackTimeout": "2000"},
        {"callbackTimeout": 1},
        {"callbackHttpMethod": "Post"},
        {"receiptRequested": "ALL"},
        {"tag": ""},
        {"callbackUrl": "https://user:p%40ss@[::1]:8080/path?query=1#fragment"},
    ],
    ids=str,
)
def test_documented_values_are_accepted(good: dict[str, Any]) -> None:
    parse_message(v1_message(**good))


@pytest.mark.parametrize(
    ("refusal", "status", "category", "code", "error"),
    [
        (not_found("m-1"), 404, "not-found", "message-not-found", "The message 'm-1' could not be found"),
        (
            number_access_denied("u-1", "+1"),
            401,
            "authorization",
            "number-access-denied",
            "User u-1 does not have permission to use number +1",
        ),
        (
            multi_message_limit(51),
            403,
            "limit",
            "multi-message-limit",
            "The number of messages [51] in the multi message request is greater than the limit [50].",
        ),
    ],
)
def test_errors_outside_validation_have_the_documented_wording(
    refusal: V1Error, status: int, category: str, code: str, error: str
) -> None:
    assert refusal.http_status == status
    assert (refusal.category, refusal.code, refusal.message) == (category, code, error)


def test_number_access_denied_has_the_number_in_its_details() -> None:
    assert number_access_denied("u-1", "+1").body()["details"] == [
        {"name": "userId", "value": "u-1"},
        {"name": "number", "value": "+1"},
    ]


def test_rate_limit_error_has_x_ratelimit_reset() -> None:
    refusal = rate_limited("+1", 1, datetime(2026, 1, 1, 0, 0, 0, 1, UTC))
    assert refusal.http_status == 429
    # the next whole second
    assert refusal.headers == (("X-RateLimit-Reset", "1767225601"),)


# --- representations


def sent(to: str = "+19195551213", **more: Any) -> SandboxMessage:
    sending = {name: more.pop(name) for name in ("is_mms", "receipts") if name in more}
    return message(Sending(api=Api.V1, recipients=(to,), **sending), **more)


def test_state_is_queued_then_sending_then_sent() -> None:
    outbound = sent()
    (step,) = outbound.scenario.steps
    states = [
        v1.status_at(outbound, CREATED_AT + timedelta(seconds=step.after * part), SPEED).state for part in (0, 0.7, 1)
    ]
    assert states == ["queued", "sending", "sent"]


def test_speed_shortens_the_time_until_sent() -> None:
    assert v1.status_at(sent(), CREATED_AT + timedelta(seconds=0.001), 1000.0).state == "sent"


@pytest.mark.parametrize(
    ("to", "more", "standing"),
    [
        ("+19195551213", {}, v1.V1Status("sent")),
        ("+19195551213", {"receipts": Receipts.ALL}, v1.V1Status("sent", "delivered", 0)),
        ("+19195551213", {"receipts": Receipts.ERROR}, v1.V1Status("sent")),
        ("+19195551213", {"is_mms": True}, v1.V1Status("sent")),
        (code_number(Api.V1, 720), {}, v1.V1Status("sent")),
        (code_number(Api.V1, 720), {"receipts": Receipts.ALL}, v1.V1Status("sent", "not-delivered", 720)),
        (code_number(Api.V1, 902), {"receipts": Receipts.ERROR}, v1.V1Status("sent", "not-delivered", 902)),
        (code_number(Api.V1, 187), {}, v1.V1Status("error")),
        (code_number(Api.V1, 187), {"receipts": Receipts.ERROR}, v1.V1Status("error", "not-delivered", 187)),
        (code_number(Api.V1, 751), {"is_mms": True}, v1.V1Status("error", "not-delivered", 751)),
    ],
    ids=str,
)
def test_final_state_and_delivery_state(to: str, more: dict[str, Any], standing: v1.V1Status) -> None:
    assert v1.status_at(sent(to, **more), LATER, SPEED) == standing


def test_representation_has_the_documented_fields() -> None:
    outbound = sent(
        code_number(Api.V1, 720),
        receipts=Receipts.ALL,
        tag="mine",
        target=CallbackTarget(url="http://x/y", fallback_url="http://x/z", timeout=2.5),
    )
    assert v1.representation(outbound, LATER, SPEED) == {
        "id": "m-1",
        "messageId": "m-1",
        "from": "+19195551212",
        "to": "+15552010720",
        "text": "hello",
        "time": "2026-01-01T00:00:00.000Z",
        "direction": "out",
        "state": "sent",
        "media": [],
        "callbackUrl": "http://x/y",
        "callbackTimeout": 2500,
        "fallbackUrl": "http://x/z",
        "receiptRequested": "all",
        "deliveryState": "not-delivered",
        "deliveryCode": 720,
        "deliveryDescription": "Invalid destination number",
    }


def test_text_is_absent_after_30_days() -> None:
    outbound = sent()
    assert v1.representation(outbound, CREATED_AT + timedelta(days=29, hours=23), SPEED)["text"] == "hello"
    assert "text" not in v1.representation(outbound, CREATED_AT + timedelta(days=30), SPEED)


# --- events


def test_event_has_the_documented_fields() -> None:
    outbound = sent(receipts=Receipts.ALL, tag="mine")
    waiting, delivered = (v1.event(outbound, step, URI) for step in outbound.scenario.steps)
    assert waiting == {
        "eventType": "sms",
        "direction": "out",
        "messageId": "m-1",
        "messageUri": URI,
        "from": "+19195551212",
        "to": "+19195551213",
        "text": "hello",
        "time": "2026-01-01T00:00:00.000Z",
        "state": "sent",
        "deliveryState": "waiting",
        "segmentCount": 1,
        "tag": "mine",
    }
    assert delivered == {
        **waiting,
        "deliveryState": "delivered",
        "deliveryCode": "0",
        "deliveryDescription": "Message delivered to carrier",
    }


def test_inbound_event_is_received() -> None:
    step = Step(0, Kind.RECEIVED, "+19195551213")
    outbound = sent(
        direction=Direction.IN, application_id="a-1", scenario=Scenario((step,), (PlannedCallback(0, (step,)),))
    )
    event = v1.event(outbound, step, URI)
    assert (event["direction"], event["state"], event["applicationId"]) == ("in", "received", "a-1")
    assert "deliveryState" not in event


def test_mms_event_has_media() -> None:
    outbound = sent(is_mms=True)
    event = v1.event(outbound, outbound.scenario.steps[0], URI)
    assert (event["eventType"], event["media"]) == ("mms", ["http://example.com/a.jpg"])


def test_get_query_has_media_in_brackets_and_unescaped_colons_in_time() -> None:
    event = {"time": "2026-01-01T00:00:00Z", "from": "+1", "media": ["http://x/a", "http://x/b"], "segmentCount": 1}
    assert v1.query(event) == (
        "time=2026-01-01T00:00:00Z&from=%2B1&media=%5Bhttp%3A%2F%2Fx%2Fa%2C%20http%3A%2F%2Fx%2Fb%5D&segmentCount=1"
    )


@given(st.text(st.characters(codec="utf-8")), st.lists(st.just("http://x/a.jpg"), min_size=1))
def test_get_query_can_be_parsed_by_the_receiver(text: str, media: list[str]) -> None:
    fields = parse(v1.query({"text": text, "media": media}))
    assert fields.get("text") == text
    assert list(urls(fields["media"])) == media


# --- lists


@pytest.mark.parametrize(
    ("body", "moment"),
    [
        ("2014", datetime(2014, 1, 1, tzinfo=UTC)),
        ("2014-05", datetime(2014, 5, 1, tzinfo=UTC)),
        ("2014-05-25", datetime(2014, 5, 25, tzinfo=UTC)),
        ("2014-05-25 12", datetime(2014, 5, 25, 12, tzinfo=UTC)),
        ("2014-05-25 12:30", datetime(2014, 5, 25, 12, 30, tzinfo=UTC)),
        ("2014-05-25 12:30:07", datetime(2014, 5, 25, 12, 30, 7, tzinfo=UTC)),
        ("2014-05-25T12:30:07.123Z", datetime(2014, 5, 25, 12, 30, 7, tzinfo=UTC)),
    ],
)
def test_missing_parts_of_a_date_are_zero(body: str, moment: datetime) -> None:
    assert parse_list_parameters({"fromDateTime": body}).from_date_time == moment


_ONE_OF = "The 'message' resource property '{}' must be one of the following values: {}"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"size": "1001"}, "The 'message' resource property 'size' exceeds the limit of 1000"),
        ({"size": "0"}, "The 'message' resource property 'size' must be greater than 0"),
        ({"page": "-1"}, "The 'message' resource property 'page' must be a number"),
        ({"direction": "up"}, _ONE_OF.format("direction", "in, out")),
        ({"state": "lost"}, _ONE_OF.format("state", "received, queued, sending, sent, error")),
        ({"deliveryState": "no"}, _ONE_OF.format("deliveryState", "waiting, delivered, not-delivered")),
        ({"sortOrder": "up"}, _ONE_OF.format("sortOrder", "asc, desc")),
        (
            {"fromDateTime": "yesterday"},
            "The 'message' resource property 'fromDateTime' must be in yyyy-MM-dd hh:mm:ss format",
        ),
        (
            {"toDateTime": "2014-13-01"},
            "The 'message' resource property 'toDateTime' must be in yyyy-MM-dd hh:mm:ss format",
        ),
        ({"sortKeyGT": "x"}, "The 'message' resource property 'sortKeyGt' must be a number"),
    ],
    ids=str,
)
def test_invalid_list_parameters_are_rejected(body: dict[str, str], error: str) -> None:
    with pytest.raises(V1Error) as caught:
        parse_list_parameters(body)
    assert (caught.value.category, caught.value.code, caught.value.message) == (
        "bad-request",
        "validation-error",
        error,
    )


def listed(messages: list[SandboxMessage], **parameters: str) -> list[int]:
    page = v1.page(parse_list_parameters(parameters), messages, LATER, SPEED)
    return [message.ordinal for message in page.messages]


MESSAGES = [
    sent(created_at=CREATED_AT, ordinal=1),
    sent(created_at=CREATED_AT + timedelta(milliseconds=1), ordinal=2, receipts=Receipts.ALL),
    sent("+19195559999", created_at=CREATED_AT + timedelta(milliseconds=1), ordinal=3, receipts=Receipts.ALL),
    sent(code_number(Api.V1, 187), created_at=CREATED_AT + timedelta(seconds=1), ordinal=4, receipts=Receipts.ALL),
    sent(created_at=CREATED_AT + timedelta(days=1), ordinal=5, direction=Direction.IN, sender="+19195550000"),
]


@pytest.mark.parametrize(
    ("parameters", "found"),
    [
        ({}, [1, 2, 3, 4, 5]),
        ({"sortOrder": "desc"}, [5, 4, 3, 2, 1]),
        ({"from": "+19195550000"}, [5]),
        ({"from": " 19195550000"}, [5]),
        ({"from": "19195550000"}, [5]),
        ({"to": "+19195559999"}, [3]),
        ({"direction": "in"}, [5]),
        ({"direction": "out"}, [1, 2, 3, 4]),
        ({"state": "received"}, [5]),
        ({"state": "error"}, [4]),
        ({"deliveryState": "delivered"}, [2, 3]),
        ({"deliveryState": "not-delivered"}, [4]),
        ({"fromDateTime": "2026-01-01 00:00:01"}, [4, 5]),
        # the end is exclusive, and exact to the millisecond
        ({"toDateTime": "2026-01-01 00:00:01"}, [1, 2, 3]),
        ({"fromDateTime": "2026-01-01", "toDateTime": "2026-01-02"}, [1, 2, 3, 4]),
        ({"fromDateTime": "", "size": ""}, [1, 2, 3, 4, 5]),
        ({"size": "2"}, [1, 2]),
        ({"size": "2", "page": "1"}, [3, 4]),
        ({"size": "2", "page": "2"}, [5]),
        ({"size": "2", "page": "3"}, []),
        ({"size": "1", "page": "1", "sortOrder": "desc"}, [4]),
    ],
    ids=str,
)
def test_list_filters_sorts_and_pages(parameters: dict[str, str], found: list[int]) -> None:
    assert listed(MESSAGES, **parameters) == found


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_sort_keys_page_without_gaps(order: str) -> None:
    parameters = {"size": "2", "sortOrder": order}
    seen: list[int] = []
    while True:
        page = v1.page(parse_list_parameters(parameters), MESSAGES, LATER, SPEED)
        seen += [message.ordinal for message in page.messages]
        if page.next is None:
            break
        parameters[page.next[0]] = str(page.next[1])
    assert seen == ([1, 2, 3, 4, 5] if order == "asc" else [5, 4, 3, 2, 1])


def test_link_with_a_key_below_and_no_order_leads_to_older_messages() -> None:
    """The link in v1's documents has `sortKeyLT` and no `sortOrder`."""
    below = {"sortKeyLT": str(MESSAGES[3].sort_key), "size": "2"}
    assert listed(MESSAGES, **below) == [3, 2]
    page = v1.page(parse_list_parameters(below), MESSAGES, LATER, SPEED)
    assert page.next == ("sortKeyLT", MESSAGES[1].sort_key)
    assert listed(MESSAGES, **below, sortOrder="asc") == [1, 2]
    assert listed(MESSAGES, sortKeyGT=str(MESSAGES[2].sort_key)) == [4, 5]


def test_full_last_page_has_no_next_page() -> None:
    assert v1.page(parse_list_parameters({"size": "5"}), MESSAGES, LATER, SPEED).next is None
