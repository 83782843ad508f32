"""Sends callbacks as Bandwidth does.

v1 sends a callback once, and to the fallback URL if that fails. v2 answers a challenge with credentials, and repeats
the callback until it is answered 2xx.
"""

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final
from urllib.parse import urlsplit

import orjson

from receiver.domain.events import Api
from receiver.sandbox import v1, v2
from receiver.sandbox.client import CallbackClient, CallbackRequest, RequestResult
from receiver.sandbox.messages import SandboxMessage
from receiver.sandbox.scenario import PlannedCallback
from receiver.sandbox.settings import SandboxSettings
from receiver.waiting import wait_for

# Bandwidth does not publish v2's retry delays; these are the sandbox's own. The last one repeats.
RETRY_DELAYS: Final = (10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
RETRY_PERIOD: Final = timedelta(hours=24)

# Waiting for `_queue_ended` alone is not enough: an evicted message leaves the schedule without it, and one waiter
# clears it for another.
_POLL_SECONDS: Final = 0.5

# Callbacks are scheduled up to a day after the clock: their dates must still exist.
_LAST: Final = datetime(9998, 1, 1, tzinfo=UTC)


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Clock:
    """Real time plus an offset that only grows."""

    def __init__(self, real_time: Callable[[], datetime] = _utc_now) -> None:
        self._real_time = real_time
        self._offset = timedelta()

    def now(self) -> datetime:
        return self._real_time() + self._offset

    def advance(self, by: timedelta) -> None:
        """Moves the clock forward.

        Raises ValueError for a step back, and ValueError or OverflowError for a time after the year 9997.
        """
        if by < timedelta():
            raise ValueError("the clock can only move forward")
        if self._real_time() + self._offset + by > _LAST:
            raise ValueError("the clock cannot move past the year 9997")
        self._offset += by

    def reset(self) -> None:
        self._offset = timedelta()


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackRecord:
    """One request that was made, with its status or its error. `url` is without credentials."""

    id: int
    api: Api
    message_id: str
    route: str
    method: str
    url: str
    query: str
    attempt: int
    with_credentials: bool
    status: int | None
    error: str | None
    started_at: datetime
    seconds: float
    body: bytes


@dataclass(frozen=True, slots=True)
class QueueState:
    """The number of callbacks that are waiting for their due time and in flight, and the next due time."""

    waiting: int
    in_flight: int
    next_at: datetime | None

    @property
    def is_idle(self) -> bool:
        return not (self.waiting or self.in_flight)


@dataclass(slots=True)
class _Task:
    """The next attempt of a callback."""

    message: SandboxMessage
    callback: PlannedCallback
    attempt: int = 1
    first_attempt_at: datetime | None = None


@dataclass(slots=True)
class _MessageQueue:
    """The due callbacks of one message, sent one after the other. The message is the ordering key."""

    tasks: deque[_Task] = field(default_factory=deque)
    worker: asyncio.Task[None] | None = None


class CallbackSender:
    """Sends callbacks when they are due.

    The first attempts for a message are made one after the other: callbacks come out of order only as a fault.
    """

    def __init__(self, settings: SandboxSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._scheduled: list[tuple[datetime, int, _Task]] = []
        self._schedule_order = itertools.count()
        self._queues: dict[SandboxMessage, _MessageQueue] = {}
        self._evicted = 0
        self._slots = asyncio.Semaphore(settings.connections)
        self._woken = asyncio.Event()
        self._queue_ended = asyncio.Event()
        self._waits_ended = False
        self._client = CallbackClient(connections=settings.connections, remote=settings.remote_callbacks)
        self._record_ids = itertools.count(1)
        self.records: deque[CallbackRecord] = deque(maxlen=settings.max_posts)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Sends what is due while the block runs."""
        self._waits_ended = False
        async with self._client.running(), asyncio.TaskGroup() as group:
            runner = group.create_task(self._run(group))
            try:
                yield
            finally:
                for task in (runner, *self._workers()):
                    task.cancel()
                self._queues.clear()

    def schedule(self, message: SandboxMessage) -> None:
        """Schedules the callbacks of a message."""
        if message.target.url is None:
            return
        for callback in message.scenario.callbacks:
            due_at = message.created_at + timedelta(seconds=callback.after / self._settings.speed)
            self._push(due_at, _Task(message, callback))
        self.wake()

    def evict(self, message: SandboxMessage) -> None:
        """Sends no more callbacks for a message."""
        message.is_evicted = True
        self._evicted += 1
        # A sweep costs time in proportion to the schedule: once for many messages, but before they pile up.
        if self._evicted > self._settings.max_messages // 10:
            self._sweep()

    def clear(self) -> None:
        """Discards what is scheduled and in flight, and the records."""
        self._scheduled.clear()
        for worker in self._workers():
            worker.cancel()
        self._queues.clear()
        self.records.clear()
        self._queue_ended.set()
        self.wake()

    def wake(self) -> None:
        """Looks for due callbacks now, after a change of the clock or the schedule."""
        self._woken.set()

    def queue_state(self) -> QueueState:
        self._sweep()
        in_flight = sum(len(queue.tasks) + 1 for queue in self._queues.values())
        return QueueState(len(self._scheduled), in_flight, self._scheduled[0][0] if self._scheduled else None)

    async def wait_until_idle(self, seconds: float) -> QueueState:
        """Waits until no callback is waiting or in flight, at most `seconds`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not (self._waits_ended or self.queue_state().is_idle):
                    self._queue_ended.clear()
                    await wait_for(self._queue_ended, _POLL_SECONDS)
        return self.queue_state()

    def end_waits(self) -> None:
        """Ends every `wait_until_idle`, now and later: the sandbox is about to stop."""
        self._waits_ended = True
        self._queue_ended.set()

    def _workers(self) -> Iterable[asyncio.Task[None]]:
        return [queue.worker for queue in self._queues.values() if queue.worker]

    def _push(self, due_at: datetime, task: _Task) -> None:
        heapq.heappush(self._scheduled, (due_at, next(self._schedule_order), task))

    def _sweep(self) -> None:
        """Removes evicted messages from the schedule."""
        if self._evicted:
            self._evicted = 0
            self._scheduled = [entry for entry in self._scheduled if not entry[2].message.is_evicted]
            heapq.heapify(self._scheduled)

    async def _run(self, group: asyncio.TaskGroup) -> None:
        while True:
            self._woken.clear()
            seconds = self._start_due(group)
            await wait_for(self._woken, seconds)

    def _start_due(self, group: asyncio.TaskGroup) -> float | None:
        """Moves due callbacks to the queues of their messages.

        Returns the seconds until the next one is due, None if nothing is scheduled.
        """
        now = self._clock.now()
        while self._scheduled and self._scheduled[0][0] <= now:
            task = heapq.heappop(self._scheduled)[2]
            queue = self._queues.setdefault(task.message, _MessageQueue())
            queue.tasks.append(task)
            if queue.worker is None:
                queue.worker = group.create_task(self._work(task.message, queue))
        return (self._scheduled[0][0] - now).total_seconds() if self._scheduled else None

    async def _work(self, message: SandboxMessage, queue: _MessageQueue) -> None:
        while queue.tasks:
            task = queue.tasks.popleft()
            async with self._slots:
                # The message may have been evicted while the task waited for a slot.
                if not message.is_evicted:
                    await self._send(task)
        if self._queues.get(message) is queue:
            del self._queues[message]
        self._queue_ended.set()

    async def _send(self, task: _Task) -> None:
        if task.message.api is Api.V1:
            await self._send_v1(task)
        else:
            await self._send_v2(task)

    async def _send_v1(self, task: _Task) -> None:
        message, target = task.message, task.message.target
        event = v1.event(message, task.callback.steps[0], message.uri)
        for route, url in (("primary", target.url), ("fallback", target.fallback_url)):
            if url is None:
                continue
            if target.method == "get":
                result = await self._request(task, route, url, query=v1.query(event))
            else:
                result = await self._request(task, route, url, body=orjson.dumps(event))
            _record_arrival(task, result)
            if result.is_success:
                return

    async def _send_v2(self, task: _Task) -> None:
        message, url = task.message, task.message.target.url
        assert url is not None  # noqa: S101
        body = orjson.dumps([v2.event(message, step, self._settings.speed) for step in task.callback.steps])
        result = await self._request(task, "primary", url, body=body)
        if result.status == 401 and not result.challenged:
            # As at Bandwidth: without a challenge there is no second request, and the callback is lost.
            return
        if result.challenged and self._settings.callback_credentials:
            credentials = self._settings.callback_credentials.get_secret_value()
            result = await self._request(task, "primary", url, body=body, credentials=credentials)
        _record_arrival(task, result)
        if not (result.is_success or result.is_permanent):
            self._schedule_retry(task)

    def _schedule_retry(self, task: _Task) -> None:
        """Schedules the next attempt, unless it would come more than a day after the first."""
        speed, now = self._settings.speed, self._clock.now()
        task.first_attempt_at = task.first_attempt_at or now
        due_at = now + timedelta(seconds=RETRY_DELAYS[min(task.attempt, len(RETRY_DELAYS)) - 1] / speed)
        task.attempt += 1
        if due_at - task.first_attempt_at <= RETRY_PERIOD / speed and not task.message.is_evicted:
            self._push(due_at, task)
            self.wake()

    async def _request(
        self,
        task: _Task,
        route: str,
        url: str,
        *,
        query: str = "",
        body: bytes = b"",
        credentials: str | None = None,
    ) -> RequestResult:
        """Makes one request and records it."""
        message, started_at, loop = task.message, self._clock.now(), asyncio.get_running_loop()
        user_agent = v1.USER_AGENT if message.api is Api.V1 else v2.USER_AGENT
        request = CallbackRequest(url=url, user_agent=user_agent, query=query, body=body, credentials=credentials)
        start = loop.time()
        result = await self._client.send(request, message.target.timeout)
        parts = urlsplit(url)
        self.records.append(
            CallbackRecord(
                id=next(self._record_ids),
                api=message.api,
                message_id=message.id,
                route=route,
                method=request.method,
                url=f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}",
                query=query,
                attempt=task.attempt,
                with_credentials=credentials is not None or "@" in parts.netloc,
                status=result.status,
                error=result.error,
                started_at=started_at,
                seconds=loop.time() - start,
                body=body,
            )
        )
        return result


def _record_arrival(task: _Task, result: RequestResult) -> None:
    """Records on the message whether its callback has arrived or may have, for the expected statuses."""
    if result.is_success:
        task.message.confirmed.update(task.callback.steps)
    elif result.may_have_arrived:
        task.message.unanswered.update(task.callback.steps)
