"""Magic numbers: recipients whose messages end or misbehave in a known way.

`+1555201` and four digits is a code of v1, `+1555202` and four digits one of v2, `+1555209` and four digits a
misbehaviour in both. A number means something only in its own generation, and nothing as a sender.
"""

from dataclasses import dataclass
from functools import cache
from typing import Final

from receiver.domain.events import Api
from receiver.providers.bandwidth_codes import CodeEntry, catalogue
from receiver.sandbox.faults import MEANINGS, Fault
from receiver.sandbox.timeline import Kind, Outcome

_CODES: Final = {Api.V1: "+1555201", Api.V2: "+1555202"}
_MISBEHAVIOURS: Final = "+1555209"
# numbers that stay what they are, whatever is added
_PLACES: Final = {
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
_READ: Final = f"{_MISBEHAVIOURS}0100"


@dataclass(frozen=True, slots=True)
class Magic:
    """A magic number, the generation it works in (None: both), and what it does."""

    number: str
    api: Api | None
    meaning: str
    outcome: Outcome | None = None
    misbehaviour: Fault | None = None


@cache
def magic_numbers() -> tuple[Magic, ...]:
    """Every magic number."""
    return (
        *(_of_code(entry) for entry in catalogue()),
        *(Magic(of(each), None, MEANINGS[each], misbehaviour=each) for each in Fault),
        Magic(_READ, Api.V2, "the message is delivered, then read", outcome=Outcome(Kind.READ)),
    )


def magic(api: Api, number: str) -> Magic | None:
    """What a recipient's number means in a generation, if anything."""
    return _by_number().get((api, number))


def of(misbehaviour: Fault) -> str:
    """The number that misbehaves so."""
    return f"{_MISBEHAVIOURS}{_PLACES[misbehaviour]:04}"


def of_code(api: Api, code: int) -> str:
    """The number that gives a code."""
    return f"{_CODES[api]}{code:04}"


def _of_code(entry: CodeEntry) -> Magic:
    ends = Outcome(Kind.DELIVERED if entry.outcome == "delivered" else Kind.FAILED, entry.code)
    return Magic(of_code(entry.api, entry.code), entry.api, f"{entry.outcome} with {entry.code} {entry.name}", ends)


@cache
def _by_number() -> dict[tuple[Api, str], Magic]:
    return {(api, each.number): each for each in magic_numbers() for api in Api if each.api in (api, None)}
