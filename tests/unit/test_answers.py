"""The Accept header decides between JSON and CSV."""

import pytest

from receiver.api.routing import prefers_csv


@pytest.mark.parametrize(
    ("accept", "csv"),
    [
        ("", False),
        ("*/*", False),
        ("application/json", False),
        ("text/csv", True),
        ("text/csv; header=present", True),
        ("TEXT/CSV", True),
        ("text/*", True),
        ("text/csv, application/json", False),
        ("text/csv, application/json;q=0.9", True),
        ("text/csv;q=0.5, */*;q=0.1", True),
        ("application/json, text/csv;q=0.9", False),
        ("text/csv;q=0", False),
        ("text/csv;q=much", False),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", False),
        (",;,", False),
    ],
)
def test_accept_header_that_prefers_csv(accept: str, csv: bool) -> None:
    assert prefers_csv(accept) is csv
