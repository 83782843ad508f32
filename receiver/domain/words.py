"""The words for what a callback tells. They need the standard library alone, so `receiver.tags` does too."""

from enum import StrEnum


class Word(StrEnum):
    """A word of a fixed vocabulary, hashed as the text it is: `Enum` hashes in Python, for every look-up of a key."""

    __hash__ = str.__hash__


class Api(Word):
    """Which generation of Bandwidth's API an event belongs to."""

    V1 = "v1"
    V2 = "v2"


class Direction(Word):
    IN = "in"
    OUT = "out"


class Status(Word):
    """Where a delivery stands, in rising rank; `received` is for inbound messages alone."""

    UNKNOWN = "unknown"
    QUEUED = "queued"
    SENDING = "sending"
    SENT = "sent"
    UNCONFIRMED = "unconfirmed"
    DELIVERED = "delivered"
    FAILED = "failed"
    READ = "read"
    RECEIVED = "received"


class Failure(Word):
    """On which side a message failed: `refused` before the network, `network` behind it, or not told (`other`)."""

    REFUSED = "refused"
    NETWORK = "network"
    OTHER = "other"


class TagVerdict(Word):
    """What checking the signature of an event's tag gave."""

    VALID = "valid"
    UNSIGNED = "unsigned"
    FORGED = "forged"
    MISSING = "missing"
    NOT_APPLICABLE = "not-applicable"
    UNCHECKED = "unchecked"


class Quarantine(Word):
    """Why an element of a callback was kept raw instead of becoming an event."""

    UNREADABLE = "unreadable"
    UNKNOWN_TYPE = "unknown-type"
    NO_MESSAGE_ID = "no-message-id"
    FOREIGN_PRODUCT = "foreign-product"
    TOO_LARGE = "too-large"
    TAG_FORGED = "tag-forged"
    TAG_UNSIGNED = "tag-unsigned"
    TAG_MISSING = "tag-missing"


def number_key(number: str | None) -> str:
    """A number as it is compared: without the plus. The key of "no number" is the empty string."""
    return number.removeprefix("+") if number else ""
