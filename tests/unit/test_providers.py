"""The registry of providers: nothing of one collides with another, and each has what its users need."""

from datetime import UTC, datetime
from itertools import chain

import pytest

from receiver.domain.events import Api, Callback
from receiver.providers import PROVIDERS, parse
from receiver.providers.base import NO_CODES, Provider
from receiver.providers.registry import URLS, catalogue, failure_side, meaning

each_provider = pytest.mark.parametrize("provider", PROVIDERS.values(), ids=lambda provider: provider.api)


def test_every_api_has_its_provider() -> None:
    assert set(PROVIDERS) == set(Api)
    assert all(provider.api == api for api, provider in PROVIDERS.items())


def test_no_two_providers_share_a_url_a_title_or_a_source() -> None:
    paths = [url.path for url in chain.from_iterable(provider.urls for provider in PROVIDERS.values())]
    assert len(set(paths)) == len(paths) == len(URLS)
    assert len({provider.title for provider in PROVIDERS.values()}) == len(PROVIDERS)
    assert len({provider.source for provider in PROVIDERS.values()}) == len(PROVIDERS)


def test_urls_and_sources_of_bandwidth_stay_as_they_are() -> None:
    found = {url.path: (provider.api, url.route, url.methods) for provider, url in URLS}
    assert {path: found[path] for path in found if path.startswith("/callbacks/bandwidth/")} == {
        "/callbacks/bandwidth/v2": ("v2", "primary", ("POST",)),
        "/callbacks/bandwidth/v1": ("v1", "primary", ("GET", "POST")),
        "/callbacks/bandwidth/v1/fallback": ("v1", "fallback", ("GET", "POST")),
        "/callbacks/bandwidth/v2/fallback": ("v2", "fallback", ("POST",)),
    }
    assert (PROVIDERS[Api.V1].source, PROVIDERS[Api.V2].source) == ("/bandwidth/v1", "/bandwidth/v2")


@each_provider
@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"7", b'"x"', b"null", b"[[]]", b"\xff", b"{" * 9999])
def test_no_body_makes_a_parser_raise(provider: Provider, body: bytes) -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    for url in provider.urls:
        for method in url.methods:
            callback = Callback(id="c", received_at=at, api=provider.api, route=url.route, method=method, body=body)
            list(parse(callback))


def test_v2_always_sends_a_receipt_and_v1_only_if_requested() -> None:
    assert PROVIDERS[Api.V2].expects_receipt is None
    expects_receipt = PROVIDERS[Api.V1].expects_receipt
    assert expects_receipt
    assert [expects_receipt(state) for state in (None, "waiting", "delivered")] == [False, True, True]


@each_provider
def test_listed_codes_are_those_of_the_api_in_rising_order(provider: Provider) -> None:
    listed = provider.codes.listed()
    assert {entry.api for entry in listed} <= {provider.api}
    assert [entry.code for entry in listed] == sorted({entry.code for entry in listed})
    assert [entry for entry in catalogue() if entry.api == provider.api] == list(listed)
    for entry in listed:
        assert provider.codes.entry(entry.code) is entry
        assert provider.codes.reason(entry.code).name == entry.name
        assert failure_side(provider.api, entry.code) is provider.codes.failure_side(entry.code)


def test_code_of_a_provider_without_a_catalogue_has_a_meaning_of_its_own() -> None:
    assert NO_CODES.entry(40300) is None
    assert NO_CODES.reason(40300).name == "unlisted-40300"


@each_provider
def test_event_without_a_code_has_no_meaning(provider: Provider) -> None:
    assert meaning(provider.api, None) is None
