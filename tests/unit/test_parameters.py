"""Query parameters: how they are parsed, and which are refused by name."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.api.problems import ProblemError
from receiver.api.routes import GROUPS
from receiver.api.routing import parse_query
from receiver.domain.events import Api, Direction, Status, TagVerdict
from receiver.domain.message import PARTIAL, PENDING
from receiver.models.message_queries import CatapultMessageQuery, MessageQuery, MessageStatus
from receiver.models.parameters import MessagePlace, encode_cursor, message_cursor, moment
from receiver.models.queries import (
    AlertQuery,
    CallbackQuery,
    DeadLetterChoice,
    DeadLetterQuery,
    PullQuery,
    Query,
    ReprocessQuery,
    SortOrder,
)
from receiver.models.statistics_query import StatisticsQuery


def query_of(query: str) -> MessageQuery:
    return parse_query(MessageQuery, query.encode())


def invalid(query: str | bytes, model: type = MessageQuery) -> list[str]:
    with pytest.raises(ProblemError) as raised:
        parse_query(model, query if isinstance(query, bytes) else query.encode())
    assert raised.value.status == 400
    return [one.parameter for one in raised.value.errors]


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc,arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2014-05-25 12:30:15", utc(2014, 5, 25, 12, 30, 15)),
        ("2014-05-25 12:30", utc(2014, 5, 25, 12, 30)),
        ("2014-05-25 12", utc(2014, 5, 25, 12)),
        ("2014-05-25", utc(2014, 5, 25)),
        ("2014-05", utc(2014, 5, 1)),
        ("2014", utc(2014, 1, 1)),
        ("2014-05-25T12:30:15Z", utc(2014, 5, 25, 12, 30, 15)),
        ("2014-05-25t12:30:15.076z", utc(2014, 5, 25, 12, 30, 15, 76_000)),
        ("2014-05-25T12:30:15.123456789Z", utc(2014, 5, 25, 12, 30, 15, 123_456)),
        ("2014-05-25T12:30:15+02:00", utc(2014, 5, 25, 10, 30, 15)),
        ("2014-05-25T12:30:15 02:00", utc(2014, 5, 25, 10, 30, 15)),
        ("2014-05-25T12:30:15-07:00", utc(2014, 5, 25, 19, 30, 15)),
    ],
)
def test_times_of_the_catapult_api_and_of_rfc_3339_are_parsed(text: str, expected: datetime) -> None:
    assert moment(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", utc(2024, 6, 12, 12, 30, 15, 76_000)),
        ("90s", utc(2024, 6, 12, 12, 28, 45, 76_000)),
        ("30m", utc(2024, 6, 12, 12, 0, 15, 76_000)),
        ("2h", utc(2024, 6, 12, 10, 30, 15, 76_000)),
        ("7d", utc(2024, 6, 5, 12, 30, 15, 76_000)),
        ("1w", utc(2024, 6, 5, 12, 30, 15, 76_000)),
        ("today", utc(2024, 6, 12)),
        ("yesterday", utc(2024, 6, 11)),
    ],
)
def test_times_back_from_now_are_parsed(text: str, expected: datetime) -> None:
    assert moment(text, lambda: utc(2024, 6, 12, 12, 30, 15, 76_000)) == expected


def test_a_query_takes_times_back_from_now() -> None:
    since = query_of("fromDateTime=2h").since
    assert since
    assert timedelta(hours=2) <= datetime.now(UTC) - since < timedelta(hours=2, minutes=5)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tomorrow",
        "2 h",
        "-2h",
        "2h30m",
        "999999w",
        "Yesterday",
        "2014-5-25",
        "2014-02-30",
        "2014-13",
        "2014-05-25 24:00:00",
        "2014-05-25T12:30:15+25:00",
        "2014-05-25 12:30:15\n",
        "0000-01-01",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        "２０１４-05-25",  # digits of another script
        "1400000000",
    ],
)
def test_invalid_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a time"):
        moment(text)


@given(st.text())
def test_any_text_is_a_time_or_refused(text: str) -> None:
    with suppress(ValueError):
        assert moment(text).tzinfo is UTC


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        pytest.param("from=%2B19195551212", "19195551212", id="escaped plus"),
        pytest.param("from=+19195551212", "19195551212", id="plus that became a space"),
        pytest.param("from=19195551212", "19195551212", id="no plus"),
        pytest.param("from=BRAND", "BRAND", id="alphanumeric"),
        pytest.param("from=My%20Shop", "My Shop", id="space inside"),
    ],
)
def test_a_number_matches_with_plus_without_and_with_a_space_for_it(query: str, expected: str) -> None:
    assert query_of(query).sender == expected


def test_nul_in_a_filter_is_replaced_as_in_storage() -> None:
    assert query_of("tag=a%00b").tag == "a\ufffdb"


def test_every_filter_reaches_the_query() -> None:
    query = query_of(
        "from=1&to=2&fromDateTime=2014&toDateTime=2015&direction=out&state=sent&deliveryState=delivered&page=2&size=10"
        "&sortOrder=asc&status=partial&deliveryCode=4720&tag=a+b&tagVerdict=forged&applicationId=a-1"
        "&contradicted=true&awaitingReceipt=false"
    )
    assert query == MessageQuery(
        sender="1",
        recipient="2",
        since=utc(2014, 1, 1),
        until=utc(2015, 1, 1),
        direction=Direction.OUT,
        state="sent",
        delivery_state="delivered",
        page=2,
        size=10,
        order=SortOrder.ASC,
        status="partial",
        delivery_code=4720,
        tag="a b",
        tag_verdict=TagVerdict.FORGED,
        application_id="a-1",
        contradicted=True,
        awaiting_receipt=False,
    )


def test_default_is_the_newest_25_messages() -> None:
    assert query_of("") == MessageQuery(order=SortOrder.DESC, size=25, page=0)


def test_catapult_list_is_oldest_first() -> None:
    assert parse_query(CatapultMessageQuery, b"").order is SortOrder.ASC


def test_catapult_parameters_are_read_as_that_api_reads_them() -> None:
    empty = "from=&to=&fromDateTime=&toDateTime=&direction=&state=&deliveryState=&page=&size=&sortOrder="
    assert parse_query(CatapultMessageQuery, empty.encode()) == CatapultMessageQuery()
    shouted = parse_query(CatapultMessageQuery, b"sortOrder=DESC&direction=Out&state=SENT&deliveryState=Not-Delivered")
    assert (shouted.order, shouted.direction) == (SortOrder.DESC, Direction.OUT)
    assert (shouted.state, shouted.delivery_state) == ("sent", "not-delivered")
    assert invalid("from=") == ["from"]


def test_catapult_keys_are_nanoseconds() -> None:
    """The key of the link in that API's documents: sortKeyLT=1458576004287000989."""

    def read(query: str) -> MessageQuery:
        return parse_query(CatapultMessageQuery, query.encode()).as_message_query()

    below = read("sortKeyLT=1458576004287000989")
    assert (below.since, below.until, below.order) == (None, utc(2016, 3, 21, 16, 0, 4, 287_001), SortOrder.DESC)
    assert read("sortKeyLT=1458576004287000000").until == utc(2016, 3, 21, 16, 0, 4, 287_000)
    assert read("sortKeyLT=1458576004287000989&sortOrder=asc").order is SortOrder.ASC
    above = read("sortKeyGT=1458576004287000000")
    assert (above.since, above.until, above.order) == (utc(2016, 3, 21, 16, 0, 4, 287_001), None, SortOrder.ASC)
    both = read("sortKeyGT=1458576004287000000&sortKeyLT=1458576004288000000&fromDateTime=2016&toDateTime=2017")
    assert (both.since, both.until) == (utc(2016, 3, 21, 16, 0, 4, 287_001), utc(2016, 3, 21, 16, 0, 4, 288_000))
    assert invalid("sortKeyLT=x", CatapultMessageQuery) == ["sortKeyLT"]
    assert invalid("sortKeyLT=1") == ["sortKeyLT"]


