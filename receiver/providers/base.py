"""What a provider is: its callback URLs, its parser, and its rules for receipts, codes and signatures.

The page `adding-a-provider` shows a whole one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Final, Protocol

from receiver.domain.events import Api, Callback, Element, Event, Failure, Quarantine
from receiver.domain.reconciliation import Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """The meaning of a code, in words for people; `retryable` and `billable` are None if no document says."""

    name: str
    description: str
    category: str
    retryable: bool | None
    billable: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeEntry(Reason):
    """A code as the provider's documents list it.

    `outcome` is its meaning for the delivery (`delivered`, `failed`, `unconfirmed`), `retry_limit` how many retries
    make sense, `status` whether it is `current`, `historic` or `unlisted`, `v2_analogue` v2's number for a v1 code,
    `earlier_name` its name in earlier documents, where that differs.
    """

    api: Api
    code: int
    outcome: str
    retry_limit: int | None = None
    status: str = "current"
    v2_analogue: int | None = None
    first_documented: str | None = None
    notes: str | None = None
    earlier_name: str | None = None


class Codes:
    """The delivery codes of one API. This class itself is for a provider whose documents list none.

    `highest` is the highest code that there may be, None if nobody knows.
    """

    highest: int | None = None

    def listed(self) -> Sequence[CodeEntry]:
        """The codes that the documents list, in rising order."""
        return ()

    def unlisted(self, code: int) -> Reason:
        """The meaning of a code that no document lists."""
        return Reason(
            name=f"unlisted-{code}",
            description="Not in the provider's documents.",
            category="unknown",
            retryable=None,
            billable=None,
        )

    def failure_side(self, code: int | None) -> Failure:
        """On which side a message with this code failed."""
        return Failure.OTHER

    def entry(self, code: int) -> CodeEntry | None:
        """The code as the documents list it, if they do."""
        return self._by_number.get(code)

    def reason(self, code: int) -> Reason:
        """The meaning of a code, whether a document lists it or not."""
        listed = self.entry(code)
        if listed is None:
            return self.unlisted(code)
        return Reason(
            name=listed.name,
            description=listed.description,
            category=listed.category,
            retryable=listed.retryable,
            billable=listed.billable,
        )

    def categories(self) -> frozenset[str]:
        """The categories that codes may have."""
        return frozenset({self.unlisted(0).category, *(entry.category for entry in self.listed())})

    @cached_property
    def _by_number(self) -> dict[int, CodeEntry]:
        return {entry.code: entry for entry in self.listed()}


NO_CODES: Final = Codes()


@dataclass(frozen=True, slots=True)
class CallbackUrl:
    """One callback URL: its path, its methods, and its route (`primary` or `fallback`)."""

    path: str
    methods: tuple[str, ...] = ("POST",)
    route: str = "primary"


class Signature(Protocol):
    """Whether a callback has a valid signature, made with `key` not long before `now`."""

    def __call__(self, key: str, headers: Mapping[str, str], body: bytes, now: datetime) -> bool: ...


_OK: Final = 200
_REFUSED: Final = 401
_FORBIDDEN: Final = 403
_LIMITED: Final = 429


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """How one message is looked up at the provider, and the meaning of the answer.

    `target` makes the path and the query, below the URL of the API, from an account and a message id. `parse` yields
    the events that an answer proves, none if it proves nothing final, and never raises; the `query` of the entry names
    the message. An element rejected as `no-message-id` means that the provider does not know the message; so does
    `unknown_status`, the status of an answer.
    """

    target: Callable[[str, str], str]
    parse: Callable[[Callback], Iterator[Element]]
    unknown_status: int | None = None

    def answer(self, status: int, entry: Callback) -> Answer:
        """The meaning of an answer; `entry` is the entry of the journal that it would become."""
        if status == _REFUSED:
            return Answer.REFUSED
        if status == _FORBIDDEN:
            return Answer.FORBIDDEN
        if status == _LIMITED:
            return Answer.LIMITED
        if status == self.unknown_status:
            return Answer.UNKNOWN
        if status != _OK:
            return Answer.FAILED
        elements = list(self.parse(entry))
        if any(type(element) is Event for element in elements):
            return Answer.FINAL
        reasons = {element.reason for element in elements if type(element) is not Event}
        if not reasons:
            return Answer.PENDING
        return Answer.UNKNOWN if reasons == {Quarantine.NO_MESSAGE_ID} else Answer.UNUSABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """One API of a provider, with everything about it that other packages need.

    `title` and `fields` are printed when the server starts: the name of the API, and the fields at the provider that
    take its URLs, with user and password in them if `user_in_url`. `source` is that of its CloudEvents. `parse` yields
    the elements of a callback and never raises. `expects_receipt` tells from the `delivery_state` of an event whether a
    final event follows; None: always. Without `signature`, callbacks are authenticated by HTTP Basic before the body is
    read. `lookup` looks up a message without a final event; None: the provider cannot be queried.
    """

    api: Api
    title: str
    fields: str
    source: str
    urls: tuple[CallbackUrl, ...]
    parse: Callable[[Callback], Iterator[Element]]
    expects_receipt: Callable[[str | None], bool] | None = None
    codes: Codes = NO_CODES
    user_in_url: bool = False
    signature: Signature | None = None
    lookup: Lookup | None = None
