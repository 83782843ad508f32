"""Signed tags: the bytes that `sign` makes, and the forgeries that `verify` must refuse."""

import base64
import hmac
import subprocess
import sys
from collections.abc import Sequence

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from receiver.domain.events import TagVerdict
from receiver.errors import ReceiverError
from receiver.tags import MARKER, MAX_LENGTH, TagCheck, TagError, parse_keys, sign, verify

SECRET = "correct-horse-battery-staple"
KEYS = {"k1": SECRET}
SENDER = "+19195551234"
RECIPIENTS = ("+19195554321", "+14255550123")
BOUND = "order-4711~r1.k1.sr.N5Yk9QM5tDvuC_YuqYTTPSBht8j0P1gYruvv6wLLYJI"
UNBOUND = "order-4711~r1.k1.-.JY26pMU5MCdNlfwC2pA6EF3tsaFZKCJNgr013SWssSw"
SIGNATURE_LENGTH = len("~r1.k1.sr.") + 43

# computed with openssl, not with the code under test
VECTORS = [
    pytest.param("order-4711", "k1", None, None, UNBOUND, id="nothing bound"),
    pytest.param(
        "order-4711",
        "k1",
        SENDER,
        None,
        "order-4711~r1.k1.s.Q34WTfznqYj5IPpmZ1gCeiNkuuKGmPgGOx5dHSMfKfw",
        id="sender",
    ),
    pytest.param(
        "order-4711",
        "k1",
        None,
        RECIPIENTS,
        "order-4711~r1.k1.r.X9sZpH4ordb7raRxtOu65BcufsNgfAtiS0jkbFLhzls",
        id="recipients",
    ),
    pytest.param("order-4711", "k1", SENDER, RECIPIENTS, BOUND, id="both"),
    pytest.param(
        '{"id":"Ä ✓"}\nzwei',
        "K_-9",
        None,
        None,
        '{"id":"Ä ✓"}\nzwei~r1.K_-9.-.8e3o8u50ZxCKZpIPjZ7i-32PVfeC4WpU6ezloNCMrm8',
        id="beyond ascii, two lines",
    ),
    pytest.param("", "k1", None, None, "~r1.k1.-.WFycQdFK9uBc960I-o5nusCKURTZxtDw62lJd_zQK2w", id="empty"),
]

values = st.text(st.characters(exclude_categories=["Cs"]), max_size=80).filter(lambda text: MARKER not in text)
numbers = st.from_regex(r"\+?[1-9][0-9]{2,14}", fullmatch=True)
number_lists = st.lists(numbers, min_size=1, max_size=5)
kids = st.from_regex(r"[A-Za-z0-9_-]{1,32}", fullmatch=True)
secrets = st.one_of(
    st.binary(min_size=1, max_size=80), st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
)


def verdict(tag: str | None, sender: str | None = SENDER, recipients: Sequence[str] | None = RECIPIENTS) -> TagVerdict:
    return verify(tag, KEYS, sender=sender, recipients=recipients).verdict


def sign_carelessly(value: str) -> str:
    """A tag with a valid HMAC over a value that `sign` refuses."""
    signed = f"receiver-tag-1\nk1\n-\n\n\n{value}".encode()
    code = hmac.digest(SECRET.encode(), signed, "sha256")
    return f"{value}~r1.k1.-.{base64.urlsafe_b64encode(code).decode().rstrip('=')}"


def without_plus(number: str) -> str:
    return number.removeprefix("+")


@pytest.mark.parametrize(("value", "kid", "sender", "recipients", "tag"), VECTORS)
def test_sign_gives_the_documented_bytes(
    value: str, kid: str, sender: str | None, recipients: Sequence[str] | None, tag: str
) -> None:
    assert sign(value, SECRET, kid=kid, sender=sender, recipients=recipients) == tag
    check = verify(tag, {kid: SECRET}, sender=SENDER, recipients=RECIPIENTS)
    assert check == TagCheck(verdict=TagVerdict.VALID, value=value, kid=kid)


@given(values, secrets, kids, st.none() | numbers, st.none() | number_lists)
@example("~r1", SECRET, "k1", None, None)
@example("~", SECRET, "r1", SENDER, None)
def test_signed_tag_is_valid_and_has_its_value(
    value: str, secret: str | bytes, kid: str, sender: str | None, recipients: list[str] | None
) -> None:
    tag = sign(value, secret, kid=kid, sender=sender, recipients=recipients)
    check = verify(tag, {"other": b"x", kid: secret}, sender=sender, recipients=recipients)
    assert check == TagCheck(verdict=TagVerdict.VALID, value=value, kid=kid)
    signature = tag.removeprefix(value)
    assert signature.isascii()
    assert signature.isprintable()


