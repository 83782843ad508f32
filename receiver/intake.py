"""Takes callbacks in: reads them, gathers what waits into batches, commits each batch once, then lets the answers go.

`accept` returns after the commit. While one batch is being committed the next gathers, so the busier it is, the larger
the batches. Nothing waits without an end: whoever waited `ANSWER_SECONDS` is told that it could not be stored.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final, Protocol

import structlog

from receiver import tags
from receiver.domain.batch import Batch, MessageKey
from receiver.domain.callbacks import Callback, Element, Unread
from receiver.domain.delivery import FinalConflict
from receiver.domain.events import Direction, Event, Quarantine, TagVerdict
from receiver.errors import IntakeFull, StorageUnavailable
from receiver.providers import reading
from receiver.storage import callbacks, event_log, status_table
from receiver.storage.appending import Step
from receiver.storage.callbacks import Kept
from receiver.storage.database import Database
from receiver.storage.status_table import rows_of

# so that with the look every twentieth of it the answer is out within five seconds
ANSWER_SECONDS: Final = 4.5
_MAX_WAITING: Final = 4096
_MAX_WAITING_BYTES: Final = 64 * 1024 * 1024
_BATCH_CALLBACKS: Final = 512
_BATCH_EVENTS: Final = 2000
# turns of the event loop without a newcomer after which a batch is closed, and how long it stays open at most
_QUIET_TURNS: Final = 4
_JOINING_SECONDS: Final = 0.01
# after so many elements others get their turn
_BREATH: Final = 100

log = structlog.get_logger("receiver.intake")


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What came of taking a callback in: new events, events that were already known, elements not read."""

    events: int = 0
    duplicates: int = 0
    unread: tuple[Unread, ...] = ()


class IntakeObserver(Protocol):
    """Who is told what intake does, for the metrics."""

    def committed(self, callbacks: int, seconds: float) -> None: ...

    def taken(
        self, statuses: Sequence[str], verdicts: Sequence[str], duplicates: int, reasons: Sequence[str]
    ) -> None: ...


@dataclass(slots=True, eq=False)
class _Waiting:
    callback: Callback
    events: list[Event]
    unread: tuple[Unread, ...]
    answer: asyncio.Future[Receipt]
    since: float
    reread: bool = False
    new: list[Event] = field(default_factory=list)
    known: list[str] = field(default_factory=list)

    def receipt(self) -> Receipt:
        return Receipt(events=len(self.new), duplicates=len(self.known), unread=self.unread)

    @property
    def is_copy(self) -> bool:
        """Whether it told nothing new: then it is only counted."""
        return not self.reread and not self.unread and not self.new


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Checks the tags of events with today's keys."""

    keys: dict[str, str] = field(default_factory=dict, repr=False)
    policy: tags.TagPolicy = tags.TagPolicy.RECORD

    def judged(self, event: Event, index: int) -> Element:
        """The event with its verdict and the user's value as tag, or why the policy refuses it."""
        if event.direction is Direction.IN:
            return event
        check = self._check(event)
        if self.policy is tags.TagPolicy.REQUIRE and check.verdict is not TagVerdict.VALID:
            return Unread(index, _REFUSALS.get(check.verdict, Quarantine.TAG_FORGED), f"tag {check.verdict}")
        facts = event.facts
        if facts.tag and check.value != facts.tag:
            facts = replace(facts, tag=check.value)
        if check.verdict is event.tag_verdict and facts is event.facts:
            return event
        return replace(event, tag_verdict=check.verdict, facts=facts)

    def _check(self, event: Event) -> tags.TagCheck:
        facts = event.facts
        if not self.keys or self.policy is tags.TagPolicy.OFF:
            return replace(tags.verify(facts.tag, {}), verdict=TagVerdict.UNCHECKED)
        if facts.recipients or event.recipient is None:
            return tags.verify(facts.tag, self.keys, sender=facts.sender, recipients=facts.recipients or None)
        # message.to is missing: the one number that is known may be all there were, or not
        check = tags.verify(facts.tag, self.keys, sender=facts.sender, recipients=[event.recipient])
        if check.verdict is not TagVerdict.FORGED:
            return check
        return tags.verify(facts.tag, self.keys, sender=facts.sender, recipients=None)


