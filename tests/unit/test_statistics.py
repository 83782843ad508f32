"""Which cells of the statistics answer a question: each hour of its range once, in the longest cells that fit."""

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.models.statistics_query import StatisticsQuery
from receiver.storage.statistics import _grains, _Hours, _parts
from receiver.storage.statistics_cells import (
    ALL_DAY,
    ALL_HOUR,
    DAY,
    HOUR,
    PLAIN_DAY,
    PLAIN_WEEK,
    SENDER_DAY,
    SENDER_HOUR,
    TOTALS_DAY,
    TOTALS_WEEK,
    WEEK,
)

QUESTIONS: list[tuple[dict[str, Any], set[int]]] = [
    ({}, {ALL_HOUR, ALL_DAY}),
    ({"by": "day,status", "direction": "out", "api": "v2", "status": "failed"}, {ALL_HOUR, ALL_DAY}),
    ({"by": "hour"}, {ALL_HOUR}),
    ({"by": "applicationId"}, {HOUR, DAY, WEEK}),
    ({"by": "day", "application_id": "a-1"}, {HOUR, DAY}),
    ({"by": "deliveryCode"}, {HOUR, DAY, WEEK}),
    ({"carrier_name": "Verizon"}, {HOUR, DAY, WEEK}),
    ({"by": "hour,carrierName"}, {HOUR}),
    ({"by": "from"}, {SENDER_HOUR, TOTALS_DAY, TOTALS_WEEK}),
    ({"by": "from,day"}, {SENDER_HOUR, TOTALS_DAY}),
    ({"by": "from,hour"}, {SENDER_HOUR}),
    ({"by": "status,applicationId", "sender": "+15551"}, {SENDER_HOUR, TOTALS_DAY, TOTALS_WEEK}),
    ({"by": "from,deliveryCode"}, {SENDER_HOUR, SENDER_DAY}),
    ({"by": "from,category"}, {SENDER_HOUR, SENDER_DAY}),
    ({"by": "from", "carrier_name": "Verizon"}, {SENDER_HOUR, SENDER_DAY}),
    ({"by": "from", "delivery_code": "4720"}, {SENDER_HOUR, SENDER_DAY}),
]


@pytest.mark.parametrize(("fields", "grains"), QUESTIONS)
def test_a_question_reads_the_cells_that_have_its_dimensions(fields: dict[str, Any], grains: set[int]) -> None:
    assert set(_grains(StatisticsQuery(**fields))) == grains


@pytest.mark.parametrize(
    ("by", "grains"),
    [
        ("from", {SENDER_HOUR, PLAIN_DAY, PLAIN_WEEK}),
        ("from,day,status", {SENDER_HOUR, PLAIN_DAY}),
        ("from,deliveryCode", {SENDER_HOUR, SENDER_DAY}),
    ],
)
def test_which_senders_have_most_deliveries_is_read_from_plain_totals(by: str, grains: set[int]) -> None:
    assert set(_grains(StatisticsQuery(by=by), plain=True)) == grains


@given(
    grains=st.sampled_from(({HOUR: 1}, {HOUR: 1, DAY: 24}, {SENDER_HOUR: 1, TOTALS_DAY: 24, TOTALS_WEEK: 168})),
    first=st.integers(-500, 500),
    length=st.integers(-5, 1000),
)
def test_parts_of_a_range_have_each_hour_once(grains: dict[int, int], first: int, length: int) -> None:
    parts = sorted((start, stop, grains[grain]) for grain, start, stop in _parts(grains, first, first + length))
    assert [hour for start, stop, _ in parts for hour in range(start, stop)] == list(range(first, first + length))
    assert all(start % hours == stop % hours == 0 for start, stop, hours in parts)
    # No longer cell has room in a part of shorter ones.
    for longer, shorter in pairwise(sorted(grains.values(), reverse=True)):
        outside = (stop - start for start, stop, hours in parts if hours <= shorter)
        assert all(size < 2 * longer for size in outside)


@given(
    grains=st.sampled_from(({HOUR: 1}, {HOUR: 1, DAY: 24}, {SENDER_HOUR: 1, TOTALS_DAY: 24, TOTALS_WEEK: 168})),
    first=st.integers(-500, 500),
    length=st.integers(0, 1000),
    now=st.integers(-500, 1500),
)
def test_a_range_until_now_is_whole_cells_less_what_comes_later(
    grains: dict[int, int], first: int, length: int, now: int
) -> None:
    end = first + length
    counted, reading = Counter[int](), _Hours(first, end, now)
    assert all(start >= end for _, start, _ in reading.later(grains))
    cells = [
        (cell, grains[grain])
        for grain, start, stop in [*reading.added(grains), *reading.later(grains)]
        for cell in range(start, stop, grains[grain])
    ]
    for cell, hours in cells:
        for hour in range(cell, cell + hours):
            counted[hour] += -1 if cell >= end else 1
    assert {hour: times for hour, times in counted.items() if times} == dict.fromkeys(range(first, end), 1)
    if now < end:
        # What is left at the end of the range is in the longest cell that begins in it.
        longest = max((hours for hours in grains.values() if end // hours * hours >= first), default=1)
        assert all(hours >= longest for cell, hours in cells if end // longest * longest <= cell < end)