@given(values, number_lists, st.data())
def test_order_plus_and_repetition_of_recipients_do_not_matter(
    value: str, recipients: list[str], data: st.DataObject
) -> None:
    tag = sign(value, SECRET, kid="k1", sender=SENDER, recipients=recipients)
    shuffled = data.draw(st.permutations(recipients + recipients[:1]))
    spelt = [data.draw(st.sampled_from(["", "+"])) + without_plus(number) for number in shuffled]
    assert verdict(tag, without_plus(SENDER), spelt) is TagVerdict.VALID


@given(numbers, number_lists)
def test_a_bound_tag_is_forged_for_any_other_sender_or_set_of_recipients(sender: str, recipients: list[str]) -> None:
    same_sender = without_plus(sender) == without_plus(SENDER)
    same_recipients = set(map(without_plus, recipients)) == set(map(without_plus, RECIPIENTS))
    assume(not (same_sender or same_recipients))
    assert verdict(BOUND, sender, RECIPIENTS) is TagVerdict.FORGED
    assert verdict(BOUND, SENDER, recipients) is TagVerdict.FORGED
    assert verdict(BOUND, sender, recipients) is TagVerdict.FORGED


@pytest.mark.parametrize(
    "recipients",
    [RECIPIENTS[:1], (*RECIPIENTS, "+12025550100"), ("19195554321,14255550123",)],
    ids=["a subset", "a superset", "two in one text"],
)
def test_a_bound_tag_is_forged_for_a_neighbouring_set_of_recipients(recipients: Sequence[str]) -> None:
    assert verdict(BOUND, SENDER, recipients) is TagVerdict.FORGED


@given(st.integers(0, SIGNATURE_LENGTH - 1), st.characters())
def test_a_changed_character_of_the_signature_is_never_valid(place: int, character: str) -> None:
    at = len(BOUND) - SIGNATURE_LENGTH + place
    assume(BOUND[at] != character)
    changed = BOUND[:at] + character + BOUND[at + 1 :]
    expected = TagVerdict.UNSIGNED if place < len(MARKER) else TagVerdict.FORGED
    assert verdict(changed) is expected


@given(st.integers(0, SIGNATURE_LENGTH), st.characters())
def test_an_inserted_character_is_never_valid(place: int, character: str) -> None:
    at = len(BOUND) - SIGNATURE_LENGTH + place
    assert verdict(BOUND[:at] + character + BOUND[at:]) in {TagVerdict.FORGED, TagVerdict.UNSIGNED}


@given(values)
def test_a_changed_value_is_forged(value: str) -> None:
    assume(value != "order-4711")
    assert verdict(BOUND.replace("order-4711", value)) is TagVerdict.FORGED


@pytest.mark.parametrize("length", range(1, SIGNATURE_LENGTH))
def test_a_truncated_tag_is_never_valid(length: int) -> None:
    expected = TagVerdict.UNSIGNED if SIGNATURE_LENGTH - length < len(MARKER) else TagVerdict.FORGED
    assert verdict(BOUND[:-length]) is expected


MAC = BOUND[-43:]
MALFORMED = [
    pytest.param(BOUND + "\n", id="line feed behind"),
    pytest.param(BOUND + "=", id="padded"),
    pytest.param(BOUND + BOUND, id="twice"),
    pytest.param(BOUND + "~r1.", id="second marker"),
    pytest.param("x~r1.k1.-.A" + BOUND, id="marker inside the value"),
    pytest.param(BOUND.swapcase().replace("~R1.K1.SR.", "~r1.k1.sr."), id="swapped case"),
    pytest.param(BOUND.replace(".sr.", ".rs."), id="scope the other way round"),
    pytest.param(BOUND.replace(".sr.", ".."), id="scope empty"),
    pytest.param(BOUND.replace(".sr.", ".-."), id="scope taken off"),
    pytest.param(BOUND.replace(".sr.", ".s."), id="scope narrowed"),
    pytest.param(BOUND.replace(".k1.", ".κ1."), id="look-alike kid"),
    pytest.param(BOUND.replace(".k1.", ".k１."), id="full-width digit in the kid"),
    pytest.param(BOUND.replace(MAC, "А" + MAC[1:]), id="Cyrillic letter in the mac"),
    pytest.param(BOUND.replace(MAC, "١" + MAC[1:]), id="Arabic digit in the mac"),
    pytest.param(BOUND.replace(".k1.", ".K1."), id="kid in another case"),
    pytest.param(BOUND.replace(".k1.", ".k2."), id="key that is not ours, or retired"),
    pytest.param(BOUND.replace(".k1.", ".../../etc."), id="kid that is a path"),
    pytest.param(BOUND.replace(".k1.", "." + "k" * 33 + "."), id="kid too long"),
    pytest.param(f"order-4711~r1.none.-.{'A' * 43}", id="algorithm none"),
    pytest.param("order-4711~r1.none.-.", id="algorithm none, no mac"),
    pytest.param(f"order-4711~r1.k1.-.{'A' * 43}", id="mac of zeroes"),
    pytest.param("order-4711~r1.", id="marker alone"),
    pytest.param("x" * 1_000_000 + BOUND, id="a million characters"),
    pytest.param("\ud800" + BOUND, id="half a surrogate pair"),
    pytest.param("order-4711\0" + BOUND.removeprefix("order-4711"), id="NUL"),
]


