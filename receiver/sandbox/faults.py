"""What goes wrong between an event and its callback, on demand."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from enum import StrEnum
from random import Random
from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from receiver.domain.events import Api
from receiver.providers.bandwidth_codes import proves_nothing
from receiver.sandbox.timeline import DELIVERED_CODES, FINAL, Kind, Post, Sending, Step

Share = Annotated[float, Field(ge=0, le=1)]


class Fault(StrEnum):
    """What can go wrong with the callbacks of one recipient."""

    DUPLICATE = "duplicate"
    REORDER = "reorder"
    DELAY = "delay"
    LATE = "late"
    MISSING = "missing"
    SILENT = "silent"
    CONTRADICT = "contradict"
    UNKNOWN_TYPE = "unknown_type"
    BATCH = "batch"


MEANINGS: Final[Mapping[Fault, str]] = {
    Fault.DUPLICATE: "every callback comes twice or three times",
    Fault.REORDER: "the callbacks come in the opposite order",
    Fault.DELAY: "every callback comes 5 to 120 seconds late",
    Fault.LATE: "the final receipt comes 1 to 20 hours late",
    Fault.MISSING: "no final receipt ever comes",
    Fault.SILENT: "no callback ever comes",
    Fault.CONTRADICT: "both delivered and failed come",
    Fault.UNKNOWN_TYPE: "an event of a type that no document knows comes too",
    Fault.BATCH: "v2 callbacks come with several events in one array",
}
# with these, one event alone would show nothing
NEED_COMPANY: Final = frozenset({Fault.REORDER, Fault.BATCH})

# what concerns receipts alone, which inbound messages have none of
OF_RECEIPTS: Final = frozenset({Fault.LATE, Fault.MISSING, Fault.CONTRADICT})

_DELAY_SECONDS: Final = (5.0, 120.0)
_LATE_SECONDS: Final = (3600.0, 20 * 3600.0)
_COPY_SECONDS: Final = (0.1, 30.0)
_SECOND_THOUGHT_SECONDS: Final = (0.5, 20.0)
_UNFAMILIAR_SECONDS: Final = (0.1, 5.0)
_REORDER_SECONDS: Final = 0.2
_MOST_IN_A_BATCH: Final = 10
_LONGEST_BATCH_SECONDS: Final = 60.0
# what contradicts a delivered: refused by the carrier
_CONTRADICTING_CODES: Final = {Api.V1: 750, Api.V2: 4750}


class Rates(BaseModel):
    """How often things happen, as shares from 0 to 1: of recipients, however the callbacks of each are told."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True)

    failed: Share = Field(0, description="fail, with a code of the catalogue")
    unconfirmed: Share = Field(0, description="end with a code that proves nothing")
    duplicate: Share = Field(0, description=MEANINGS[Fault.DUPLICATE])
    reorder: Share = Field(0, description=MEANINGS[Fault.REORDER])
    delay: Share = Field(0, description=MEANINGS[Fault.DELAY])
    late: Share = Field(0, description=MEANINGS[Fault.LATE])
    missing: Share = Field(0, description=MEANINGS[Fault.MISSING])
    silent: Share = Field(0, description=MEANINGS[Fault.SILENT])
    contradict: Share = Field(0, description=MEANINGS[Fault.CONTRADICT])
    unknown_type: Share = Field(0, description=MEANINGS[Fault.UNKNOWN_TYPE])
    batch: Share = Field(0, description=MEANINGS[Fault.BATCH])

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.failed + self.unconfirmed > 1:
            raise ValueError("failed and unconfirmed are more than 1 together")
        return self

    def choose(self, chance: Random) -> frozenset[Fault]:
        """What goes wrong this time. One draw for each, so that a rate of one does not move the others."""
        return frozenset(each for each in Fault if chance.random() < getattr(self, each))


def posts(
    sending: Sending,
    steps: Iterable[Step],
    chosen: Mapping[str, Collection[Fault]],
    chance: Random,
) -> tuple[Post, ...]:
    """The callbacks for the steps of a message, in the order they are due; `chosen` is by recipient."""
    by_recipient: dict[str, list[Step]] = {recipient: [] for recipient in sending.recipients}
    for step in steps:
        by_recipient[step.recipient].append(step)
    told = [
        post
        for recipient, own in by_recipient.items()
        for post in _of_recipient(sending, recipient, own, chosen.get(recipient, ()), chance)
    ]
    told.sort(key=lambda post: post.after)
    if sending.api is Api.V2 and any(Fault.BATCH in misbehaviours for misbehaviours in chosen.values()):
        told = _in_batches(told)
    return tuple(told)


def _of_recipient(
    sending: Sending, recipient: str, steps: list[Step], chosen: Collection[Fault], chance: Random
) -> list[Post]:
    if Fault.SILENT in chosen:
        return []
    if Fault.CONTRADICT in chosen and sending.wants_receipts:
        steps = [*steps, *_contradiction(sending, recipient, steps, chance)]
    if Fault.MISSING in chosen:
        steps = [step for step in steps if step.kind not in FINAL]
    if Fault.UNKNOWN_TYPE in chosen:
        steps = [*steps, Step(chance.uniform(*_UNFAMILIAR_SECONDS), Kind.UNFAMILIAR, recipient)]
    told = [Post(step.after + _lag(step, chosen, chance), (step,)) for step in steps]
    if Fault.REORDER in chosen:
        told = _backwards(told)
    if Fault.DUPLICATE in chosen:
        told += [
            replace(post, after=post.after + chance.uniform(*_COPY_SECONDS))
            for post in told
            for _ in range(chance.randint(1, 2))
        ]
    return told


def _lag(step: Step, chosen: Collection[Fault], chance: Random) -> float:
    lag = 0.0
    if Fault.DELAY in chosen:
        lag += chance.uniform(*_DELAY_SECONDS)
    if Fault.LATE in chosen and step.kind in FINAL:
        lag += chance.uniform(*_LATE_SECONDS)
    return lag


def _contradiction(sending: Sending, recipient: str, steps: list[Step], chance: Random) -> list[Step]:
    """What is missing for delivered and a definite failure to be there both."""
    missing = []
    after = max((step.after for step in steps), default=0.0) + chance.uniform(*_SECOND_THOUGHT_SECONDS)
    if not any(step.kind is Kind.DELIVERED for step in steps):
        missing.append(Step(after, Kind.DELIVERED, recipient, DELIVERED_CODES[sending.api]))
    if not any(step.kind is Kind.FAILED and not proves_nothing(sending.api, step.code) for step in steps):
        missing.append(Step(after, Kind.FAILED, recipient, _CONTRADICTING_CODES[sending.api]))
    return missing


def _backwards(told: list[Post]) -> list[Post]:
    """The same callbacks, last first: the last when it is due, none before what it tells has happened."""
    ordered = sorted(told, key=lambda post: post.after, reverse=True)
    start = ordered[0].after if ordered else 0.0
    return [replace(post, after=start + place * _REORDER_SECONDS) for place, post in enumerate(ordered)]


def _in_batches(told: list[Post]) -> list[Post]:
    """The same events in fewer callbacks, each due with its last event."""
    batches: list[list[Post]] = []
    for post in told:
        batch = batches[-1] if batches else []
        if batch and len(batch) < _MOST_IN_A_BATCH and post.after - batch[0].after <= _LONGEST_BATCH_SECONDS:
            batch.append(post)
        else:
            batches.append([post])
    return [Post(batch[-1].after, tuple(step for post in batch for step in post.steps)) for batch in batches]
