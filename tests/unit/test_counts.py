"""Counts that stop at a limit, as people read them."""

import pytest

from receiver.domain.counts import COUNTED, count_text, count_texts


@pytest.mark.parametrize(("number", "text"), [(0, "0"), (99_999, "99,999"), (COUNTED, "100,000+")])
def test_count_shows_that_there_may_be_more(number: int, text: str) -> None:
    assert count_text(number) == text


def test_each_of_several_counts_may_be_more_if_all_together_reach_the_limit() -> None:
    assert count_texts({"refused": 99_999, "expired": 1}) == {"refused": "99,999+", "expired": "1+"}
    assert count_texts({"refused": 9, "expired": 1}) == {"refused": "9", "expired": "1"}
    assert count_texts({}) == {}