@pytest.mark.parametrize("tag", MALFORMED)
def test_malformed_signature_is_forged(tag: str) -> None:
    assert verdict(tag) is TagVerdict.FORGED


@pytest.mark.parametrize("value", ["x" * (MAX_LENGTH - 51), "order~r1.4711"], ids=["too long", "with a marker"])
def test_valid_hmac_of_a_tag_that_sign_refuses_is_forged(value: str) -> None:
    assert verdict(sign_carelessly("order-4711")) is TagVerdict.VALID
    assert verdict(sign_carelessly(value)) is TagVerdict.FORGED


UNSIGNED = [
    pytest.param("order-4711", id="plain"),
    pytest.param(BOUND.replace("~r1.", "~r2."), id="a later version"),
    pytest.param(BOUND.replace("~r1.", "∼r1."), id="look-alike marker"),
    pytest.param(BOUND.replace("~r1.", "~R1."), id="marker in another case"),
    pytest.param("x" * 1_000_000, id="a million characters"),
    pytest.param("\ud800\0", id="no text at all"),
]


@pytest.mark.parametrize("tag", UNSIGNED)
def test_a_tag_without_the_marker_is_unsigned_and_its_value_itself(tag: str) -> None:
    assert verify(tag, KEYS) == TagCheck(verdict=TagVerdict.UNSIGNED, value=tag)


@pytest.mark.parametrize("keys", [KEYS, {}], ids=["keys", "no keys"])
@pytest.mark.parametrize("tag", [None, ""])
def test_no_tag_is_missing(tag: str | None, keys: dict[str, str]) -> None:
    assert verify(tag, keys) == TagCheck(verdict=TagVerdict.MISSING, value=None)


WITHOUT_KEYS = [
    pytest.param(BOUND, "order-4711", "k1", id="signed"),
    pytest.param("order-4711", "order-4711", None, id="not signed"),
    pytest.param("order-4711~r1.", "order-4711~r1.", None, id="not parseable"),
]


@pytest.mark.parametrize(("tag", "value", "kid"), WITHOUT_KEYS)
def test_without_keys_a_tag_is_unchecked_and_has_its_value(tag: str, value: str, kid: str | None) -> None:
    assert verify(tag, {}) == TagCheck(verdict=TagVerdict.UNCHECKED, value=value, kid=kid)


@pytest.mark.parametrize(
    ("sender", "recipients"),
    [(None, RECIPIENTS), ("", RECIPIENTS), (SENDER, None), (SENDER, ())],
    ids=["no sender", "empty sender", "no recipients", "none of them"],
)
def test_a_bound_tag_is_unchecked_where_the_event_lacks_the_numbers(
    sender: str | None, recipients: Sequence[str] | None
) -> None:
    assert verify(BOUND, KEYS, sender=sender, recipients=recipients) == TagCheck(
        verdict=TagVerdict.UNCHECKED, value="order-4711", kid="k1"
    )


def test_a_forged_tag_still_shows_the_value_and_the_kid_it_claims() -> None:
    check = verify(BOUND, KEYS, sender="+12025550100", recipients=RECIPIENTS)
    assert check == TagCheck(verdict=TagVerdict.FORGED, value="order-4711", kid="k1")


def test_line_feeds_in_numbers_are_refused() -> None:
    tag = sign("14255550123\nvalue", SECRET, kid="k1", sender="1", recipients=["2"])
    moved = tag.replace("14255550123\nvalue", "value")
    assert verdict(moved, "1\n2", ["14255550123"]) is TagVerdict.FORGED
    assert verdict(moved, "1", ["2\n14255550123"]) is TagVerdict.FORGED