_REFUSALS: Final = {
    TagVerdict.UNSIGNED: Quarantine.TAG_UNSIGNED,
    TagVerdict.MISSING: Quarantine.TAG_MISSING,
}


class Intake:
    """Takes callbacks in, one transaction for all that wait."""

    def __init__(
        self,
        database: Database,
        *,
        judge: Judge | None = None,
        conflict: FinalConflict = FinalConflict.FAILED_WINS,
        observer: IntakeObserver,
        clock: Callable[[], datetime],
        on_commit: Callable[[], None] = lambda: None,
    ) -> None:
        self._database = database
        self._judge = judge or Judge()
        self._conflict = conflict
        self._observer = observer
        self._clock = clock
        self._on_commit = on_commit
        self._waiting: deque[_Waiting] = deque()
        self._committing: list[_Waiting] = []
        self._bytes = 0
        self._arrived = asyncio.Event()
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        self._tasks = [asyncio.create_task(self._work()), asyncio.create_task(self._watch())]

    async def stop(self) -> None:
        """Commits what was accepted, then ends."""
        self._stopping = True
        self._arrived.set()
        worker, watch = self._tasks
        await worker
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)

    def judge_by(self, judge: Judge) -> None:
        """Has the events of all further callbacks judged so."""
        self._judge = judge

    async def accept(self, callback: Callback, *, reread: bool = False) -> Receipt:
        """Takes one callback in and returns once it is committed; `reread` for one that is already in the ledger.

        Raises IntakeFull or StorageUnavailable; then nothing of it is stored, or it will be found to be a copy.
        """
        self._refuse_if_full()
        events, unread = await self._read(callback)
        # reading lets others go on: meanwhile the queue may have filled, or the worker may have ended
        self._refuse_if_full()
        if not events and not unread and not reread:
            return Receipt()
        answer: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        one = _Waiting(callback, events, unread, answer, time.monotonic(), reread)
        self._waiting.append(one)
        self._bytes += len(callback.body)
        self._arrived.set()
        return await answer

    def _refuse_if_full(self) -> None:
        if self._stopping or len(self._waiting) >= _MAX_WAITING or self._bytes >= _MAX_WAITING_BYTES:
            raise IntakeFull("too many callbacks are waiting")

    async def _read(self, callback: Callback) -> tuple[list[Event], tuple[Unread, ...]]:
        events: list[Event] = []
        unread: list[Unread] = []
        for index, element in enumerate(reading.read(callback)):
            judged = self._judge.judged(element, index) if isinstance(element, Event) else element
            if isinstance(judged, Event):
                events.append(judged)
            else:
                unread.append(judged)
            if index % _BREATH == _BREATH - 1:
                await asyncio.sleep(0)
        return events, tuple(unread)

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            await self._others_join()
            self._committing = batch = self._gather()
            if batch:
                await self._settle_surely(batch)
            elif self._stopping:
                return
            else:
                self._arrived.clear()

    async def _others_join(self) -> None:
        """Lets those in that are being read right now.

        Without it two groups form that take turns, one large and one of a single callback, each with its own commit.
        """
        quiet, deadline = 0, time.monotonic() + _JOINING_SECONDS
        while quiet < _QUIET_TURNS and len(self._waiting) < _BATCH_CALLBACKS and time.monotonic() < deadline:
            waiting = len(self._waiting)
            await asyncio.sleep(0)
            quiet = quiet + 1 if len(self._waiting) == waiting else 0

    def _gather(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        events = 0
        while self._waiting and len(batch) < _BATCH_CALLBACKS and (not batch or events < _BATCH_EVENTS):
            one = self._waiting.popleft()
            self._bytes -= len(one.callback.body)
            if not one.answer.done():
                batch.append(one)
                events += len(one.events)
        return batch

    async def _settle_surely(self, batch: list[_Waiting]) -> None:
        """Settles a batch; a fault of ours on the way must cost its members an answer, and not the intake its life."""
        try:
            await self._settle(batch)
        except Exception as error:
            log.exception("intake failed", callbacks=len(batch))
            _refuse(batch, StorageUnavailable(type(error).__name__))

    async def _settle(self, batch: list[_Waiting]) -> None:
        """Commits a batch and gives the answers; a batch that the database refuses for its data is taken singly."""
        try:
            await self._commit(batch)
        except StorageUnavailable as error:
            log.error("callbacks could not be committed", callbacks=len(batch), error=str(error))
            _refuse(batch, error)
        except Exception as error:  # whatever it is, it must neither end the intake nor lose a neighbour
            await self._settle_singly(batch, error)
        else:
            self._answer(batch)

    async def _settle_singly(self, batch: list[_Waiting], error: Exception) -> None:
        if len(batch) > 1:
            for one in batch:
                # who was told meanwhile that it was not stored will send it again
                if not one.answer.done():
                    await self._settle([one])
            return
        [one] = batch
        if not one.events:
            _refuse(batch, StorageUnavailable("the database refuses this callback"))
            return
        # Never lost: what cannot be stored as events is kept raw.
        log.error("events refused by the database", callback=one.callback.id, error=type(error).__name__)
        one.events, one.unread = [], _all_unread(one)
        await self._settle([one])

    def _answer(self, batch: list[_Waiting]) -> None:
        for one in batch:
            receipt = one.receipt()
            statuses, verdicts = [event.status for event in one.new], [event.tag_verdict for event in one.new]
            self._observer.taken(statuses, verdicts, receipt.duplicates, [element.reason for element in one.unread])
            if not one.answer.done():
                one.answer.set_result(receipt)
        self._on_commit()

    async def _commit(self, batch: list[_Waiting]) -> None:
        started = time.perf_counter()
        ids = {event.message_id for one in batch for event in one.events}
        async with self._database.appending() as transaction:
            known = await event_log.of_messages(transaction, ids)
            existing = await status_table.existing(transaction, ids)
            folded = Batch(known, [key for key, forgotten in existing.items() if forgotten], self._conflict)
            await _fold(folded, batch)
            await transaction.run([*self._ledger(batch), *_status(folded, existing), event_log.append(folded.appended)])
        self._observer.committed(len(batch), time.perf_counter() - started)

    def _ledger(self, batch: list[_Waiting]) -> list[Step]:
        copies = Counter(one.known[0] for one in batch if one.is_copy and one.known)
        return [
            callbacks.keep([_kept(one) for one in batch if not one.is_copy and not one.reread]),
            callbacks.judge_anew([_kept(one) for one in batch if one.reread], self._clock()),
            callbacks.count_duplicates(copies),
        ]

    async def _watch(self) -> None:
        """Answers those who waited too long; what is being committed may still be stored, and a repeat is a copy."""
        while True:
            await asyncio.sleep(ANSWER_SECONDS / 20)
            deadline = time.monotonic() - ANSWER_SECONDS
            late = [one for one in (*self._committing, *self._waiting) if one.since < deadline]
            _refuse(late, StorageUnavailable(f"not committed within {ANSWER_SECONDS} s"))


async def _fold(folded: Batch, batch: list[_Waiting]) -> None:
    taken = 0
    for one in batch:
        one.new, one.known = [], []
        for event in one.events:
            first = folded.take(event)
            if first is None:
                one.new.append(event)
            else:
                one.known.append(first)
            taken += 1
            if taken % _BREATH == 0:
                await asyncio.sleep(0)


def _status(folded: Batch, existing: Container[MessageKey]) -> list[Step]:
    rows_before = ((key, rows_of(folded.before(key)) if key in existing else None) for key in folded.moved())
    return status_table.write((before, rows_of(folded.messages[key])) for key, before in rows_before)


def _all_unread(one: _Waiting) -> tuple[Unread, ...]:
    """The elements of a callback whose events the database refuses, each in its place."""
    unread = {element.index: element for element in one.unread}
    places = range(len(one.events) + len(unread))
    return tuple(unread.get(place) or Unread(place, Quarantine.UNREADABLE, _REFUSED_BY_DATABASE) for place in places)


_REFUSED_BY_DATABASE: Final = "refused by the database"


def _kept(one: _Waiting) -> Kept:
    return Kept(callback=one.callback, events=len(one.events), unread=one.unread)


def _refuse(batch: list[_Waiting], error: StorageUnavailable) -> None:
    for one in batch:
        if not one.answer.done():
            one.answer.set_exception(error)
