"""The publications of a message's events, by sink and event: from cursors, retries, dead letters and attempts."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Row, and_, select, true
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver.domain.events import REGISTERED, MessageKey
from receiver.domain.publication import Outcome
from receiver.models.events import EVENTS
from receiver.models.sinks import ATTEMPTS, DEAD_LETTERS, RETRIES, SINKS, AttemptBase, AttemptRead, PublicationRead

_Place = tuple[str, int]


async def publications_of_message(connection: AsyncConnection, key: MessageKey) -> list[PublicationRead]:
    """The publications of a message's events to every sink that ever existed: by sink, in the log's order."""
    columns = (EVENTS.c.position, EVENTS.c.id, EVENTS.c.status, EVENTS.c.recipient)
    published = select(*columns).where(_is_of(key), EVENTS.c.route != REGISTERED).order_by(EVENTS.c.position)
    events = (await connection.execute(published)).all()
    sinks = (await connection.execute(select(SINKS).order_by(SINKS.c.name))).all()
    attempts = await _by_place(connection, ATTEMPTS, ATTEMPTS.c.id, key)
    retries = await _by_place(connection, RETRIES, RETRIES.c.position, key)
    dead_letters = await _by_place(connection, DEAD_LETTERS, DEAD_LETTERS.c.id, key)
    return [
        PublicationRead(
            sink=sink.name,
            event_id=event.id,
            status=event.status,
            recipient=event.recipient,
            is_paused=sink.paused,
            is_down=sink.down_since_at is not None,
            **{
                **_by_cursor(sink, event),
                **_by_attempts(attempts.get(place, ())),
                **_by_retries(retries.get(place, ())),
                # The dead letter comes last: if it holds its ordering key, the event has a retry as well.
                **_by_dead_letters(dead_letters.get(place, ()), is_held=place in retries),
            },
        )
        for sink in sinks
        for event in events
        for place in [(sink.name, event.position)]
    ]


def _is_of(key: MessageKey) -> Any:
    api, direction, message_id = key
    return and_(EVENTS.c.message_id == message_id, EVENTS.c.api == api, EVENTS.c.direction == direction)


async def _by_place(
    connection: AsyncConnection, table: Any, order: Any, key: MessageKey
) -> Mapping[_Place, Sequence[Row[Any]]]:
    """The rows of a table about a message's events, by sink and position."""
    found: dict[_Place, list[Row[Any]]] = defaultdict(list)
    statement = select(table).join(EVENTS, EVENTS.c.position == table.c.position).where(_is_of(key)).order_by(order)
    for row in await connection.execute(statement):
        found[row.sink, row.position].append(row)
    return found


_UNTRIED: Final[Mapping[str, Any]] = {"attempts": 0, "last_at": None}


def _by_cursor(sink: Row[Any], event: Row[Any]) -> Mapping[str, Any]:
    return {"state": "waiting" if event.position > sink.cursor else "passed", **_UNTRIED}


def _by_attempts(attempts: Sequence[Row[Any]]) -> Mapping[str, Any]:
    if not attempts:
        return {}
    published = [attempt for attempt in attempts if attempt.outcome == Outcome.PUBLISHED]
    last = (published or attempts)[-1]
    state = {"state": "published"} if published else {}
    return {**state, "attempts": len(attempts), "last_at": last.ended_at, "reason": last.reason}


def _by_retries(retries: Sequence[Row[Any]]) -> Mapping[str, Any]:
    if not retries:
        return {}
    [retry] = retries
    return {
        "state": "parked" if retry.state == "parked" else "retry",
        "attempts": retry.attempts,
        "due_at": retry.due_at,
        "reason": retry.reason,
    }


def _by_dead_letters(dead_letters: Sequence[Row[Any]], *, is_held: bool) -> Mapping[str, Any]:
    if not dead_letters:
        return {}
    [letter] = dead_letters
    return {
        "state": "dead_letter",
        "attempts": letter.attempts,
        "last_at": letter.died_at,
        "reason": f"{letter.reason}: {letter.detail}",
        "dead_letter_id": letter.id,
        "is_held": is_held,
    }


_ATTEMPT: Final = (
    *(ATTEMPTS.c[name] for name in ("id", *AttemptBase.model_fields)),
    EVENTS.c.recipient,
    EVENTS.c.status,
)


async def attempts_of_message(connection: AsyncConnection, key: MessageKey, sink: str | None) -> list[AttemptRead]:
    """All attempts to publish a message's events, to one sink or to all (None), in the order in which they ended."""
    statement = (
        select(*_ATTEMPT)
        .join(EVENTS, EVENTS.c.position == ATTEMPTS.c.position)
        .where(_is_of(key), ATTEMPTS.c.sink == sink if sink is not None else true())
        .order_by(ATTEMPTS.c.id)
    )
    return [AttemptRead.model_validate(row) for row in await connection.execute(statement)]
