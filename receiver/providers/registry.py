"""The providers whose callbacks are accepted, and the delivery codes of all of them. A code's key is (API, number)."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from typing import Final

from receiver.domain.events import RECONCILED, REGISTERED, Api, Callback, Element, Failure, Quarantine, Rejected
from receiver.providers import bandwidth, sends
from receiver.providers.base import CallbackUrl, CodeEntry, Provider, Reason

# Requests are compared with the URLs in this order: the busiest API comes first.
PROVIDERS: Final[Mapping[Api, Provider]] = {
    provider.api: provider
    for provider in (
        bandwidth.V2,
        bandwidth.V1,
    )
}

URLS: Final[tuple[tuple[Provider, CallbackUrl], ...]] = tuple(
    sorted(
        ((provider, url) for provider in PROVIDERS.values() for url in provider.urls),
        key=lambda pair: pair[1].route != "primary",
    )
)
"""Every callback URL with its provider, the primary ones first."""


def parse(callback: Callback) -> Iterator[Element]:
    """Yields the elements of an entry of the journal: of a callback or an answer, as its provider parses it."""
    if callback.route == REGISTERED:
        return sends.parse(callback)
    provider = PROVIDERS[callback.api]
    if callback.route != RECONCILED:
        return provider.parse(callback)
    if provider.lookup is None:
        return iter([Rejected(0, Quarantine.UNREADABLE, f"messages of {callback.api} cannot be looked up")])
    return provider.lookup.parse(callback)


@lru_cache(maxsize=64)
def source(api: Api, prefix: str | None) -> str:
    """The `source` of published events: `prefix` and the API, or without a prefix that of the provider."""
    return f"{prefix.rstrip('/')}/{api}" if prefix is not None else PROVIDERS[api].source


@cache
def catalogue() -> Sequence[CodeEntry]:
    """Every code that documents list, by API, in rising order."""
    return tuple(entry for api in sorted(PROVIDERS) for entry in PROVIDERS[api].codes.listed())


def entry(api: Api, code: int) -> CodeEntry | None:
    """The code as the documents list it, if they do."""
    return PROVIDERS[api].codes.entry(code)


@lru_cache(maxsize=1024)
def reason(api: Api, code: int) -> Reason:
    """The meaning of a code, whether a document lists it or not."""
    return PROVIDERS[api].codes.reason(code)


def meaning(api: Api, code: int | None) -> Reason | None:
    """The meaning of a code that came with an event. An unlisted 0 is the absence of an error and means nothing."""
    if code is None or (code == 0 and entry(api, code) is None):
        return None
    return reason(api, code)


def failure_side(api: Api, code: int | None) -> Failure:
    """On which side a message failed, by its code."""
    return PROVIDERS[api].codes.failure_side(code)
