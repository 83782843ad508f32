"""What a batch of events does to the messages it touches: duplicates dropped, the rest folded in request order."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from receiver.domain.delivery import FinalConflict, Message
from receiver.domain.events import Api, Event
from receiver.domain.log import Appended

MessageKey = tuple[Api, str]


class Batch:
    """Folds events into their messages, starting from the events the log already holds.

    `appended` are the entries for the log, `messages` the touched messages after all of them. A message in `forgotten`
    lost events to retention: what is told of it late goes into the log and changes nothing.
    """

    def __init__(
        self,
        known: Mapping[MessageKey, Sequence[Event]],
        forgotten: Iterable[MessageKey] = (),
        conflict: FinalConflict = FinalConflict.FAILED_WINS,
    ) -> None:
        self.appended: list[Appended] = []
        self.messages: dict[MessageKey, Message] = {}
        self._forgotten = set(forgotten)
        self._conflict = conflict
        self._known = known
        self._seen = {event.id: event.callback_id for events in known.values() for event in events}

    def take(self, event: Event) -> str | None:
        """Folds an event in; for one that is already known, returns the callback that brought it first."""
        first = self._seen.get(event.id)
        if first is not None:
            return first
        self._seen[event.id] = event.callback_id
        key = (event.api, event.message_id)
        message = self.messages.get(key)
        if message is None:
            message = self.messages[key] = self.before(key)
        change = message.add(event)
        self.appended.append(Appended.of(event, replace(change, changed=False) if key in self._forgotten else change))
        return None

    def before(self, key: MessageKey) -> Message:
        """The message as the log has it, before this batch; empty for one never heard of."""
        message = Message(*key, self._conflict)
        for event in self._known.get(key, ()):
            message.add(event)
        return message

    def moved(self) -> Iterable[MessageKey]:
        """The messages whose rows may be written anew."""
        return (key for key in self.messages if key not in self._forgotten)
