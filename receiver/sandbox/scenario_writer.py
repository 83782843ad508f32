"""Writes the scenario of a message. The same seed, ordinal and rates give the same scenario.

Magic numbers are recipients whose messages end with a known code, or whose callbacks have a known fault: `+1555201` and
four digits is a code of v1, `+1555202` and four digits a code of v2, `+1555209` and four digits a fault in both. A code
works only with its own API version. As the sender of an outbound message a magic number has no effect. Messages with
the media file `too-large` are refused.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath
from random import Random
from typing import Final
from urllib.parse import urlsplit

from receiver.domain.events import Api
from receiver.providers.bandwidth_codes import CodeEntry, catalogue
from receiver.sandbox.scenario import (
    DELIVERED,
    DELIVERED_CODES,
    NEED_SEVERAL_EVENTS,
    RECEIPT_FAULTS,
    FinalStatus,
    Kind,
    Receipts,
    Scenario,
    Sending,
    Step,
    is_refused,
    plan_callbacks,
)
from receiver.sandbox.settings import DESCRIPTIONS, Fault, Rates

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


# A media file with this name, whatever its extension, counts as larger than Bandwidth sends.
_TOO_LARGE: Final = "too-large"
_TOO_LARGE_CODES: Final = {Api.V1: 751, Api.V2: 4411}


def media_final_status(api: Api, media: Iterable[str]) -> FinalStatus | None:
    """How a message with these media ends: refused if one is `…/too-large.jpg`; None: nothing follows from them."""
    names = (PurePosixPath(urlsplit(url).path).stem for url in media)
    return FinalStatus(Kind.FAILED, _TOO_LARGE_CODES[api]) if _TOO_LARGE in names else None


@cache
def _by_number() -> dict[tuple[Api, str], MagicNumber]:
    return {(api, magic.number): magic for magic in magic_numbers() for api in Api if magic.api in (api, None)}


# Codes for an invalid recipient. In a group, v2 then reports delivered for every recipient, the invalid one too.
INVALID_NUMBER: Final = frozenset({4303, 4406, 4720})

_REFUSED_SECONDS: Final = (0.1, 0.4)
_FIRST_SECONDS: Final = (0.5, 1.0)
_SENT_SECONDS: Final = (0.2, 0.5)
_SMS_SECONDS: Final = (0.5, 4.0)
_MMS_SECONDS: Final = (2.0, 8.0)
_READ_SECONDS: Final = (5.0, 60.0)


def write_scenario(
    sending: Sending, rates: Rates, *, seed: int, ordinal: int, final_status: FinalStatus | None = None
) -> Scenario:
    """Writes the scenario of the outbound message with this ordinal. `final_status` applies to every recipient."""
    random = Random(f"{seed}/{ordinal}")  # noqa: S311
    final_statuses, faults = {}, {}
    for recipient in sending.recipients:
        magic = magic_number(sending.api, recipient)
        drawn, drawn_faults = _draw_final_status(sending.api, rates, random), rates.draw(random)
        final_statuses[recipient] = final_status or (magic and magic.final_status) or drawn
        faults[recipient] = drawn_faults | {magic.fault} if magic and magic.fault else drawn_faults
    needs_sent = any(not NEED_SEVERAL_EVENTS.isdisjoint(recipient_faults) for recipient_faults in faults.values())
    steps = _steps(sending, final_statuses, random, with_sent=sending.sent_events or needs_sent)
    return Scenario(steps, plan_callbacks(sending, steps, faults, random))


def write_inbound_scenario(api: Api, owner: str, sender: str, rates: Rates, *, seed: int, ordinal: int) -> Scenario:
    """Writes the scenario of one copy of an inbound message. The fault of a sender's magic number applies."""
    random = Random(f"{seed}/{ordinal}")  # noqa: S311
    faults, magic = rates.draw(random), magic_number(api, sender)
    if magic and magic.fault:
        faults |= {magic.fault}
    steps = (Step(0.0, Kind.RECEIVED, owner),)
    sending = Sending(api=api, recipients=(owner,))
    return Scenario(steps, plan_callbacks(sending, steps, {owner: faults - RECEIPT_FAULTS}, random))


