"""Folds a batch of events into their messages: drops duplicates, and folds the rest in the order of their callbacks."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, Generic, TypeVar

import msgspec
from msgspec import structs

from receiver.domain.delivery import FinalConflict, StateRules
from receiver.domain.events import MAX_EVENTS, Event, MessageKey, Quarantine, Rejected
from receiver.domain.message import Message
from receiver.domain.publication import Appended

__all__ = ["Batch", "MessageKey", "Repeat"]

S = TypeVar("S")

_NONE_FULL: Final[Mapping[MessageKey, Mapping[str, str]]] = MappingProxyType({})


class Repeat(msgspec.Struct, frozen=True, gc=False):
    """An event that is in the log already; `callback_id` is the first callback that had it."""

    callback_id: str


class Batch(Generic[S]):
    """Folds events into their messages, starting from the events that the log already holds.

    `known` are those events, in the order of the log, for every message of the batch that is not in `full`. `full` are
    the messages that have `MAX_EVENTS` events, which are not read: for each message, the ids of the batch that the log
    has, with the first callback of each. A message in `forgotten` lost events to retention: a late event of it is
    appended to the log and changes nothing.

    `states` has the rules for the states that the log shows for a delivery.

    `appended` are the entries for the log. `messages` are the messages with a new event, after all their events.
    `before` holds the `snapshot` of each such message before its first new event, if it had events before.
    """

    def __init__(
        self,
        known: Mapping[MessageKey, Sequence[Event]],
        *,
        forgotten: Collection[MessageKey] = (),
        full: Mapping[MessageKey, Mapping[str, str]] = _NONE_FULL,
        conflict: FinalConflict = FinalConflict.FAILED_WINS,
        states: StateRules,
        snapshot: Callable[[Message], S],
    ) -> None:
        self.appended: list[Appended] = []
        self.messages: dict[MessageKey, Message] = {}
        self.before: dict[MessageKey, S] = {}
        self._known = known
        self._forgotten = frozenset(forgotten)
        self._full = full
        self._conflict = conflict
        self._states = states
        self._snapshot = snapshot
        self._folded: dict[MessageKey, Message] = {}
        self._seen = {event.id: event.callback_id for events in known.values() for event in events}

    def take(self, event: Event, index: int) -> Appended | Repeat | Rejected:
        """Folds an event in, unless the log has it already or its message would exceed a limit.

        `index` is the place of the event in its callback.
        """
        first = self._seen.get(event.id)
        if first is not None:
            return Repeat(first)
        key = event.key
        if key in self._full:
            return self._of_full(key, event, index)
        message = self._folded.get(key) or self._fold(key)
        limit = message.limit_passed(event)
        if limit is not None:
            return Rejected(index, Quarantine.TOO_LARGE, limit, event.message_id)
        if key not in self.messages:
            self._touch(key, message)
        self._seen[event.id] = event.callback_id
        return self._append(key, message, event)

    def moved(self) -> Iterable[MessageKey]:
        """The messages whose rows must be written; not those that lost events to retention."""
        return (key for key in self.messages if key not in self._forgotten)

    def _of_full(self, key: MessageKey, event: Event, index: int) -> Repeat | Rejected:
        first = self._full[key].get(event.id)
        if first is not None:
            return Repeat(first)
        return Rejected(index, Quarantine.TOO_LARGE, f"the message has {MAX_EVENTS} events already", event.message_id)

    def _fold(self, key: MessageKey) -> Message:
        """The message before this batch, folded from the log; empty if the log has no event of it."""
        message = self._folded[key] = Message(*key, self._conflict)
        for event in self._known.get(key, ()):
            message.add(event)
        return message

    def _touch(self, key: MessageKey, message: Message) -> None:
        if message:
            self.before[key] = self._snapshot(message)
        self.messages[key] = message

    def _append(self, key: MessageKey, message: Message, event: Event) -> Appended:
        change = message.add(event)
        if key in self._forgotten:
            change = structs.replace(change, changed=False)
        entry = Appended.of(event, change, self._states)
        self.appended.append(entry)
        return entry
