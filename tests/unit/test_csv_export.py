"""The CSV of messages: one row per recipient, one line per row, and no formulas."""

import csv
import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.api.messages import COLUMNS, csv_table
from receiver.api.tables import cell
from receiver.domain.events import Api, Direction, TagVerdict
from receiver.models.messages import MessageRead, RecipientRead
from tests.rows import NOON


def recipient(**fields: Any) -> RecipientRead:
    times = dict.fromkeys(("sent_at", "delivered_at", "failed_at", "read_at", "updated_at"))
    absent = {"state": None, "delivery_state": None, "delivery_code": None, "delivery_description": None}
    return RecipientRead.model_validate(
        {
            "api": Api.V2,
            "recipient": "+15550001",
            "status": "delivered",
            "contradicted": False,
            **absent,
            **times,
            **fields,
        }
    )


def message(*recipients: RecipientRead, **fields: Any) -> MessageRead:
    absent = (
        "owner",
        "application_id",
        "tag",
        "segment_count",
        "channel",
        "carrier_name",
        "priority",
        "state",
        "delivery_state",
        "delivery_code",
        "delivery_description",
    )
    return MessageRead.model_validate(
        {
            **dict.fromkeys(absent),
            "id": "m-1",
            "api": Api.V2,
            "direction": Direction.OUT,
            "sender": "+15559999",
            "numbers": [one.recipient for one in recipients],
            "text": "hello",
            "media": [],
            "tag_verdict": TagVerdict.VALID,
            "created_at": NOON,
            "status": "delivered",
            "contradicted": False,
            "awaiting_receipt": False,
            "listed_at": NOON,
            "first_received_at": NOON,
            "registered_at": None,
            "updated_at": NOON,
            "recipients": list(recipients),
            **fields,
        }
    )


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_a_group_message_has_a_row_for_each_recipient() -> None:
    failed = recipient(recipient="+15550002", status="failed", delivery_code=4720)
    first, second = rows(csv_table([message(recipient(), failed, status="partial")]))
    assert (first["id"], first["to"], first["status"], first["messageStatus"]) == (
        "m-1",
        "+15550001",
        "delivered",
        "partial",
    )
    assert (second["to"], second["status"], second["deliveryCode"]) == ("+15550002", "failed", "4720")
    assert second["reasonCategory"] == "carrier-client"
    assert first["reasonCategory"] == ""


def test_the_header_names_the_columns_also_without_messages() -> None:
    assert csv_table([]).rstrip("\r\n").replace('"', "").split(",") == list(COLUMNS)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(None, "", id="nothing"),
        pytest.param(True, "true", id="true"),
        pytest.param(False, "false", id="false"),
        pytest.param(4720, "4720", id="a number"),
        pytest.param(["https://a/1", "https://a/2"], "https://a/1 https://a/2", id="a list"),
        pytest.param("hello", "hello", id="text"),
        pytest.param("+19195551212", "+19195551212", id="a phone number stays one"),
        pytest.param("+1919555+1212", "'+1919555+1212", id="more than a phone number"),
        pytest.param("+1234567890123456", "'+1234567890123456", id="too long for a phone number"),
        pytest.param("+19195551212\n", "'+19195551212 ", id="a phone number and a line break"),
        pytest.param('=HYPERLINK("https://evil","x")', '\'=HYPERLINK("https://evil","x")', id="equals"),
        pytest.param("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0", id="plus"),
        pytest.param("-2+3", "'-2+3", id="minus"),
        pytest.param("@SUM(A1)", "'@SUM(A1)", id="at"),
        pytest.param("\t=1", "' =1", id="tab first"),
        pytest.param("\r=1", "' =1", id="carriage return first"),
        pytest.param("  =1", "'  =1", id="blanks first"),
        pytest.param("\ufeff=1", "'\ufeff=1", id="byte order mark first"),
        pytest.param("\u200b=1", "'\u200b=1", id="zero width space first"),
        pytest.param("＝1", "'＝1", id="full width"),
        pytest.param("a\r\nb", "a b", id="line break inside"),
        pytest.param("a\u2028b\x1b[31m", "a b [31m", id="other controls"),
        pytest.param("a=b", "a=b", id="equals inside"),
        pytest.param("", "", id="empty"),
    ],
)
def test_a_cell_is_text_on_one_line(value: Any, expected: str) -> None:
    assert cell(value) == expected


@given(st.text(), st.text())
def test_formulas_and_line_breaks_stay_in_their_cell(text: str, tag: str) -> None:
    lines = csv_table([message(recipient(), text=text, tag=tag)]).split("\r\n")
    assert len(lines) == 3
    [row] = rows("\r\n".join(lines))
    assert (row["text"], row["tag"]) == (cell(text), cell(tag))
    assert not row["text"].lstrip().startswith(("=", "-", "@"))
