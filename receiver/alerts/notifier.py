"""Sends due notifications to people: each target on its own, again and again until it accepts or the time is over.

An attempt is counted in the database before it is made. A process that dies between the two leaves a notification that
is due again: the target hears of it once more, never not at all. Two processes that both send, because one lost its
lease without knowing, do not send the same notification: the one that counts first makes the attempt. One that was
halted between the two, as by SIGSTOP, does not make it any more: others may have sent since that the alert is resolved.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Final, Protocol

import structlog

from receiver import failpoints
from receiver.alerts.http import Failure
from receiver.alerts.targets import ConfiguredTarget, Targets
from receiver.domain.notifications import POLICY, Decision, DueNotification, NotificationState, decide, next_attempt
from receiver.errors import StorageUnavailable
from receiver.logs import Sampled
from receiver.storage import notifications
from receiver.storage.database import Database
from receiver.waiting import wait_for

_POLL_SECONDS: Final = 2.0
_BATCH: Final = 200
_PER_TARGET: Final = 2
# A process that dies in an attempt leaves the notification due after this. An attempt that begins at once, within the
# seconds below, and lasts as long as it may has ended by then, also by clocks that differ by some seconds.
_ATTEMPT: Final = timedelta(seconds=30)
_BEGIN_SECONDS: Final = 3.0
# What is due to a target that is not in the settings is left to other processes for this long: theirs may be newer.
_UNKNOWN_FOR: Final = timedelta(minutes=10)
# A stop waits this long for attempts under way.
_STOP_SECONDS: Final = 5.0

log = structlog.get_logger("receiver.alerts")


class NotificationObserver(Protocol):
    def notified(self, outcome: str) -> None:
        """A notification was `sent`, is to be sent again (`retry`), has `failed` or was `withdrawn`."""
        ...


class Notifier:
    """Sends the due notifications of the database. Several workers may do so at once."""

    def __init__(
        self,
        database: Database,
        targets: Targets,
        *,
        clock: Callable[[], datetime],
        observer: NotificationObserver,
        random_fraction: Callable[[], float],
        monotonic: Callable[[], float] = time.monotonic,
        poll_seconds: float = _POLL_SECONDS,
    ) -> None:
        self._database = database
        self._targets = targets
        self._clock = clock
        self._observer = observer
        self._random_fraction = random_fraction
        self._monotonic = monotonic
        self._poll_seconds = poll_seconds
        self._wakeup = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        # The attempts under way by alert and target: the notifications of such a pair are sent one after the other.
        self._sending: dict[tuple[str, str], asyncio.Task[bool]] = {}
        self._of_target: Counter[str] = Counter()
        # When pauses end by seconds that never jump, by the id of the notification: a clock may be set back in a pause.
        self._pauses: dict[int, float] = {}
        self._is_failing = False
        self._unrecorded = Sampled(log, "a notification was not recorded and may be sent again")
        self._late = Sampled(log, "an attempt to notify was left out because it began too late")
        self._unexpected = Sampled(log, "a notification failed unexpectedly")

    async def start(self) -> None:
        self._loop = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stops; attempts that do not end in some seconds are abandoned, and made again by the next process."""
        if self._loop is None:
            return
        self._loop.cancel()
        await asyncio.gather(self._loop, return_exceptions=True)
        self._loop = None
        sending = list(self._sending.values())
        if sending:
            await asyncio.wait(sending, timeout=_STOP_SECONDS)
        for task in sending:
            task.cancel()
        await asyncio.gather(*sending, return_exceptions=True)

    def reload(self, targets: Targets) -> None:
        """Sends to these targets from now on."""
        self._targets = targets
        self.wake()

    def wake(self) -> None:
        """Looks for due notifications now."""
        self._wakeup.set()

    async def _run(self) -> None:
        while True:
            self._wakeup.clear()
            try:
                await self._send_due()
                self._is_failing = False
            except StorageUnavailable as error:
                if not self._is_failing:
                    log.warning("notifications wait for the database", error=str(error))
                self._is_failing = True
            except Exception:
                log.exception("the notifier failed; it goes on")
            await wait_for(self._wakeup, self._poll_seconds)

    async def _send_due(self) -> None:
        """Begins the due notifications, as many as each target may have under way."""
        # Without the targets that have enough under way: what waits for a slow one must not hide what others get.
        busy = [target for target, number in self._of_target.items() if number >= _PER_TARGET]
        now, targets = self._clock(), self._targets.targets
        ended = [id_ for id_, ends in self._pauses.items() if ends <= self._monotonic()]
        due = await notifications.due(
            self._database,
            now=now,
            limit=_BATCH,
            known=targets,
            unknown_before=now - _UNKNOWN_FOR,
            without=busy,
            ended=ended,
        )
        if not busy and len(due) < _BATCH:
            # What is not due in spite of it was sent, or withdrawn, by another process.
            for id_ in set(ended) - {one.id for one in due}:
                self._pauses.pop(id_, None)
        for notification in due:
            if notification.key in self._sending:
                continue
            if notification.fired_state is NotificationState.DUE:
                # Nobody needs to hear any more that it fired.
                if not await notifications.withdraw_fired(self._database, notification):
                    # Another process is just sending it: this one is due again when the result is known.
                    continue
                self._observer.notified("withdrawn")
            if decide(notification) is Decision.WITHDRAW:
                if await notifications.withdraw(self._database, notification):
                    self._observer.notified("withdrawn")
                continue
            target = targets.get(notification.target)
            if target is None:
                await self._give_up(notification)
                continue
            if self._of_target[notification.target] >= _PER_TARGET:
                continue
            self._of_target[notification.target] += 1
            task = self._sending[notification.key] = asyncio.create_task(self._attempt(notification, target))
            task.add_done_callback(partial(self._ended, notification))

    def _ended(self, notification: DueNotification, task: asyncio.Task[bool]) -> None:
        del self._sending[notification.key]
        self._of_target[notification.target] -= 1
        # Without a result the notification is due as before: to look at once would try again without a pause.
        if not task.cancelled() and task.result():
            self.wake()

    async def _give_up(self, notification: DueNotification) -> None:
        """Lets a notification fail whose target no process knows."""
        reason = "the target is not in the settings"
        if await notifications.give_up(self._database, notification, reason):
            self._report_failed(notification, notification.attempts, reason)

    async def _attempt(self, notification: DueNotification, target: ConfiguredTarget) -> bool:
        """Makes an attempt; returns whether its result is recorded."""
        try:
            return await self._send(notification, target)
        except StorageUnavailable as error:
            self._unrecorded.add(error=str(error))
        except Exception as error:
            # The text of the exception may contain the URL.
            self._unexpected.add(target=notification.label, error=type(error).__name__)
        return False

    async def _send(self, notification: DueNotification, target: ConfiguredTarget) -> bool:
        now, began = self._clock(), self._monotonic()
        if not await notifications.begin(self._database, notification, again_at=now + _ATTEMPT):
            return False
        self._pauses.pop(notification.id, None)
        if self._monotonic() - began > _BEGIN_SECONDS:
            self._late.add(target=notification.label)
            return False
        attempts = notification.attempts + 1
        failpoints.reach("notification_begun")
        failure = await self._sent(notification, target)
        failpoints.reach("notification_sent")
        now = self._clock()
        if failure is None:
            if not await notifications.sent(self._database, notification, now=now):
                return self._overtaken()
            self._observer.notified("sent")
            log.info("notification sent", alert=notification.alert.id, target=notification.label, attempts=attempts)
            return True
        pause = POLICY.pause(
            attempts, self._random_fraction(), retry_after=failure.after, overloaded=failure.overloaded
        )
        due_at = next_attempt(attempts, notification.created_at, now, pause)
        if not await self._failed(notification, attempts, failure.reason, due_at):
            return False
        if due_at is not None:
            self._pauses[notification.id] = self._monotonic() + (due_at - now).total_seconds()
        return True

    async def _sent(self, notification: DueNotification, target: ConfiguredTarget) -> Failure | None:
        try:
            return await target.target.send(self._targets.described(notification.alert, notification.transition))
        except Exception as error:
            # The text of the exception may contain the URL.
            return Failure(reason=f"unexpected {type(error).__name__}")

    def _overtaken(self) -> bool:
        self._unrecorded.add(error="another process has begun the next attempt")
        return False

    async def _failed(self, notification: DueNotification, attempts: int, reason: str, due_at: datetime | None) -> bool:
        if not await notifications.failed(self._database, notification, reason, due_at=due_at):
            return self._overtaken()
        self._report_failed(notification, attempts, reason, is_last=due_at is None)
        return True

    def _report_failed(
        self, notification: DueNotification, attempts: int, reason: str, *, is_last: bool = True
    ) -> None:
        fields = {"alert": notification.alert.id, "target": notification.label, "attempts": attempts, "reason": reason}
        if is_last:
            self._observer.notified("failed")
            log.error("a notification was not delivered and is not tried again", **fields)
        else:
            self._observer.notified("retry")
            log.warning("a notification was not delivered and is tried again", **fields)