def test_every_status_of_a_message_is_a_filter() -> None:
    assert set(MessageStatus.__args__) == {*Status, PENDING, PARTIAL}


def test_reprocess_defaults_to_quarantined_callbacks_oldest_first() -> None:
    query = parse_query(ReprocessQuery, b"")
    assert (query.outcome, query.order) == ("quarantined", SortOrder.ASC)
    assert parse_query(ReprocessQuery, b"outcome=accepted").outcome == "accepted"


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("form=1", ["form"]),
        ("From=1", ["From"]),
        ("from_=1", ["from_"]),
        ("from_date_time=2014", ["from_date_time"]),
        ("sortOrder=asc%3BDROP+TABLE+messages", ["sortOrder"]),
        ("sortOrder=listed_at", ["sortOrder"]),
        ("state=delivered", ["state"]),
        ("deliveryState=sent", ["deliveryState"]),
        ("status=done", ["status"]),
        ("direction=IN", ["direction"]),
        ("tagVerdict=", ["tagVerdict"]),
        ("size=0", ["size"]),
        ("size=1001", ["size"]),
        ("size=1_0", ["size"]),
        ("size=+5", ["size"]),
        ("size=5.0", ["size"]),
        ("size=%D9%A5", ["size"]),
        ("page=-1", ["page"]),
        ("page=99999999999999999999", ["page"]),
        ("deliveryCode=99999999999999999999", ["deliveryCode"]),
        ("deliveryCode=9223372036854775808", ["deliveryCode"]),
        ("contradicted=1", ["contradicted"]),
        ("contradicted=True", ["contradicted"]),
        ("from=", ["from"]),
        ("from=%2B", ["from"]),
        ("tag=", ["tag"]),
        ("fromDateTime=tomorrow", ["fromDateTime"]),
        ("size=1&size=2", ["size"]),
        ("size=0&form=1", ["size", "form"]),
        ("cursor=", ["cursor"]),
        ("cursor=garbage!", ["cursor"]),
    ],
)
def test_invalid_parameters_are_refused_by_name(query: str, names: list[str]) -> None:
    assert invalid(query) == names


