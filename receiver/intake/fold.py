"""Parses callbacks, checks their tags, folds their events into messages, and writes the result in one transaction."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import structlog
from msgspec import structs

from receiver import failpoints, tags
from receiver.domain.delivery import FinalConflict
from receiver.domain.events import (
    RECONCILED,
    REGISTERED,
    Api,
    Callback,
    Direction,
    Event,
    Quarantine,
    Rejected,
    TagVerdict,
)
from receiver.domain.fold import Batch, MessageKey, Repeat
from receiver.domain.publication import Appended
from receiver.logs import Sampled, frames
from receiver.providers import PROVIDERS, registry, states
from receiver.storage import event_log, messages, processor, statistics_cells
from receiver.storage.bulk import Step, Transaction
from receiver.storage.database import Database, is_data_error
from receiver.storage.event_log import EventsOfMessages
from receiver.storage.messages import Rows, rows_of
from receiver.storage.rebuild import stored_rows
from receiver.tags import TagPolicy

# After this many elements the event loop gets a turn for other work.
YIELD_EVERY: Final = 100
# A batch reads at most this many stored events; messages with more are folded in several batches.
_MAX_KNOWN_EVENTS: Final = 20_000
# The routes of entries of the journal that no provider has posted.
_NOT_POSTED: Final = frozenset({REGISTERED, RECONCILED})
_REASONS: Final = {
    TagVerdict.UNSIGNED: Quarantine.TAG_UNSIGNED,
    TagVerdict.MISSING: Quarantine.TAG_MISSING,
}

log = structlog.get_logger("receiver.processor")
_not_added = Sampled(log, "changes are not added to the statistics yet")

_Found = tuple[TagVerdict, str | None]
"""The verdict on a tag, and the tag without its signature."""


class TagChecker(msgspec.Struct, frozen=True, kw_only=True):
    """Checks the tags of events with the configured keys."""

    keys: dict[str, str] = msgspec.field(default_factory=dict)
    policy: TagPolicy = TagPolicy.RECORD

    def __repr__(self) -> str:
        """Omits the keys, which are secret."""
        return f"TagChecker(policy={self.policy.value!r})"

    def check(self, event: Event, index: int) -> Event | Rejected:
        """The event with its verdict and with the user's value as its tag, or its rejection by the policy.

        `index` is the place of the event in its callback.
        """
        if event.direction is Direction.IN:
            return event
        if event.is_registration or event.is_reconciled:
            # An API token has authenticated the sender, and we queried the provider over TLS: nobody else can have
            # written these. The verdict is about what comes to the callback URLs.
            return _with(event, TagVerdict.UNCHECKED, _without_signature(event.fields.tag))
        verdict, value = self._verdict(event)
        if self.policy is TagPolicy.REQUIRE and verdict is not TagVerdict.VALID:
            reason = _REASONS.get(verdict, Quarantine.TAG_FORGED)
            return Rejected(index, reason, f"tag {verdict}", event.message_id)
        return _with(event, verdict, value)

    def _verdict(self, event: Event) -> _Found:
        if self.policy is TagPolicy.OFF or not self.keys:
            return TagVerdict.UNCHECKED, _without_signature(event.fields.tag)
        recipients = event.fields.recipients
        if recipients or event.recipient is None:
            return self._verify(event, recipients)
        # Without message.to, the number that is known may be the only recipient of the message, or one of several.
        found = self._verify(event, (event.recipient,))
        return found if found[0] is not TagVerdict.FORGED else self._verify(event, ())

    def _verify(self, event: Event, recipients: tuple[str, ...]) -> _Found:
        fields = event.fields
        checked = tags.verify(
            fields.tag,
            self.keys,
            sender=fields.sender,
            recipients=recipients or None,
            recipient=event.recipient,
        )
        return checked.verdict, checked.value


def _without_signature(tag: str | None) -> str | None:
    return tags.verify(tag, {}).value if tag and tags.MARKER in tag else tag


def _with(event: Event, verdict: TagVerdict, value: str | None) -> Event:
    """The event with the verdict and the value of its tag; the same object if neither differs."""
    fields = event.fields
    if fields.tag and value != fields.tag:
        fields = structs.replace(fields, tag=value)
    if verdict is event.tag_verdict and fields is event.fields:
        return event
    return structs.replace(event, tag_verdict=verdict, fields=fields)


@dataclass(slots=True)
class Parsed:
    """A parsed callback: its events by their place in the array, and the elements that did not become events.

    `rejected` holds the first `MAX_LISTED` rejected elements, `reasons` counts all. After folding, `new` are the events
    appended to the log, `known` has for each other event the callback that first had it, and `too_large` are the events
    that exceed a limit of their message. `reached` counts the deliveries whose status changed, by their new status,
    `categories` by status and category of the code where they have a code.
    """

    callback: Callback
    events: list[tuple[int, Event]] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    reasons: Counter[Quarantine] = field(default_factory=Counter)
    new: list[Event] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    too_large: list[Rejected] = field(default_factory=list)
    reached: Counter[str] = field(default_factory=Counter)
    categories: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def is_quarantined(self) -> bool:
        return bool(self.reasons or self.too_large)

    @property
    def is_repeat(self) -> bool:
        """Whether the callback had no new event. A callback that is processed twice is not a repeat of itself."""
        return not self.new and not self.is_quarantined and self.callback.id not in self.known

    def reject(self, rejected: Rejected) -> None:
        self.reasons[rejected.reason] += 1
        if len(self.rejected) < processor.MAX_LISTED:
            self.rejected.append(rejected)

    def quarantine_rows(self, reprocessed_at: Any = None) -> list[tuple[Any, ...]]:
        """The quarantine rows of its rejected elements."""
        reasons = self.reasons + Counter(element.reason for element in self.too_large)
        return processor.quarantine(self.callback.id, [*self.rejected, *self.too_large], reasons, reprocessed_at)


async def parse(callback: Callback, checker: TagChecker) -> Parsed:
    """Parses one callback and checks its tags. A callback on which the parser fails is quarantined."""
    parsed = Parsed(callback)
    parser = PROVIDERS[callback.api].parse if callback.route not in _NOT_POSTED else registry.parse
    try:
        for index, element in enumerate(parser(callback)):
            checked = checker.check(element, index) if type(element) is Event else element
            if type(checked) is Event:
                parsed.events.append((index, checked))
            else:
                parsed.reject(checked)
            if index % YIELD_EVERY == YIELD_EVERY - 1:
                await asyncio.sleep(0)
    except MemoryError:
        raise
    except Exception as error:
        log.error("the parser failed on a callback", callback=callback.id, exception=frames(error))
        return _quarantined(callback, f"the parser failed with {type(error).__name__}")
    return parsed


def _quarantined(callback: Callback, detail: str) -> Parsed:
    parsed = Parsed(callback)
    parsed.reject(Rejected(0, Quarantine.UNREADABLE, detail))
    return parsed


Finish = Callable[[Transaction, Sequence[Parsed]], Awaitable[None]]


class Folder:
    """Folds parsed callbacks into the status table and the event log."""

    def __init__(self, database: Database, conflict: FinalConflict) -> None:
        self._database = database
        self._conflict = conflict
        # The changes of the statistics that are not added yet: an earlier process may have left many.
        self._changes = statistics_cells.MOST_CHANGES
        self._added_to = 0

    async def fold(self, batch: Sequence[Parsed], finish: Finish) -> Sequence[Parsed]:
        """Writes the events of callbacks, in one transaction; `finish` adds to it.

        Returns the folded callbacks: all, or the first ones if their messages have very many events. A callback whose
        data the database refuses is quarantined alone. Any other error is not the callbacks' fault: it is raised, and
        nothing is written.
        """
        try:
            return await self._commit(batch, finish)
        except Exception as error:
            if not _is_of_the_data(error):
                raise
            if len(batch) > 1:
                return await self.fold(batch[: len(batch) // 2], finish)
            [parsed] = batch
            if not parsed.events:
                raise
            log.error("a callback cannot be stored as events", callback=parsed.callback.id, exception=frames(error))
            quarantined = _quarantined(parsed.callback, f"it cannot be stored: {type(error).__name__}")
            return await self._commit([quarantined], finish)

    async def _commit(self, batch: Sequence[Parsed], finish: Finish) -> Sequence[Parsed]:
        async with self._database.appending() as transaction:
            wanted = _events_by_key(batch)
            known = await event_log.of_messages(
                transaction, wanted, limit=_MAX_KNOWN_EVENTS, needed=set(_keys(batch[0]))
            )
            batch = _prefix(batch, known)
            existing = await messages.existing_rows(transaction, {key[2] for key in wanted})
            forgotten = [key for key, events_forgotten in existing.items() if events_forgotten]
            folded: Batch[Rows] = Batch(
                known.events,
                forgotten=forgotten,
                full=known.full,
                conflict=self._conflict,
                states=states,
                snapshot=lambda message: rows_of(message, transaction.spelling),
            )
            await _take(folded, batch)
            failpoints.reach("folded")
            await transaction.run(await self._steps(folded, existing, transaction))
            failpoints.reach("written")
            await finish(transaction, batch)
            failpoints.reach("advanced")
        failpoints.reach("committed")
        if self._has_many_changes():
            await self._add_changes()
        return batch

    def _has_many_changes(self) -> bool:
        return self._changes > statistics_cells.MOST_CHANGES

    async def _add_changes(self) -> None:
        """Adds changes of the statistics to the cells, in a transaction that holds up no callback if it fails."""
        try:
            async with self._database.appending() as transaction:
                added, self._added_to = await statistics_cells.add_changes(transaction, self._added_to)
        except Exception as error:
            _not_added.add(error=str(error))
            added = 0
        # More of them with the next batch; after an error when there are as many again.
        self._changes = added if added == statistics_cells.MOST_CHANGES else 0

    async def _steps(
        self, folded: Batch[Rows], existing: Mapping[MessageKey, bool], transaction: Transaction
    ) -> list[Step]:
        changes = []
        uncertain = {key[2] for key in folded.moved() if key in existing and _may_differ(folded.before.get(key))}
        stored = await stored_rows(transaction, uncertain) if uncertain else {}
        for place, key in enumerate(folded.moved(), start=1):
            after = rows_of(folded.messages[key], transaction.spelling)
            changes.append((key in existing, stored.get(key) or folded.before.get(key), after))
            if place % YIELD_EVERY == 0:
                await asyncio.sleep(0)
        appended = event_log.append(folded.appended, transaction.spelling)
        counted = statistics_cells.count(changes)
        self._changes += len(counted.rows)
        return [*messages.write_rows(changes), counted, appended]


def _may_differ(before: Rows | None) -> bool:
    """Whether the stored rows of a message may differ from those that its events in the log give today.

    No event of the log explains them, or another `RECEIVER_FINAL_CONFLICT` may have decided them. They are then read,
    because what is stored is what the statistics have counted.
    """
    return before is None or messages.depends_on_conflict(before)


class _CannotFold(Exception):
    """The pure code failed on an event, as it would again for this callback every time."""


def _is_of_the_data(error: Exception) -> bool:
    """Whether the data of the callbacks causes an error, so that every try would fail with it."""
    return isinstance(error, _CannotFold) or is_data_error(error)


def _keys(parsed: Parsed) -> list[MessageKey]:
    return [event.key for _, event in parsed.events]


def _events_by_key(batch: Sequence[Parsed]) -> Mapping[MessageKey, list[str]]:
    events: dict[MessageKey, list[str]] = {}
    for parsed in batch:
        for _, event in parsed.events:
            events.setdefault(event.key, []).append(event.id)
    return events


def _prefix(batch: Sequence[Parsed], known: EventsOfMessages) -> Sequence[Parsed]:
    """The first callbacks for which the events of all their messages were read; at least one."""
    for place, parsed in enumerate(batch):
        if place and not known.left_out.isdisjoint(_keys(parsed)):
            return batch[:place]
    return batch


async def _take(folded: Batch[Any], batch: Sequence[Parsed]) -> None:
    taken = 0
    for parsed in batch:
        parsed.new, parsed.known, parsed.too_large = [], [], []
        parsed.reached, parsed.categories = Counter(), Counter()
        for index, event in parsed.events:
            try:
                result = folded.take(event, index)
            except (ArithmeticError, LookupError, TypeError, ValueError) as error:
                raise _CannotFold(repr(error)) from error
            if type(result) is Appended:
                parsed.new.append(event)
                if result.delivery.status != result.previous_status and not event.is_registration:
                    parsed.reached[result.delivery.status] += 1
                    if (code := result.delivery.code) is not None:
                        parsed.categories[result.delivery.status, _category(event.api, code)] += 1
            elif type(result) is Repeat:
                parsed.known.append(result.callback_id)
            elif type(result) is Rejected:
                parsed.too_large.append(result)
            taken += 1
            if taken % YIELD_EVERY == 0:
                await asyncio.sleep(0)


def _category(api: Api, code: int) -> str:
    """The category of a code as a label, whose values are bounded: that of an unlisted code is `other`."""
    entry = registry.entry(api, code)
    return entry.category if entry is not None else "other"
