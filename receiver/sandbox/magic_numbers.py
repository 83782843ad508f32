"""Magic numbers: recipients whose messages end with a known code, or whose callbacks have a known fault.

`+1555201` and four digits is a code of v1, `+1555202` and four digits a code of v2, `+1555209` and four digits a
fault in both. A code works only with its own API version. As the sender of an outbound message a magic number has no
effect.
"""

from dataclasses import dataclass
from functools import cache
from typing import Final

from receiver.domain.events import Api
from receiver.providers.bandwidth_codes import CodeEntry, catalogue
from receiver.sandbox.faults import DESCRIPTIONS, Fault
from receiver.sandbox.scenario import FinalStatus, Kind

_CODE_PREFIXES: Final = {Api.V1: "+1555201", Api.V2: "+1555202"}
_FAULT_PREFIX: Final = "+1555209"
# Documented numbers: a new fault gets the next one, existing ones never change.
_FAULT_SUFFIXES: Final = {
    Fault.DUPLICATE: 1,
    Fault.REORDER: 2,
    Fault.DELAY: 3,
    Fault.LATE: 4,
    Fault.MISSING: 5,
    Fault.SILENT: 6,
    Fault.CONTRADICT: 7,
    Fault.UNKNOWN_TYPE: 8,
    Fault.BATCH: 9,
}
_READ_NUMBER: Final = f"{_FAULT_PREFIX}0100"


@dataclass(frozen=True, slots=True)
class MagicNumber:
    """A magic number, the API version it works with (None: both), and its effect."""

    number: str
    api: Api | None
    meaning: str
    final_status: FinalStatus | None = None
    fault: Fault | None = None


@cache
def magic_numbers() -> tuple[MagicNumber, ...]:
    """Every magic number."""
    return (
        *(_for_code(entry) for entry in catalogue()),
        *(MagicNumber(fault_number(fault), None, DESCRIPTIONS[fault], fault=fault) for fault in Fault),
        MagicNumber(_READ_NUMBER, Api.V2, "the message is delivered, then read", final_status=FinalStatus(Kind.READ)),
    )


def magic_number(api: Api, number: str) -> MagicNumber | None:
    """The magic number of an API version, or None for an ordinary number."""
    return _by_number().get((api, number))


def fault_number(fault: Fault) -> str:
    """The number whose callbacks have a fault."""
    return f"{_FAULT_PREFIX}{_FAULT_SUFFIXES[fault]:04}"


def code_number(api: Api, code: int) -> str:
    """The number whose messages end with a code."""
    return f"{_CODE_PREFIXES[api]}{code:04}"


def _for_code(entry: CodeEntry) -> MagicNumber:
    kind = Kind.DELIVERED if entry.outcome == "delivered" else Kind.FAILED
    return MagicNumber(
        code_number(entry.api, entry.code),
        entry.api,
        f"{entry.outcome} with {entry.code} {entry.name}",
        FinalStatus(kind, entry.code),
    )


@cache
def _by_number() -> dict[tuple[Api, str], MagicNumber]:
    return {(api, magic.number): magic for magic in magic_numbers() for api in Api if magic.api in (api, None)}