def _steps(
    sending: Sending, final_statuses: Mapping[str, FinalStatus], random: Random, *, with_sent: bool
) -> tuple[Step, ...]:
    """Returns the steps that lead each recipient to its final status, by time."""
    steps: list[Step] = []
    for recipient, final_status in final_statuses.items():
        if sending.api is Api.V1:
            steps += _v1_steps(sending, recipient, final_status, random)
        else:
            steps += _v2_steps(sending, recipient, final_status, random, with_sent=with_sent)
    return tuple(sorted(steps, key=lambda step: step.after))


def _draw_final_status(api: Api, rates: Rates, random: Random) -> FinalStatus:
    # Both codes are drawn whatever the rates, so that a rate does not change the random numbers after it.
    fraction, failed_code, unconfirmed_code = (
        random.random(),
        random.choice(_codes(api, "failed")),
        random.choice(_codes(api, "unconfirmed")),
    )
    if fraction < rates.failed:
        return FinalStatus(Kind.FAILED, failed_code)
    if fraction < rates.failed + rates.unconfirmed:
        return FinalStatus(Kind.FAILED, unconfirmed_code)
    return DELIVERED


@cache
def _codes(api: Api, outcome: str) -> tuple[int, ...]:
    return tuple(
        entry.code
        for entry in catalogue()
        if entry.api is api and entry.outcome == outcome and entry.status == "current"
    )


def _v1_steps(sending: Sending, recipient: str, final_status: FinalStatus, random: Random) -> list[Step]:
    """v1: state sent or error, then the requested receipts. An MMS has no receipts, but its error has the code."""
    first = random.uniform(*_FIRST_SECONDS)
    last = first + random.uniform(*(_MMS_SECONDS if sending.is_mms else _SMS_SECONDS))
    failed = final_status.kind is Kind.FAILED
    reports_code = sending.is_mms or sending.receipts is not Receipts.NONE
    if failed and is_refused(Api.V1, final_status.code):
        return [Step(first, Kind.FAILED, recipient, final_status.code if reports_code else None)]
    steps = [Step(first, Kind.WAITING if sending.receipts is Receipts.ALL else Kind.SENT, recipient)]
    if failed and reports_code:
        steps.append(Step(last, Kind.FAILED, recipient, final_status.code))
    elif not failed and sending.receipts is Receipts.ALL:
        steps.append(Step(last, Kind.DELIVERED, recipient, DELIVERED_CODES[Api.V1]))
    return steps


def _v2_steps(
    sending: Sending, recipient: str, final_status: FinalStatus, random: Random, *, with_sent: bool
) -> list[Step]:
    """v2: one final event, and `sending` before it for MMS and group messages."""
    if sending.is_group and final_status.code in INVALID_NUMBER:
        return _invalid_in_group(recipient, final_status, random)
    if final_status.kind is Kind.FAILED and is_refused(Api.V2, final_status.code):
        return [Step(random.uniform(*_REFUSED_SECONDS), Kind.FAILED, recipient, final_status.code)]
    by_mms = sending.is_mms or sending.is_group
    after, steps = random.uniform(*_FIRST_SECONDS), []
    if by_mms and not sending.mms_receipts:
        # Without carrier receipts, delivered means handed to Bandwidth's own switch. What the carrier does with the
        # message is never reported.
        return [Step(after, Kind.DELIVERED, recipient)]
    if by_mms:
        steps.append(Step(after, Kind.SENDING, recipient))
    if with_sent:
        after += random.uniform(*_SENT_SECONDS)
        steps.append(Step(after, Kind.SENT, recipient))
    after += random.uniform(*(_MMS_SECONDS if by_mms else _SMS_SECONDS))
    kind = Kind.FAILED if final_status.kind is Kind.FAILED else Kind.DELIVERED
    steps.append(Step(after, kind, recipient, final_status.code))
    if final_status.kind is Kind.READ:
        steps.append(Step(after + random.uniform(*_READ_SECONDS), Kind.READ, recipient))
    return steps


def _invalid_in_group(recipient: str, final_status: FinalStatus, random: Random) -> list[Step]:
    """Bandwidth's documented anomaly: failed for the invalid number, then delivered for every number of the group."""
    failed_after = random.uniform(*_REFUSED_SECONDS)
    return [
        Step(failed_after, Kind.FAILED, recipient, final_status.code),
        Step(failed_after + random.uniform(*_MMS_SECONDS), Kind.DELIVERED, recipient),
    ]
