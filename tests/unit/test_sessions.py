"""Sign-in of the pages: what a cookie proves, and how quickly tokens can be guessed."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as some

from receiver.api.auth import Access, Tokens
from receiver.pages.session import LIFETIME, Throttle, read_session, start_session

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def tokens(*entries: str) -> Tokens:
    return Tokens(entries)


def cookie_of(accepted: Tokens, token: str) -> str:
    cookie = start_session(accepted, token, NOW)
    assert cookie is not None
    return cookie


@pytest.mark.parametrize(("token", "access"), [("admin-1", Access.ADMIN), ("reader-1", Access.READ)])
def test_a_session_permits_what_its_token_permits(token: str, access: Access) -> None:
    accepted = tokens("admin-1", "support:read:reader-1")
    session = read_session(accepted, cookie_of(accepted, token), NOW)
    assert session is not None
    assert (session.access, session.is_admin) == (access, access is Access.ADMIN)


def test_another_process_with_the_same_token_accepts_the_session() -> None:
    cookie = cookie_of(tokens("admin-1"), "admin-1")
    assert read_session(tokens("other", "admin-1"), cookie, NOW) is not None


def test_a_wrong_token_starts_no_session() -> None:
    assert start_session(tokens("admin-1"), "admin-2", NOW) is None
    assert start_session(tokens("admin-1"), "", NOW) is None


def test_a_session_ends_with_its_token() -> None:
    cookie = cookie_of(tokens("admin-1"), "admin-1")
    assert read_session(tokens("admin-2"), cookie, NOW) is None


def test_a_session_ends_after_its_lifetime() -> None:
    accepted = tokens("admin-1")
    cookie = cookie_of(accepted, "admin-1")
    assert read_session(accepted, cookie, NOW + LIFETIME - SECOND) is not None
    assert read_session(accepted, cookie, NOW + LIFETIME) is None


def test_the_cookie_and_the_secret_of_forms_contain_neither_token_nor_each_other() -> None:
    accepted = tokens("admin-token-1")
    cookie = cookie_of(accepted, "admin-token-1")
    session = read_session(accepted, cookie, NOW)
    assert session is not None
    assert "admin-token-1" not in cookie
    assert session.csrf not in cookie
    assert session.digest.hex() not in cookie + session.csrf
    assert cookie_of(accepted, "admin-token-1") != cookie


@given(some.data())
def test_a_changed_cookie_is_no_session(data: some.DataObject) -> None:
    accepted = tokens("admin-1")
    cookie = cookie_of(accepted, "admin-1")
    place = data.draw(some.integers(0, len(cookie) - 1))
    other = data.draw(some.characters().filter(lambda character: character != cookie[place]))
    assert read_session(accepted, cookie[:place] + other + cookie[place + 1 :], NOW) is None


@given(some.text(max_size=80))
def test_any_text_is_read_as_no_session(text: str) -> None:
    assert read_session(tokens("admin-1"), text, NOW) is None


def test_failed_sign_ins_are_throttled_for_their_address() -> None:
    seconds = 1000.0
    throttle = Throttle(lambda: seconds)
    for _ in range(5):
        assert throttle.seconds_to_wait("192.0.2.1") == 0
        throttle.failed("192.0.2.1")
        seconds += 1
    assert 0 < throttle.seconds_to_wait("192.0.2.1") <= 60
    assert throttle.seconds_to_wait("192.0.2.2") == 0
    seconds = 1061
    assert throttle.seconds_to_wait("192.0.2.1") == 0


def test_strangers_keep_nobody_else_from_signing_in() -> None:
    throttle = Throttle()
    for number in range(2000):
        throttle.failed(f"192.0.2.{number}")
    assert throttle.seconds_to_wait("198.51.100.1") == 0


def test_the_addresses_of_a_network_of_ipv6_count_as_one() -> None:
    throttle = Throttle()
    for number in range(5):
        throttle.failed(f"2001:db8::{number}")
    assert throttle.seconds_to_wait("2001:db8::ffff") > 0
    assert throttle.seconds_to_wait("2001:db8:0:1::1") == 0
