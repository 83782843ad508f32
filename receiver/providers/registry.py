"""The providers whose callbacks are accepted: one line each."""

from collections.abc import Iterator, Mapping
from typing import Final

from receiver.domain.callbacks import Callback, Element
from receiver.domain.events import Api
from receiver.providers import bandwidth
from receiver.providers.base import CallbackUrl, Provider

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
    """Yields the elements of a callback, as its provider parses it."""
    return PROVIDERS[callback.api].parse(callback)
