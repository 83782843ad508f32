"""Checks the tags of events: verifies the signature, and rejects events that the policy does not allow."""

from typing import Final

import msgspec
from msgspec import structs

from receiver import tags
from receiver.domain.callbacks import Rejected
from receiver.domain.events import Direction, Event, Quarantine, TagVerdict
from receiver.tags import TagPolicy

_REASONS: Final = {
    TagVerdict.UNSIGNED: Quarantine.TAG_UNSIGNED,
    TagVerdict.MISSING: Quarantine.TAG_MISSING,
}
_Found = tuple[TagVerdict, str | None]
"""The verdict on a tag, and the tag without its signature."""


class TagChecker(msgspec.Struct, frozen=True, kw_only=True):
    """Checks the tags of events with the configured keys."""

    keys: dict[str, str] = msgspec.field(default_factory=dict)
    policy: TagPolicy = TagPolicy.RECORD

    def __repr__(self) -> str:
        """Omits the keys, which are secret."""
        return f"TagChecker(policy={self.policy.value!r})"

    def check(self, event: Event, index: int) -> Event | Rejected:
        """The event with its verdict and with the user's value as its tag, or its rejection by the policy.

        `index` is the place of the event in its callback.
        """
        if event.direction is Direction.IN:
            return event
        verdict, value = self._verdict(event)
        if self.policy is TagPolicy.REQUIRE and verdict is not TagVerdict.VALID:
            reason = _REASONS.get(verdict, Quarantine.TAG_FORGED)
            return Rejected(index, reason, f"tag {verdict}", event.message_id)
        return _with(event, verdict, value)

    def _verdict(self, event: Event) -> _Found:
        if self.policy is TagPolicy.OFF or not self.keys:
            return TagVerdict.UNCHECKED, _without_signature(event.fields.tag)
        recipients = event.fields.recipients
        if recipients or event.recipient is None:
            return self._verify(event, recipients)
        # Without message.to, the number that is known may be the only recipient of the message, or one of several.
        found = self._verify(event, (event.recipient,))
        return found if found[0] is not TagVerdict.FORGED else self._verify(event, ())

    def _verify(self, event: Event, recipients: tuple[str, ...]) -> _Found:
        fields = event.fields
        checked = tags.verify(
            fields.tag,
            self.keys,
            sender=fields.sender,
            recipients=recipients or None,
            recipient=event.recipient,
        )
        return checked.verdict, checked.value


def _without_signature(tag: str | None) -> str | None:
    return tags.verify(tag, {}).value if tag and tags.MARKER in tag else tag


def _with(event: Event, verdict: TagVerdict, value: str | None) -> Event:
    """The event with the verdict and the value of its tag; the same object if neither differs."""
    fields = event.fields
    if fields.tag and value != fields.tag:
        fields = structs.replace(fields, tag=value)
    if verdict is event.tag_verdict and fields is event.fields:
        return event
    return structs.replace(event, tag_verdict=verdict, fields=fields)