@pytest.mark.parametrize("query", [b"tag=%ff", b"tag=\xff", b"&".join(b"a%d=1" % n for n in range(101))])
def test_query_string_not_utf_8_or_with_too_many_parameters_is_refused(query: bytes) -> None:
    assert invalid(query) == []


def test_problem_does_not_contain_the_invalid_value() -> None:
    query = "size=hunter2&state=hunter2&fromDateTime=hunter2&cursor=hunter2&contradicted=hunter2"
    with pytest.raises(ProblemError) as raised:
        parse_query(MessageQuery, query.encode())
    assert len(raised.value.errors) == 5
    assert "hunter2" not in f"{raised.value.detail} {raised.value.errors}"


def test_long_parameter_name_is_truncated() -> None:
    assert [len(name) for name in invalid("x" * 5000 + "=1")] == [60]


@given(
    st.datetimes(timezones=st.just(UTC)),
    st.sampled_from(Api),
    st.sampled_from(Direction),
    st.text(st.characters(codec="utf-8")),
)
def test_cursor_round_trip(listed_at: datetime, api: Api, direction: Direction, message_id: str) -> None:
    place = MessagePlace(listed_at, api, direction, message_id.replace("\0", ""))
    assert query_of(f"cursor={message_cursor(place)}").after == place


@pytest.mark.parametrize(
    "parts",
    [
        ["2024-01-01T00:00:00+00:00", "v1"],
        ["2024-01-01T00:00:00+00:00", "v3", "m"],
        ["2024-13-01T00:00:00+00:00", "v1", "m"],
        ["0001-01-01T00:00:00+14:00", "v1", "m"],
        ["2024-01-01T00:00:00+00:00", "v1", "m\0"],
        ["2024-01-01T00:00:00+00:00", "v1", 5],
    ],
)
def test_forged_cursor_is_refused(parts: list[str]) -> None:
    assert invalid(f"cursor={encode_cursor(parts)}") == ["cursor"]


@given(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1))
def test_garbage_cursor_is_refused(text: str) -> None:
    assert invalid(f"cursor={text}") == ["cursor"]
    assert invalid(f"cursor={text}", CallbackQuery) == ["cursor"]


def test_pull_starts_at_the_oldest_event_by_default() -> None:
    assert parse_query(PullQuery, b"").after == 0
    assert invalid("after=-1&limit=0", PullQuery) == ["after", "limit"]


RANGED = [MessageQuery, CallbackQuery, ReprocessQuery, DeadLetterQuery, DeadLetterChoice, AlertQuery, StatisticsQuery]


@pytest.mark.parametrize("model", RANGED)
def test_range_that_ends_before_it_begins_is_refused(model: type[Query]) -> None:
    sink = "&sink=crm" if model is DeadLetterChoice else ""
    assert invalid(f"fromDateTime=2026-02-01&toDateTime=2026-01-31{sink}", model) == ["toDateTime"]
    assert invalid(f"fromDateTime=1h&toDateTime=2h{sink}", model) == ["toDateTime"]
    for valid in ("fromDateTime=2h&toDateTime=1h", "fromDateTime=2026&toDateTime=2026", "toDateTime=2026"):
        parse_query(model, f"{valid}{sink}".encode())


def test_every_range_of_the_api_is_checked() -> None:
    queries = {operation.query for group in GROUPS for operation in group.operations}
    assert {query for query in queries if "until" in query.model_fields} <= {*RANGED, CatapultMessageQuery}


def test_catapult_list_takes_a_range_that_ends_before_it_begins_as_an_empty_one() -> None:
    query = parse_query(CatapultMessageQuery, b"fromDateTime=2026&toDateTime=2025").as_message_query()
    assert query == MessageQuery.model_construct(order=SortOrder.ASC, since=utc(2026, 1, 1), until=utc(2025, 1, 1))
