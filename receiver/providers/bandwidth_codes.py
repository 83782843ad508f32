"""Bandwidth's delivery codes: the meaning of each listed code, and what the digits say of an unlisted one.

The key of a code is (API version, number), never its name: names moved between editions of Bandwidth's documents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

import orjson

from receiver.domain.events import Api, Failure
from receiver.providers.base import CodeEntry, Codes, Reason

__all__ = ["CODES", "BandwidthCodes", "CodeEntry", "Reason", "catalogue", "failure_side", "proves_nothing"]


@dataclass(frozen=True, slots=True)
class _Class:
    """The meaning of the leading digits of a v2 code."""

    category: str
    meaning: str
    retryable: bool | None
    billable: bool | None


# The scheme of Bandwidth's error page: the first digit says whose fault the failure is, the second who decided it.
_REFUSED_BY_BANDWIDTH: Final = _Class("client", "refused by Bandwidth; sending again gives the same", False, False)
_FAILED_AT_BANDWIDTH: Final = _Class("service", "failed at Bandwidth; a retry may succeed", True, False)
_CLASSES: Final = {
    "41": _REFUSED_BY_BANDWIDTH,
    "43": _REFUSED_BY_BANDWIDTH,
    "44": _REFUSED_BY_BANDWIDTH,
    "47": _Class("carrier-client", "refused by the carrier; sending again gives the same", False, True),
    "51": _FAILED_AT_BANDWIDTH,
    "52": _FAILED_AT_BANDWIDTH,
    "55": _FAILED_AT_BANDWIDTH,
    "56": _Class("carrier-service", "failed at the carrier; one retry may succeed", True, True),
    "4": _Class("client", "refused; sending again gives the same", False, None),
    "5": _Class("service", "failed; a retry may succeed", True, None),
    "9": _Class("ambiguous", "the outcome is unknown", None, True),
}
# V1 documents no scheme; its last two digits are those of v2 (600 is 5600, 720 is 4720, 902 is 9902).
_V1_CLASSES: Final = {
    "6": _Class("carrier-service", "failed at the carrier", None, None),
    "7": _Class("carrier-client", "refused by the carrier", None, None),
    "9": _Class("ambiguous", "the outcome is unknown", None, None),
}
_NO_ERROR: Final = _Class("success", "no error", None, None)
_UNKNOWN: Final = _Class("unknown", "its digits tell nothing", None, None)

_V1_UNCONFIRMED: Final = frozenset({902, 999})
_REFUSED_HUNDREDS: Final = range(41, 45)
_NETWORK_HUNDREDS: Final = frozenset({47, *range(50, 60)})


@cache
def catalogue() -> tuple[CodeEntry, ...]:
    """Every code known, v1 first, in rising order."""
    rows = orjson.loads(files("receiver.providers").joinpath("codes.json").read_bytes())
    return tuple(CodeEntry(**{**row, "api": Api(row["api"])}) for row in rows)


class BandwidthCodes(Codes):
    """The codes of one API version."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.highest = 999 if api is Api.V1 else 9999

    def listed(self) -> Sequence[CodeEntry]:
        return tuple(entry for entry in catalogue() if entry.api is self._api)

    def unlisted(self, code: int) -> Reason:
        return _reason_by_digits(self._api, code)

    def failure_side(self, code: int | None) -> Failure:
        return failure_side(self._api, code)

    def categories(self) -> frozenset[str]:
        classes = (_V1_CLASSES if self._api is Api.V1 else _CLASSES).values()
        return super().categories() | {kind.category for kind in (_UNKNOWN, *classes)}


CODES: Final = {api: BandwidthCodes(api) for api in (Api.V1, Api.V2)}


def _reason_by_digits(api: Api, code: int) -> Reason:
    kind = _class(api, str(code))
    return Reason(
        name=f"unlisted-{code}",
        description=f"Not in Bandwidth's tables; by its digits: {kind.meaning}.",
        category=kind.category,
        retryable=kind.retryable,
        billable=kind.billable,
    )


def _class(api: Api, digits: str) -> _Class:
    if digits == "0":
        return _NO_ERROR
    if api is Api.V1:
        return _V1_CLASSES.get(digits[0], _UNKNOWN) if len(digits) == 3 else _UNKNOWN
    # Three digits under v2 are the codes of international messaging, with meanings of their own.
    if len(digits) != 4:
        return _UNKNOWN
    return _CLASSES.get(digits[:2]) or _CLASSES.get(digits[0], _UNKNOWN)


def proves_nothing(api: Api, code: int | None) -> bool:
    """Whether the code of a failure means only that no receipt came, or that the outcome is unknown."""
    if code is None:
        return False
    return code in _V1_UNCONFIRMED if api is Api.V1 else 9000 <= code <= 9999


def failure_side(api: Api, code: int | None) -> Failure:
    """On which side a message failed, by its code; without a code (v1: without a v2 analogue) it is the network's."""
    if api is Api.V1 and code is not None:
        listed = CODES[Api.V1].entry(code)
        code = listed.v2_analogue if listed else None
    if code is None or code // 100 in _NETWORK_HUNDREDS:
        return Failure.NETWORK
    return Failure.REFUSED if code // 100 in _REFUSED_HUNDREDS else Failure.OTHER
