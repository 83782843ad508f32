"""The signature in the tag of a message, which proves that an event is about a message of this sender.

A signed tag is `<value>~r1.<kid>.<scope>.<mac>`: the user's value as it is, then printable ASCII. `scope` names the
numbers that the signature covers: `-` none, `s` the sender, `r` the recipients, `sr` both. `mac` is HMAC-SHA256 in
base64url without padding, over six lines joined by a line feed: `receiver-tag-1`, kid, scope, sender, recipients,
value. Only the value, which comes last, may hold line feeds of its own, so no two tags share these bytes.
"""

import base64
import hmac
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from receiver.domain.vocabulary import TagVerdict, number_key
from receiver.errors import ReceiverError

MARKER: Final = "~r1."
MAX_LENGTH: Final = 1024

_VERSION: Final = "receiver-tag-1"
_KID: Final = re.compile(r"[A-Za-z0-9_-]{1,32}", re.ASCII)
_NOT_IN_NUMBERS: Final = frozenset("\n,")
_SIGNATURE: Final = re.compile(rf"(?P<kid>{_KID.pattern})\.(?P<scope>-|s|r|sr)\.(?P<mac>[A-Za-z0-9_-]{{43}})", re.ASCII)


class TagError(ReceiverError, ValueError):
    """A tag that cannot be signed, or a wrong list of keys. The message never contains a secret."""


class TagPolicy(StrEnum):
    """The treatment of outbound events whose tag is not valid."""

    OFF = "off"
    RECORD = "record"
    REQUIRE = "require"


@dataclass(frozen=True, slots=True, kw_only=True)
class TagCheck:
    """The result of a tag check: the verdict, the value without signature, and the id of the key."""

    verdict: TagVerdict
    value: str | None
    kid: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Signed:
    """The parts of a signed tag whose signature is not checked yet."""

    value: str
    kid: str
    scope: str
    mac: str


def sign(
    value: str,
    key: str | bytes,
    *,
    kid: str,
    sender: str | None = None,
    recipients: str | Sequence[str] | None = None,
) -> str:
    """The tag to send to Bandwidth with the message; raises TagError if it cannot be signed.

    With `sender` or `recipients` (one number or several) the tag is valid only for a message with these numbers.
    """
    _refuse_unsignable(value, key, kid)
    scope = ("s" * (sender is not None) + "r" * (recipients is not None)) or "-"
    mac = _mac(key, kid=kid, scope=scope, sender=sender, recipients=_listed(recipients), value=value)
    tag = f"{value}{MARKER}{kid}.{scope}.{mac}"
    if len(tag) > MAX_LENGTH:
        raise TagError(f"the signed tag has {len(tag)} characters, {MAX_LENGTH} are allowed")
    return tag


def verify(
    tag: str | None,
    keys: Mapping[str, str | bytes],
    *,
    sender: str | None = None,
    recipients: str | Sequence[str] | None = None,
    recipient: str | None = None,
) -> TagCheck:
    """Checks the tag of an outbound event against the numbers in the event; `keys` maps kids to secrets.

    `sender` and `recipients` are those of the message. `recipient` is the number of the event, if it has one: a tag
    that is bound to recipients is not valid for any other number.
    """
    if not tag:
        return TagCheck(verdict=TagVerdict.MISSING, value=None)
    signed = _parse(tag)
    if signed is None:
        return TagCheck(verdict=_verdict_unsigned(tag, keys), value=tag)
    verdict = _verdict_signed(signed, keys, sender, _listed(recipients), recipient)
    return TagCheck(verdict=verdict, value=signed.value, kid=signed.kid)


