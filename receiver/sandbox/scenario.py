"""What becomes of a message: the same for the same seed, ordinal and rates."""

from collections.abc import Mapping
from functools import cache
from random import Random
from typing import Final

from receiver.domain.events import Api
from receiver.providers.bandwidth_codes import catalogue
from receiver.sandbox.faults import NEED_COMPANY, OF_RECEIPTS, Rates, posts
from receiver.sandbox.numbers import magic
from receiver.sandbox.timeline import (
    DELIVERED,
    DELIVERED_CODES,
    Kind,
    Outcome,
    Receipts,
    Script,
    Sending,
    Step,
    is_refusal,
)

# of a recipient's number that cannot be one: in a group, v2 then tells of everybody that it was delivered
INVALID_NUMBER: Final = frozenset({4303, 4406, 4720})

_REFUSED_SECONDS: Final = (0.1, 0.4)
_FIRST_SECONDS: Final = (0.5, 1.0)
_SENT_SECONDS: Final = (0.2, 0.5)
_SMS_SECONDS: Final = (0.5, 4.0)
_MMS_SECONDS: Final = (2.0, 8.0)
_READ_SECONDS: Final = (5.0, 60.0)


def write(sending: Sending, rates: Rates, *, seed: int, ordinal: int, outcome: Outcome | None = None) -> Script:
    """The script of the message with this ordinal; `outcome`, if given, is everybody's."""
    chance = Random(f"{seed}/{ordinal}")  # noqa: S311
    ends, chosen = {}, {}
    for recipient in sending.recipients:
        known = magic(sending.api, recipient)
        drawn, misbehaviours = _draw(sending.api, rates, chance), rates.choose(chance)
        ends[recipient] = outcome or (known and known.outcome) or drawn
        chosen[recipient] = misbehaviours | {known.misbehaviour} if known and known.misbehaviour else misbehaviours
    talkative = sending.sent_events or any(not NEED_COMPANY.isdisjoint(each) for each in chosen.values())
    told = steps(sending, ends, chance, with_sent=talkative)
    return Script(told, posts(sending, told, chosen, chance))


def write_inbound(api: Api, owner: str, sender: str, rates: Rates, *, seed: int, ordinal: int) -> Script:
    """The script of one copy of an inbound message; a sender's magic number misbehaves too."""
    chance = Random(f"{seed}/{ordinal}")  # noqa: S311
    chosen, known = rates.choose(chance), magic(api, sender)
    if known and known.misbehaviour:
        chosen |= {known.misbehaviour}
    received = (Step(0.0, Kind.RECEIVED, owner),)
    told = posts(Sending(api=api, recipients=(owner,)), received, {owner: chosen - OF_RECEIPTS}, chance)
    return Script(received, told)


def steps(
    sending: Sending, ends: Mapping[str, Outcome], chance: Random, *, with_sent: bool = False
) -> tuple[Step, ...]:
    """What happens to a message with these outcomes by recipient, in the order it happens."""
    told: list[Step] = []
    for recipient, outcome in ends.items():
        if sending.api is Api.V1:
            told += _v1(sending, recipient, outcome, chance)
        else:
            told += _v2(sending, recipient, outcome, chance, with_sent=with_sent)
    return tuple(sorted(told, key=lambda step: step.after))


def _draw(api: Api, rates: Rates, chance: Random) -> Outcome:
    drawn, failure, doubt = (
        chance.random(),
        chance.choice(_codes(api, "failed")),
        chance.choice(_codes(api, "unconfirmed")),
    )
    if drawn < rates.failed:
        return Outcome(Kind.FAILED, failure)
    return Outcome(Kind.FAILED, doubt) if drawn < rates.failed + rates.unconfirmed else DELIVERED


@cache
def _codes(api: Api, outcome: str) -> tuple[int, ...]:
    return tuple(
        entry.code
        for entry in catalogue()
        if entry.api is api and entry.outcome == outcome and entry.status == "current"
    )


def _v1(sending: Sending, recipient: str, outcome: Outcome, chance: Random) -> list[Step]:
    """State sent or error, and the receipts asked for. An MMS has none, but its error tells the code."""
    first = chance.uniform(*_FIRST_SECONDS)
    last = first + chance.uniform(*(_MMS_SECONDS if sending.is_mms else _SMS_SECONDS))
    failed = outcome.kind is Kind.FAILED
    tells_code = sending.is_mms or sending.receipts is not Receipts.NONE
    if failed and is_refusal(Api.V1, outcome.code):
        return [Step(first, Kind.FAILED, recipient, outcome.code if tells_code else None)]
    told = [Step(first, Kind.WAITING if sending.receipts is Receipts.ALL else Kind.SENT, recipient)]
    if failed and tells_code:
        told.append(Step(last, Kind.FAILED, recipient, outcome.code))
    elif not failed and sending.receipts is Receipts.ALL:
        told.append(Step(last, Kind.DELIVERED, recipient, DELIVERED_CODES[Api.V1]))
    return told


def _v2(sending: Sending, recipient: str, outcome: Outcome, chance: Random, *, with_sent: bool) -> list[Step]:
    """One final event; before it, MMS and group messages are `sending`."""
    if sending.is_group and outcome.code in INVALID_NUMBER:
        return _invalid_in_group(recipient, outcome, chance)
    if outcome.kind is Kind.FAILED and is_refusal(Api.V2, outcome.code):
        return [Step(chance.uniform(*_REFUSED_SECONDS), Kind.FAILED, recipient, outcome.code)]
    by_mms = sending.is_mms or sending.is_group
    now, told = chance.uniform(*_FIRST_SECONDS), []
    if by_mms and not sending.mms_receipts:
        # handed to Bandwidth's own switch: nobody hears what the carrier makes of it
        return [Step(now, Kind.DELIVERED, recipient)]
    if by_mms:
        told.append(Step(now, Kind.SENDING, recipient))
    if with_sent:
        now += chance.uniform(*_SENT_SECONDS)
        told.append(Step(now, Kind.SENT, recipient))
    now += chance.uniform(*(_MMS_SECONDS if by_mms else _SMS_SECONDS))
    told.append(Step(now, Kind.FAILED if outcome.kind is Kind.FAILED else Kind.DELIVERED, recipient, outcome.code))
    if outcome.kind is Kind.READ:
        told.append(Step(now + chance.uniform(*_READ_SECONDS), Kind.READ, recipient))
    return told


def _invalid_in_group(recipient: str, outcome: Outcome, chance: Random) -> list[Step]:
    """The documented anomaly: failed for the invalid number, then delivered for every number, the invalid one too."""
    failed = chance.uniform(*_REFUSED_SECONDS)
    return [
        Step(failed, Kind.FAILED, recipient, outcome.code),
        Step(failed + chance.uniform(*_MMS_SECONDS), Kind.DELIVERED, recipient),
    ]
