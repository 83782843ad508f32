"""The fixed words of events and deliveries. Standard library only, as `receiver.tags` is, which uses them."""

from enum import StrEnum


class Word(StrEnum):
    """A word of a fixed vocabulary, hashed as a `str`: `Enum.__hash__` is Python code that runs for every look-up."""

    __hash__ = str.__hash__


class Api(Word):
    """The API that a message came through, as it is stored; `receiver.providers` knows what follows from it.

    `v1` (Catapult) and `v2` are the versions of Bandwidth's API.
    """

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
    """On which side a message failed: `refused` before the network, `network` behind it, `other` if it is unknown."""

    REFUSED = "refused"
    NETWORK = "network"
    OTHER = "other"


class TagVerdict(Word):
    """The result of checking the signature of an event's tag."""

    VALID = "valid"
    UNSIGNED = "unsigned"
    FORGED = "forged"
    MISSING = "missing"
    NOT_APPLICABLE = "not-applicable"
    UNCHECKED = "unchecked"


class Quarantine(Word):
    """Why an element of a callback is quarantined instead of becoming an event."""

    UNREADABLE = "unreadable"
    UNKNOWN_TYPE = "unknown-type"
    NO_MESSAGE_ID = "no-message-id"
    FOREIGN_PRODUCT = "foreign-product"
    TOO_LARGE = "too-large"
    TAG_FORGED = "tag-forged"
    TAG_UNSIGNED = "tag-unsigned"
    TAG_MISSING = "tag-missing"


def number_key(number: str | None) -> str:
    """The form in which numbers are compared: without the plus. The key of "no number" is the empty string."""
    return number.removeprefix("+") if number else ""