def test_rotated_keys_verify_their_own_tags() -> None:
    rotated = {"k2": "new", "k1": SECRET}
    assert verify(UNBOUND, rotated).verdict is TagVerdict.VALID
    assert verify(sign("order-4711", "new", kid="k2"), rotated).verdict is TagVerdict.VALID
    assert verify(sign("order-4711", "new", kid="k1"), rotated).verdict is TagVerdict.FORGED
    assert verify(UNBOUND, {"k2": "new"}).verdict is TagVerdict.FORGED


def test_one_recipient_may_be_given_as_a_text() -> None:
    assert sign("v", SECRET, kid="k1", recipients=SENDER) == sign("v", SECRET, kid="k1", recipients=[SENDER])
    tag = sign("v", SECRET, kid="k1", recipients=[SENDER])
    assert verify(tag, KEYS, recipients=SENDER).verdict is TagVerdict.VALID


def test_a_secret_may_be_text_or_its_bytes() -> None:
    assert sign("v", "Schlüssel", kid="k1") == sign("v", "Schlüssel".encode(), kid="k1")


UNSIGNABLE = [
    pytest.param({"value": "a~r1.b"}, "~r1.", id="marker in the value"),
    pytest.param({"value": "\ud800"}, "surrogate", id="half a surrogate pair"),
    pytest.param({"key": ""}, "key", id="empty key"),
    pytest.param({"key": b""}, "key", id="empty key in bytes"),
    pytest.param({"kid": ""}, "kid", id="empty kid"),
    pytest.param({"kid": "a.b"}, "kid", id="dot in the kid"),
    pytest.param({"kid": "k1\n"}, "kid", id="line feed in the kid"),
    pytest.param({"kid": "k" * 33}, "kid", id="kid too long"),
    pytest.param({"kid": "ключ"}, "kid", id="kid beyond ascii"),
    pytest.param({"sender": ""}, "empty", id="empty sender"),
    pytest.param({"sender": "+"}, "empty", id="plus alone"),
    pytest.param({"sender": "1\n2"}, "line feed", id="line feed in the sender"),
    pytest.param({"sender": "1,2"}, "comma", id="comma in the sender"),
    pytest.param({"recipients": []}, "no recipients", id="no recipients"),
    pytest.param({"recipients": ["1,2"]}, "comma", id="comma in a recipient"),
    pytest.param({"recipients": ["1", ""]}, "empty", id="empty recipient"),
]


@pytest.mark.parametrize(("wrong", "word"), UNSIGNABLE)
def test_sign_refuses_a_tag_that_could_not_be_verified(wrong: dict[str, object], word: str) -> None:
    arguments = {"value": "v", "key": SECRET, "kid": "k1"} | wrong
    with pytest.raises(TagError, match=word) as refused:
        sign(arguments.pop("value"), arguments.pop("key"), **arguments)  # type: ignore[arg-type]
    assert SECRET not in str(refused.value)
    assert isinstance(refused.value, ReceiverError)


def test_a_signed_tag_has_at_most_1024_characters() -> None:
    room = MAX_LENGTH - len("~r1.k1.-.") - 43
    longest = sign("ä" * room, SECRET, kid="k1")
    assert len(longest) == MAX_LENGTH
    assert verify(longest, KEYS).verdict is TagVerdict.VALID
    with pytest.raises(TagError, match="1025"):
        sign("ä" * (room + 1), SECRET, kid="k1")


def test_keys_are_read_in_their_order_and_secrets_may_hold_colons() -> None:
    assert list(parse_keys(["new:a:b:", "old:c"]).items()) == [("new", "a:b:"), ("old", "c")]
    assert parse_keys([]) == {}


WRONG_KEYS = [
    pytest.param("hunter2", id="no kid"),
    pytest.param(":hunter2", id="empty kid"),
    pytest.param("k3:", id="empty secret"),
    pytest.param("hunter2/base64=:hunter2", id="kid with other characters"),
    pytest.param("k1:hunter2", id="kid used twice"),
    pytest.param("k3:hunter2\udcff", id="bytes that are not UTF-8"),
]


@pytest.mark.parametrize("entry", WRONG_KEYS)
def test_wrong_tag_key_is_named_by_its_number_without_its_secret(entry: str) -> None:
    with pytest.raises(TagError, match="tag key 3 ") as refused:
        parse_keys(["k1:" + SECRET, "k2:x", entry])
    shown = f"{refused.value!r} {refused.value.__cause__!r}"
    assert "hunter2" not in shown
    assert SECRET not in shown


def test_receiver_tags_imports_only_the_standard_library() -> None:
    """Only the standard library comes with it, so that a program that sends can import it cheaply."""
    script = "import sys, receiver.tags; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    foreign = set(loaded.stdout.split()) - sys.stdlib_module_names
    assert {name for name in foreign if not name.startswith("_")} == {"receiver"}
