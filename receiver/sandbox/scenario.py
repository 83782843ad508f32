"""The scenario of a message: what happens to it, which callbacks report it, and the faults that make the two differ."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from random import Random
from typing import Final

from receiver.domain.events import Api, Failure
from receiver.providers.bandwidth_codes import failure_side, proves_nothing
from receiver.sandbox.settings import Fault


class Kind(StrEnum):
    """What an event reports; `unknown_type` is an event whose type is in no document of Bandwidth's."""

    SENDING = "sending"
    SENT = "sent"
    WAITING = "waiting"
    DELIVERED = "delivered"
    FAILED = "failed"
    READ = "read"
    RECEIVED = "received"
    UNKNOWN_TYPE = "unknown_type"


FINAL: Final = frozenset({Kind.DELIVERED, Kind.FAILED, Kind.READ})


class Receipts(StrEnum):
    """Which delivery receipts a v1 message requests."""

    NONE = "none"
    ERROR = "error"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class FinalStatus:
    """How the message ends for one recipient: delivered, read, or failed with a code."""

    kind: Kind
    code: int | None = None


DELIVERED: Final = FinalStatus(Kind.DELIVERED)
# v1 has a code for success, v2 has none.
DELIVERED_CODES: Final[Mapping[Api, int | None]] = {Api.V1: 0, Api.V2: None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """The properties of an outbound message that its scenario depends on.

    `receipts` applies to v1 only. `mms_receipts` and `sent_events` select v2's optional events, as in
    `SandboxSettings`.
    """

    api: Api
    recipients: tuple[str, ...]
    is_mms: bool = False
    receipts: Receipts = Receipts.NONE
    mms_receipts: bool = True
    sent_events: bool = False

    @property
    def is_group(self) -> bool:
        return len(self.recipients) > 1

    @property
    def has_all_receipts(self) -> bool:
        """Whether both success and failure are reported."""
        return self.api is Api.V2 or self.receipts is Receipts.ALL


@dataclass(frozen=True, slots=True)
class Step:
    """One event about one recipient, `after` seconds after the message was created.

    A failure has no code if the v1 message did not request a receipt for it.
    """

    after: float
    kind: Kind
    recipient: str
    code: int | None = None


@dataclass(frozen=True, slots=True)
class PlannedCallback:
    """One callback: when it is due, in seconds after the message was created, and the events it contains."""

    after: float
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Scenario:
    """What happens to a message, and the callbacks that report it. Faults make the two differ."""

    steps: tuple[Step, ...]
    callbacks: tuple[PlannedCallback, ...]


def is_refused(api: Api, code: int | None) -> bool:
    """Whether a failure with this code happens before the message reaches the network."""
    return failure_side(api, code) is Failure.REFUSED


# --- faults ---

# These faults show only where a recipient has more than one event.
NEED_SEVERAL_EVENTS: Final = frozenset({Fault.REORDER, Fault.BATCH})
# These faults concern delivery receipts, which inbound messages do not have.
RECEIPT_FAULTS: Final = frozenset({Fault.LATE, Fault.MISSING, Fault.CONTRADICT})

_DELAY_SECONDS: Final = (5.0, 120.0)
_LATE_SECONDS: Final = (3600.0, 20 * 3600.0)
_DUPLICATE_SECONDS: Final = (0.1, 30.0)
_CONTRADICTION_SECONDS: Final = (0.5, 20.0)
_UNKNOWN_TYPE_SECONDS: Final = (0.1, 5.0)
_REORDER_SECONDS: Final = 0.2
_MAX_BATCH_EVENTS: Final = 10
_MAX_BATCH_SECONDS: Final = 60.0
# The failure that contradicts a delivered status: rejected by the carrier.
_CONTRADICTING_CODES: Final = {Api.V1: 750, Api.V2: 4750}


def plan_callbacks(
    sending: Sending,
    steps: Iterable[Step],
    faults: Mapping[str, Collection[Fault]],
    random: Random,
) -> tuple[PlannedCallback, ...]:
    """Returns the callbacks that report the steps of a message, by due time. `faults` is by recipient."""
    by_recipient: dict[str, list[Step]] = {recipient: [] for recipient in sending.recipients}
    for step in steps:
        by_recipient[step.recipient].append(step)
    callbacks = [
        callback
        for recipient, recipient_steps in by_recipient.items()
        for callback in _recipient_callbacks(sending, recipient, recipient_steps, faults.get(recipient, ()), random)
    ]
    callbacks.sort(key=lambda callback: callback.after)
    if sending.api is Api.V2 and any(Fault.BATCH in recipient_faults for recipient_faults in faults.values()):
        callbacks = _batched(callbacks)
    return tuple(callbacks)


def _recipient_callbacks(
    sending: Sending, recipient: str, steps: list[Step], faults: Collection[Fault], random: Random
) -> list[PlannedCallback]:
    if Fault.SILENT in faults:
        return []
    if Fault.CONTRADICT in faults and sending.has_all_receipts:
        steps = [*steps, *_contradicting_steps(sending, recipient, steps, random)]
    if Fault.MISSING in faults:
        steps = [step for step in steps if step.kind not in FINAL]
    if Fault.UNKNOWN_TYPE in faults:
        steps = [*steps, Step(random.uniform(*_UNKNOWN_TYPE_SECONDS), Kind.UNKNOWN_TYPE, recipient)]
    callbacks = [PlannedCallback(step.after + _delay(step, faults, random), (step,)) for step in steps]
    if Fault.REORDER in faults:
        callbacks = _reversed(callbacks)
    if Fault.DUPLICATE in faults:
        callbacks += [
            replace(callback, after=callback.after + random.uniform(*_DUPLICATE_SECONDS))
            for callback in callbacks
            for _ in range(random.randint(1, 2))
        ]
    return callbacks


def _delay(step: Step, faults: Collection[Fault], random: Random) -> float:
    delay = 0.0
    if Fault.DELAY in faults:
        delay += random.uniform(*_DELAY_SECONDS)
    if Fault.LATE in faults and step.kind in FINAL:
        delay += random.uniform(*_LATE_SECONDS)
    return delay


def _contradicting_steps(sending: Sending, recipient: str, steps: list[Step], random: Random) -> list[Step]:
    """Returns the steps to add so that the recipient has both a delivered step and a definite failure."""
    added = []
    after = max((step.after for step in steps), default=0.0) + random.uniform(*_CONTRADICTION_SECONDS)
    if not any(step.kind is Kind.DELIVERED for step in steps):
        added.append(Step(after, Kind.DELIVERED, recipient, DELIVERED_CODES[sending.api]))
    if not any(step.kind is Kind.FAILED and not proves_nothing(sending.api, step.code) for step in steps):
        added.append(Step(after, Kind.FAILED, recipient, _CONTRADICTING_CODES[sending.api]))
    return added


def _reversed(callbacks: list[PlannedCallback]) -> list[PlannedCallback]:
    """Returns the callbacks in reverse order.

    The first one is due when the last one was: no callback may come before the event that it reports.
    """
    ordered = sorted(callbacks, key=lambda callback: callback.after, reverse=True)
    start = ordered[0].after if ordered else 0.0
    return [replace(callback, after=start + index * _REORDER_SECONDS) for index, callback in enumerate(ordered)]


def _batched(callbacks: list[PlannedCallback]) -> list[PlannedCallback]:
    """Combines callbacks into batches; a batch is due with its last event."""
    batches: list[list[PlannedCallback]] = []
    for callback in callbacks:
        batch = batches[-1] if batches else []
        if batch and len(batch) < _MAX_BATCH_EVENTS and callback.after - batch[0].after <= _MAX_BATCH_SECONDS:
            batch.append(callback)
        else:
            batches.append([callback])
    return [
        PlannedCallback(batch[-1].after, tuple(step for callback in batch for step in callback.steps))
        for batch in batches
    ]
