"""Imported callbacks are told from late ones by their place in the log."""

from datetime import UTC, datetime, timedelta

from receiver.domain.arrival import ImportDetector

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def ago(minutes: float) -> datetime:
    return NOW - timedelta(minutes=minutes)


def test_entry_much_older_than_one_before_it_is_an_import() -> None:
    detector = ImportDetector()
    assert [detector.is_import(ago(minutes), NOW) for minutes in (5, 600, 4.5, 599, 5.4)] == [
        False,
        True,
        False,
        True,
        False,
    ]


def test_backlog_in_order_is_no_import() -> None:
    detector = ImportDetector()
    assert not any(detector.is_import(ago(minutes), NOW) for minutes in range(600, 0, -1))


def test_entry_older_than_an_empty_log_is_an_import() -> None:
    detector = ImportDetector()
    detector.caught_up(ago(2))
    assert detector.is_import(ago(10), NOW)
    assert not detector.is_import(ago(2.5), NOW)


def test_import_with_a_time_ahead_makes_no_import_of_what_follows() -> None:
    detector = ImportDetector()
    detector.is_import(ago(-600), NOW)
    assert not detector.is_import(ago(0), NOW)
