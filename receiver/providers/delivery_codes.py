"""The delivery codes of all providers. The key of a code is (API, number), never its name."""

from collections.abc import Sequence
from functools import cache, lru_cache

from receiver.domain.events import Api, Failure
from receiver.providers.base import CodeEntry, Reason
from receiver.providers.registry import PROVIDERS

__all__ = ["CodeEntry", "Reason", "catalogue", "entry", "failure_side", "meaning", "reason"]


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
