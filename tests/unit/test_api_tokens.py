"""API tokens: their form in the settings and in a request, and what they permit."""

import base64

import pytest

from receiver.api.auth import Access, ApiToken, Tokens, basic_password, bearer


@pytest.mark.parametrize(
    ("entry", "presented", "access"),
    [
        ("secret", b"secret", Access.ADMIN),
        ("reporting:read:secret", b"secret", Access.READ),
        ("ops:admin:secret", b"secret", Access.ADMIN),
        ("ops:admin:se:cr:et", b"se:cr:et", Access.ADMIN),
        ("a:b:c", b"a:b:c", Access.ADMIN),
        ("pässword", "pässword".encode(), Access.ADMIN),
        ("secret", b"Secret", None),
        ("reporting:read:secret", b"reporting:read:secret", None),
        ("secret", b"", None),
        ("", b"", None),
        ("x:read:", b"", None),
    ],
)
def test_access_of_read_and_admin_tokens(entry: str, presented: bytes, access: Access | None) -> None:
    assert Tokens([entry]).access(presented) is access


def test_every_token_has_its_own_access() -> None:
    tokens = Tokens(["one:read:1", "2", "three:read:3"])
    assert [tokens.access(token) for token in (b"1", b"2", b"3", b"4")] == [
        Access.READ,
        Access.ADMIN,
        Access.READ,
        None,
    ]


def test_without_tokens_no_token_is_accepted() -> None:
    assert Tokens([]).access(b"anything") is None


def test_repr_of_a_token_does_not_contain_it() -> None:
    assert "secret" not in repr(ApiToken.parse("secret"))


@pytest.mark.parametrize(
    ("header", "token"),
    [
        (b"Bearer abc", b"abc"),
        (b"bearer abc", b"abc"),
        (b"Bearer  abc ", b"abc"),
        (b"Bearer", b""),
        (b"Basic abc", None),
        (b"", None),
    ],
)
def test_bearer_token_is_parsed_from_the_header(header: bytes, token: bytes | None) -> None:
    assert bearer(header) == token


@pytest.mark.parametrize(
    ("header", "token"),
    [
        (b"Basic " + base64.b64encode(b"anyone:abc"), b"abc"),
        (b"basic " + base64.b64encode(b":a:b:c"), b"a:b:c"),
        (b"Basic " + base64.b64encode(b"abc"), b""),
        (b"Basic !!!", None),
        (b"Basic", b""),
        (b"Bearer abc", None),
    ],
)
def test_basic_password_is_the_token_with_any_user_name(header: bytes, token: bytes | None) -> None:
    assert basic_password(header) == token
