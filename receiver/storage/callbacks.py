"""The raw ledger, written: one row per HTTP request that told something new or could not be read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, literal_column

from receiver.domain.callbacks import Callback, Unread
from receiver.storage.appending import Change, Insert, Step
from receiver.storage.tables import CallbackRow

CALLBACKS: Final[Any] = CallbackRow.__table__  # type: ignore[attr-defined]

ACCEPTED: Final = "accepted"
QUARANTINED: Final = "quarantined"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A callback as it goes into the ledger: the raw request, the number of its events, and what was not read."""

    callback: Callback
    events: int
    unread: Sequence[Unread]

    @property
    def outcome(self) -> str:
        return QUARANTINED if self.unread else ACCEPTED


# as the partial index spells it, which SQLite needs to see
_IS_QUARANTINED: Final = f"callbacks.outcome = '{QUARANTINED}'"


def judged_as(outcome: str | None, reason: str | None) -> list[ColumnElement[bool]]:
    """The conditions for an outcome and a reason, None for any; only quarantined callbacks have a reason."""
    conditions: list[ColumnElement[bool]] = []
    if outcome is not None:
        conditions.append(CALLBACKS.c.outcome == outcome)
    if reason is not None:
        conditions.append(CALLBACKS.c.reason == reason)
    if outcome == QUARANTINED or reason is not None:
        conditions.append(literal_column(_IS_QUARANTINED))
    return conditions


def keep(kept: Sequence[Kept]) -> Step:
    """The step that adds to the ledger; a callback that is already there, by its id, stays as it is."""
    return Insert(CALLBACKS, [_row(one) for one in kept], "ON CONFLICT (id) DO NOTHING")


def judge_anew(kept: Sequence[Kept], now: datetime) -> Step:
    """The step that writes what reading kept callbacks again gave."""
    return Change(_JUDGE, _JUDGED, [{"id": one.callback.id, "reread_at": now, **_judgement(one)} for one in kept])


def count_duplicates(copies: Mapping[str, int]) -> Step:
    """The step that counts copies, by the id of the callback they repeat; nothing else is kept of a copy."""
    return Change(_COUNT, ("id", "copies"), [{"id": kept, "copies": number} for kept, number in copies.items()])


_COUNT: Final = "UPDATE callbacks SET duplicates = duplicates + :copies WHERE id = :id"
_JUDGED: Final = ("id", "reread_at", "outcome", "reason", "problems", "events")
_JUDGE: Final = (
    "UPDATE callbacks SET reread_at = :reread_at, outcome = :outcome, reason = :reason, problems = :problems, "
    "events = :events WHERE id = :id"
)


def _row(kept: Kept) -> dict[str, Any]:
    callback = kept.callback
    return {
        "id": callback.id,
        "received_at": callback.received_at,
        "api": callback.api,
        "route": callback.route,
        "method": callback.method,
        "remote": callback.remote,
        "query": callback.query,
        "headers": callback.headers,
        "body": callback.body,
        **_judgement(kept),
    }


def _judgement(kept: Kept) -> dict[str, Any]:
    problems = [{"index": one.index, "reason": one.reason, "detail": one.detail} for one in kept.unread]
    return {
        "outcome": kept.outcome,
        "reason": kept.unread[0].reason if kept.unread else None,
        "problems": problems or None,
        "events": kept.events,
    }
