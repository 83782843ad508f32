"""Which verdict the tag of an event gets, and which events the policy refuses."""

from typing import Any

import pytest

from receiver.domain.events import Event, Quarantine, Rejected, Status, TagVerdict
from receiver.intake.fold import TagChecker
from receiver.tags import TagPolicy, sign
from tests.factories import make_event

KEYS = {"k1": "secret"}
SENDER, NUMBER, OTHER = "+15559999", "+15550001", "+15550009"
RECORD = TagChecker(keys=KEYS)
REQUIRE = TagChecker(keys=KEYS, policy=TagPolicy.REQUIRE)


def signed(key: str = "secret", kid: str = "k1", **bound: Any) -> str:
    return sign("order 7", key, kid=kid, **bound)


def tagged(tag: str | None, status: Status = Status.DELIVERED, **more: Any) -> Event:
    return make_event(status, fields={"tag": tag}, **more)


def verdict(event: Event) -> TagVerdict:
    checked = RECORD.check(event, 0)
    assert isinstance(checked, Event)
    return checked.tag_verdict


@pytest.mark.parametrize(
    ("tag", "expected", "reason"),
    [
        (signed(sender=SENDER, recipients=[NUMBER]), TagVerdict.VALID, None),
        (signed(), TagVerdict.VALID, None),
        (signed(sender="+1", recipients=["+2"]), TagVerdict.FORGED, Quarantine.TAG_FORGED),
        (signed("other"), TagVerdict.FORGED, Quarantine.TAG_FORGED),
        (signed(kid="k2"), TagVerdict.FORGED, Quarantine.TAG_FORGED),
        ("order 7", TagVerdict.UNSIGNED, Quarantine.TAG_UNSIGNED),
        ("order 7~r1.junk", TagVerdict.FORGED, Quarantine.TAG_FORGED),
        ("", TagVerdict.MISSING, Quarantine.TAG_MISSING),
        (None, TagVerdict.MISSING, Quarantine.TAG_MISSING),
    ],
)
def test_tag_is_rejected_only_if_the_policy_requires_a_valid_one(
    tag: str | None, expected: TagVerdict, reason: Quarantine | None
) -> None:
    event = tagged(tag)
    recorded, required = RECORD.check(event, 3), REQUIRE.check(event, 3)
    assert isinstance(recorded, Event)
    assert recorded.tag_verdict is expected
    if reason is None:
        assert required == recorded
    else:
        assert required == Rejected(3, reason, f"tag {expected}", event.message_id)


def test_the_tag_of_a_message_is_the_value_without_its_signature() -> None:
    checked = RECORD.check(tagged(signed()), 0)
    assert isinstance(checked, Event)
    assert checked.fields.tag == "order 7"


@pytest.mark.parametrize(
    ("bound", "recipient", "expected"),
    [
        # bound to recipients: the event's own recipient must be one of them
        ({"recipients": [NUMBER]}, NUMBER, TagVerdict.VALID),
        ({"recipients": [NUMBER]}, NUMBER.removeprefix("+"), TagVerdict.VALID),
        ({"recipients": [NUMBER.removeprefix("+")]}, NUMBER, TagVerdict.VALID),
        ({"recipients": [NUMBER]}, None, TagVerdict.VALID),
        ({"recipients": [NUMBER]}, OTHER, TagVerdict.FORGED),
        ({"recipients": [NUMBER]}, OTHER.removeprefix("+"), TagVerdict.FORGED),
        ({"recipients": [NUMBER]}, "+", TagVerdict.FORGED),
        ({"sender": SENDER, "recipients": [NUMBER]}, NUMBER, TagVerdict.VALID),
        ({"sender": SENDER, "recipients": [NUMBER]}, None, TagVerdict.VALID),
        ({"sender": SENDER, "recipients": [NUMBER]}, OTHER, TagVerdict.FORGED),
        # not bound to recipients: it proves the message, for whichever number
        ({"sender": SENDER}, OTHER, TagVerdict.VALID),
        ({"sender": SENDER}, None, TagVerdict.VALID),
        ({}, OTHER, TagVerdict.VALID),
        ({}, None, TagVerdict.VALID),
    ],
)
def test_a_tag_bound_to_recipients_is_forged_for_another_number(
    bound: dict[str, Any], recipient: str | None, expected: TagVerdict
) -> None:
    event = tagged(signed(**bound), recipient=recipient, to=(NUMBER,))
    assert verdict(event) is expected
    assert isinstance(REQUIRE.check(event, 0), Event) is (expected is TagVerdict.VALID)