def parse_keys(entries: Iterable[str]) -> dict[str, str]:
    """The keys in a list of `"kid:secret"`, in its order; the secret may contain colons.

    An error names an entry by its number in the list, not by its kid, which may be half of a secret.
    """
    keys: dict[str, str] = {}
    for number, entry in enumerate(entries, start=1):
        kid, _, secret = entry.partition(":")
        if not _KID.fullmatch(kid) or not secret:
            raise TagError(f'tag key {number} is not "kid:secret" with a kid of 1 to 32 of A-Z a-z 0-9 _ -')
        if kid in keys:
            raise TagError(f"tag key {number} has the kid of an earlier key; give each key its own kid")
        _utf8(secret, f"tag key {number}")
        keys[kid] = secret
    return keys


def _refuse_unsignable(value: str, key: str | bytes, kid: str) -> None:
    if not _KID.fullmatch(kid):
        raise TagError("a kid is 1 to 32 of A-Z a-z 0-9 _ -")
    if not key:
        raise TagError("the key is empty")
    if MARKER in value:
        raise TagError(f"the value contains {MARKER}, which begins a signature")


def _listed(recipients: str | Sequence[str] | None) -> Sequence[str]:
    return (recipients,) if isinstance(recipients, str) else recipients or ()


def _parse(tag: str) -> _Signed | None:
    """The parts of a signed tag; None for a tag that does not have the exact form of a signed tag."""
    value, _, signature = tag.partition(MARKER)
    parts = _SIGNATURE.fullmatch(signature) if len(tag) <= MAX_LENGTH else None
    return _Signed(value=value, **parts.groupdict()) if parts else None


def _verdict_unsigned(tag: str, keys: Mapping[str, str | bytes]) -> TagVerdict:
    if not keys:
        return TagVerdict.UNCHECKED
    return TagVerdict.FORGED if MARKER in tag else TagVerdict.UNSIGNED


def _verdict_signed(
    signed: _Signed,
    keys: Mapping[str, str | bytes],
    sender: str | None,
    recipients: Sequence[str],
    recipient: str | None,
) -> TagVerdict:
    if not keys:
        return TagVerdict.UNCHECKED
    if signed.kid not in keys:
        return TagVerdict.FORGED
    if ("s" in signed.scope and not sender) or ("r" in signed.scope and not recipients):
        return TagVerdict.UNCHECKED
    if "r" in signed.scope and not _is_among(recipient, recipients):
        return TagVerdict.FORGED
    is_authentic = _is_authentic(signed, keys[signed.kid], sender, recipients)
    return TagVerdict.VALID if is_authentic else TagVerdict.FORGED


def _is_among(recipient: str | None, recipients: Sequence[str]) -> bool:
    return recipient is None or number_key(recipient) in map(number_key, recipients)


def _is_authentic(signed: _Signed, key: str | bytes, sender: str | None, recipients: Sequence[str]) -> bool:
    """Whether `sign` makes this signature. A tag that `sign` refuses cannot have a valid one."""
    try:
        mac = _mac(
            key,
            kid=signed.kid,
            scope=signed.scope,
            sender=sender,
            recipients=recipients,
            value=signed.value,
        )
    except TagError:
        return False
    return hmac.compare_digest(mac, signed.mac)


def _mac(key: str | bytes, *, kid: str, scope: str, sender: str | None, recipients: Sequence[str], value: str) -> str:
    """The HMAC over the value and the numbers in the scope."""
    from_ = _number(sender) if "s" in scope else ""
    to = _numbers(recipients) if "r" in scope else ""
    signed = "\n".join((_VERSION, kid, scope, from_, to, value))
    secret = _utf8(key, "the key") if isinstance(key, str) else key
    digest = hmac.digest(secret, _utf8(signed, "the value or a number"), "sha256")
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")


def _numbers(numbers: Sequence[str]) -> str:
    if not numbers:
        raise TagError("there are no recipients to bind the tag to")
    return ",".join(sorted({_number(number) for number in numbers}))


def _number(number: str | None) -> str:
    key = number_key(number)
    if not key or not _NOT_IN_NUMBERS.isdisjoint(key):
        raise TagError("a number is empty, or contains a comma or a line feed")
    return key


def _utf8(text: str, what: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise TagError(f"{what} contains half of a surrogate pair, which is not text") from None
