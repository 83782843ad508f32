"""The raw ledger read, on both databases."""

from typing import Any

import pytest

from receiver.domain.queries import CallbackQuery, SortOrder
from receiver.storage import ledger
from receiver.storage.database import Database
from tests.builders import NOON, callback, insert_callbacks

pytestmark = pytest.mark.anyio

FORGED = {
    "outcome": "quarantined",
    "reason": "tag-forged",
    "problems": [{"index": 0, "reason": "tag-forged", "detail": ""}],
}
UNREADABLE = {"outcome": "quarantined", "reason": "unreadable"}


@pytest.fixture
async def stocked(database: Database) -> Database:
    await insert_callbacks(
        database,
        callback("01"),
        callback("02", **FORGED),
        callback("03", **UNREADABLE, body=b"\xff\x00{", query="a=%2B1", headers={"user-agent": "BandwidthAPI/v2"}),
        callback("04", reread_at=NOON, duplicates=3),
    )
    return database


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({}, ["04", "03", "02", "01"], id="all, newest first"),
        pytest.param({"order": SortOrder.ASC}, ["01", "02", "03", "04"], id="all, oldest first"),
        pytest.param({"outcome": "accepted"}, ["04", "01"], id="accepted"),
        pytest.param({"outcome": "quarantined"}, ["03", "02"], id="quarantined"),
        pytest.param({"reason": "unreadable"}, ["03"], id="reason"),
        pytest.param({"outcome": "accepted", "reason": "unreadable"}, [], id="no accepted one has a reason"),
        pytest.param({"after": "03"}, ["02", "01"], id="after an id, downwards"),
        pytest.param({"after": "03", "order": SortOrder.ASC}, ["04"], id="after an id, upwards"),
        pytest.param({"size": 2}, ["04", "03"], id="a page"),
        pytest.param({"size": 2, "skip": 2}, ["02", "01"], id="the second page"),
    ],
)
async def test_a_query_finds_what_it_says(stocked: Database, fields: dict[str, Any], expected: list[str]) -> None:
    page = await ledger.find(stocked, CallbackQuery(**fields))
    assert [one.id for one in page.items] == expected
    assert page.more is (fields == {"size": 2})


async def test_one_callback_comes_whole(stocked: Database) -> None:
    found = await ledger.one(stocked, "03")
    assert found is not None
    assert (found.body, found.query, found.headers) == (b"\xff\x00{", "a=%2B1", {"user-agent": "BandwidthAPI/v2"})
    assert found.problems == []
    assert await ledger.one(stocked, "05") is None


async def test_callbacks_by_id_come_in_the_order_asked(stocked: Database) -> None:
    assert [one.id for one in await ledger.by_ids(stocked, ["04", "09", "01"])] == ["04", "01"]
    assert await ledger.by_ids(stocked, []) == []