@pytest.mark.parametrize("recipient", [NUMBER, OTHER, NUMBER.removeprefix("+"), None])
def test_a_tag_bound_to_a_group_is_valid_for_each_of_its_numbers(recipient: str | None) -> None:
    group = (NUMBER, OTHER)
    assert verdict(tagged(signed(recipients=group), recipient=recipient, to=group)) is TagVerdict.VALID
    assert verdict(tagged(signed(recipients=group), recipient=recipient, to=(NUMBER,))) is TagVerdict.FORGED


@pytest.mark.parametrize(
    ("bound", "recipient", "expected"),
    [
        # the one number that is known may be all there were
        ({"recipients": [NUMBER]}, NUMBER, TagVerdict.VALID),
        # or one of several
        ({"recipients": [NUMBER, OTHER]}, NUMBER, TagVerdict.UNCHECKED),
        ({"recipients": [NUMBER]}, OTHER, TagVerdict.UNCHECKED),
        ({"recipients": [NUMBER]}, None, TagVerdict.UNCHECKED),
        ({"sender": SENDER, "recipients": [NUMBER]}, None, TagVerdict.UNCHECKED),
        ({"sender": SENDER}, None, TagVerdict.VALID),
        ({}, OTHER, TagVerdict.VALID),
    ],
)
def test_a_bound_tag_is_unchecked_where_the_event_lacks_the_numbers(
    bound: dict[str, Any], recipient: str | None, expected: TagVerdict
) -> None:
    event = tagged(signed(**bound), recipient=recipient, to=())
    assert verdict(event) is expected
    if expected is TagVerdict.UNCHECKED:
        assert REQUIRE.check(event, 0) == Rejected(0, Quarantine.TAG_FORGED, "tag unchecked", event.message_id)


@pytest.mark.parametrize("recipient", [NUMBER, None])
def test_a_forged_tag_is_forged_also_where_the_event_lacks_the_numbers(recipient: str | None) -> None:
    assert verdict(tagged(signed("other"), recipient=recipient, to=())) is TagVerdict.FORGED


@pytest.mark.parametrize(
    "checker", [TagChecker(), TagChecker(keys=KEYS, policy=TagPolicy.OFF), TagChecker(policy=TagPolicy.RECORD)]
)
def test_without_keys_or_with_the_policy_off_an_event_stays_as_it_is(checker: TagChecker) -> None:
    for tag in (None, "", "order 7", "order 7~r1.junk"):
        event = tagged(tag)
        assert checker.check(event, 0) is event
    checked = checker.check(tagged(signed()), 0)
    assert isinstance(checked, Event)
    assert (checked.tag_verdict, checked.fields.tag) == (TagVerdict.UNCHECKED, "order 7")


def test_policy_require_without_keys_rejects_every_outbound_event() -> None:
    checker = TagChecker(policy=TagPolicy.REQUIRE)
    event = tagged("order 7")
    assert checker.check(event, 1) == Rejected(1, Quarantine.TAG_FORGED, "tag unchecked", event.message_id)


@pytest.mark.parametrize("checker", [TagChecker(), RECORD, REQUIRE])
def test_an_inbound_event_has_no_tag_to_check(checker: TagChecker) -> None:
    event = tagged(signed("other"), Status.RECEIVED, tag_verdict=TagVerdict.NOT_APPLICABLE)
    assert checker.check(event, 0) is event


def test_the_keys_are_not_shown() -> None:
    assert "secret" not in repr(RECORD)
