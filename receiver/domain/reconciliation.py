"""Reconciliation: when a message without a final event is looked up, and what follows from the answer."""

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final


class Answer(StrEnum):
    """The meaning of one request: about the message, or (from `limited` on) about the API as a whole.

    `final`: the answer proves a final status. `pending`: it proves nothing final. `unknown`: the provider does not know
    the message. `unusable`: status 200 with a body that cannot be read. `limited`: too many requests. `failed`: any
    other status, and a timeout. `forbidden`: 403, of a firewall that does not like the message's id, or because the
    credentials are not accepted. `unreachable`: no connection. `refused`: the credentials are not accepted.
    """

    FINAL = "final"
    PENDING = "pending"
    UNKNOWN = "unknown"
    UNUSABLE = "unusable"
    LIMITED = "limited"
    FAILED = "failed"
    FORBIDDEN = "forbidden"
    UNREACHABLE = "unreachable"
    REFUSED = "refused"


_ABOUT_THE_MESSAGE: Final = frozenset({Answer.FINAL, Answer.PENDING, Answer.UNKNOWN})
# The message may be at fault for these as well: without a later turn it could hold up all others for ever.
_COUNTED: Final = frozenset({Answer.UNUSABLE, Answer.FAILED})

_MAX_GAP: Final = timedelta(days=1)
_FIRST_PAUSE: Final = timedelta(seconds=5)
_MAX_PAUSE: Final = timedelta(minutes=15)
_MAX_RETRY_AFTER: Final = timedelta(days=1)
# Every request with wrong credentials may count towards a lock of the account.
_REFUSED_PAUSE: Final = timedelta(hours=1)
_MAX_CLAIM: Final = 50
_CLAIM_OF_SECONDS: Final = 10
_MIN_CLAIM_SECONDS: Final = 300.0
# Longer than the pause of an API that is refused, with its jitter: other messages are looked up in between.
_FORBIDDEN_GAP: Final = timedelta(hours=2)
_JITTER: Final = 0.2
# Clocks of two workers may differ, and are slewed.
_DRIFT: Final = timedelta(seconds=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconciliationPolicy:
    """How patient and how polite reconciliation is.

    A message is looked up once it is `after` old, and no longer once it is `give_up_after` old. `per_second` and
    `per_day` (UTC) limit the requests to one API.
    """

    after: timedelta
    give_up_after: timedelta
    per_second: float
    per_day: int

    def ages(self, now: datetime) -> tuple[datetime, datetime]:
        """The times of the oldest and of the youngest message that is looked up."""
        return now - self.give_up_after, now - self.after

    def due_at(self, now: datetime, tries: int, answer: Answer) -> datetime | None:
        """When a message is looked up again, after this many tries; None: the request counts as none of them.

        Each pause is twice the one before. They begin with `after` and end with a day, or, where the request failed,
        begin with a quarter of an hour and end with `after`; where it was forbidden, with two hours and a day.
        """
        factor = 1 << min(max(tries - 1, 0), 20)
        if answer in _ABOUT_THE_MESSAGE:
            return now + min(self.after * factor, max(_MAX_GAP, self.after))
        if answer is Answer.FORBIDDEN:
            return now + min(_FORBIDDEN_GAP * factor, _MAX_GAP)
        return now + min(_MAX_PAUSE * factor, self.after) if answer in _COUNTED else None

    def room(self, requests_today: int, limit: int) -> int:
        """How many requests may follow now, at most `limit`."""
        return max(0, min(limit, self.per_day - requests_today))

    @property
    def gap(self) -> float:
        """The seconds between the beginnings of two requests."""
        return 1 / self.per_second

    @property
    def claim_size(self) -> int:
        """The largest number of messages in one claim."""
        return min(_MAX_CLAIM, max(1, math.ceil(self.per_second * _CLAIM_OF_SECONDS)))

    def claim_seconds(self, request_seconds: float) -> float:
        """How long a claim lasts: longer than its requests can take, if each takes `request_seconds` at most."""
        return max(_MIN_CLAIM_SECONDS, self.claim_size * (request_seconds + self.gap))


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiHealth:
    """Whether an API may be queried: `failures` in a row, since when, why, and from when until when it is paused.

    `forbidden_id` is the message whose request was forbidden last. It is not stored.
    """

    failures: int = 0
    since: datetime | None = None
    answer: Answer | None = None
    error: str | None = None
    paused_at: datetime | None = None
    until: datetime | None = None
    forbidden_id: str | None = None

    def is_paused(self, now: datetime) -> bool:
        """Whether a pause is not over. Before it began, the clock was set back: nobody knows what is left of it."""
        has_begun = self.paused_at is None or self.paused_at - now <= _DRIFT
        return self.until is not None and has_begun and now < self.until

    def after(
        self,
        answer: Answer,
        error: str | None,
        now: datetime,
        *,
        message_id: str,
        retry_after: timedelta | None,
        fraction: float,
    ) -> "ApiHealth":
        """The health after a request about a message; a `fraction` (0 to 1) of the jitter is added to a pause.

        The API is refused once the requests about two different messages were forbidden, with no answer about a message
        in between: a single message alone may be at fault, and must not stop all others.
        """
        if answer in _ABOUT_THE_MESSAGE:
            return HEALTHY
        forbidden_id = self.forbidden_id
        if answer is Answer.FORBIDDEN:
            if self.answer is Answer.REFUSED or forbidden_id not in (None, message_id):
                answer = Answer.REFUSED
            forbidden_id = message_id
        failures = self.failures + 1
        pause = min(_FIRST_PAUSE * (1 << min(failures - 1, 20)), _MAX_PAUSE)
        if answer is Answer.REFUSED:
            pause = _REFUSED_PAUSE
        pause += fraction * _JITTER * pause
        if retry_after is not None:
            pause = max(pause, min(retry_after, _MAX_RETRY_AFTER))
        return ApiHealth(
            failures=failures,
            since=self.since or now,
            answer=answer,
            error=error,
            paused_at=now,
            until=now + pause,
            forbidden_id=forbidden_id,
        )


HEALTHY: Final = ApiHealth()


def day_of(now: datetime) -> str:
    """The day whose budget a request at this time is charged to."""
    return now.astimezone(UTC).date().isoformat()


def budget_day(now: datetime, latest: str | None) -> str:
    """The day whose budget is charged, after requests were charged to a day: the budget of a day is not given twice.

    A clock that is set back over midnight, or that of a worker that is behind, goes on with the day after; one that was
    ahead by more does not hold up the days until then.
    """
    today = day_of(now)
    return latest if latest is not None and today < latest <= day_of(now + timedelta(days=1)) else today


def next_day(now: datetime) -> datetime:
    """The beginning of the next day, with a new budget."""
    midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight + timedelta(days=1)
