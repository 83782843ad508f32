"""Calls back as Bandwidth does: v1 once, then the fallback URL; v2 with a challenge, again and again until 2xx."""

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final
from urllib.parse import urlsplit

import orjson

from receiver.domain.events import Api
from receiver.sandbox import v1, v2
from receiver.sandbox.client import Answer, CallbackClient, CallbackRequest
from receiver.sandbox.messages import Message
from receiver.sandbox.settings import SandboxSettings
from receiver.sandbox.timeline import Clock, Post

# v2's pauses are not published; these are ours, the last one repeats
PAUSES: Final = (10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
GIVEN_UP_AFTER: Final = timedelta(hours=24)

_LOOK_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request that was made, and what came of it: a status, or an error in words. No URL holds credentials."""

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
class State:
    """What is still to be posted."""

    waiting: int
    under_way: int
    next_at: datetime | None

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.under_way)


@dataclass(slots=True)
class _Task:
    """A callback that is due, for the first time or again."""

    message: Message
    post: Post
    attempt: int = 1
    first_at: datetime | None = None


@dataclass(slots=True)
class _Lane:
    """The callbacks of one message that are due: one at a time, in their order."""

    tasks: deque[_Task] = field(default_factory=deque)
    worker: asyncio.Task[None] | None = None


class Caller:
    """Posts callbacks when they are due.

    First attempts of one message are made one after the other, so that nothing comes out of order but on purpose.
    """

    def __init__(self, settings: SandboxSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._due: list[tuple[datetime, int, _Task]] = []
        self._ticket = itertools.count()
        self._ordering_keys: dict[Message, _Lane] = {}
        self._forgotten = 0
        self._slots = asyncio.Semaphore(settings.connections)
        self._woken = asyncio.Event()
        self._settled = asyncio.Event()
        self._waits_end = False
        self._client = CallbackClient(connections=settings.connections, remote=settings.remote_callbacks)
        self._numbers = itertools.count(1)
        self.calls: deque[Call] = deque(maxlen=settings.max_posts)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Posts what is due as long as the block runs."""
        self._waits_end = False
        async with self._client.running(), asyncio.TaskGroup() as group:
            runner = group.create_task(self._run(group))
            try:
                yield
            finally:
                for task in (runner, *self._workers()):
                    task.cancel()
                self._ordering_keys.clear()

    def schedule(self, message: Message) -> None:
        """Plans the callbacks of a message."""
        if message.destination.url is None:
            return
        for post in message.script.posts:
            due_at = message.created_at + timedelta(seconds=post.after / self._settings.speed)
            self._push(due_at, _Task(message, post))
        self.wake()

    def forget(self, message: Message) -> None:
        """Plans nothing more for a message."""
        message.forgotten = True
        self._forgotten += 1
        # now and then, so that what is forgotten does not pile up
        if self._forgotten > self._settings.max_messages // 10:
            self._sweep()

    def clear(self) -> None:
        """Forgets what is due and what was called."""
        self._due.clear()
        for worker in self._workers():
            worker.cancel()
        self._ordering_keys.clear()
        self.calls.clear()
        self._settled.set()
        self.wake()

    def wake(self) -> None:
        """Looks again at what is due: the clock was moved, or there is more."""
        self._woken.set()

    def state(self) -> State:
        self._sweep()
        under_way = sum(len(lane.tasks) + 1 for lane in self._ordering_keys.values())
        return State(len(self._due), under_way, self._due[0][0] if self._due else None)

    async def settle(self, seconds: float) -> State:
        """Waits until nothing is left to post, at most so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not (self._waits_end or self.state().idle):
                    self._settled.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK_SECONDS):
                            await self._settled.wait()
        return self.state()

    def end_waits(self) -> None:
        """Lets go whoever waits until nothing is left, now and from now on: we are about to stop."""
        self._waits_end = True
        self._settled.set()

    def _workers(self) -> Iterable[asyncio.Task[None]]:
        return [lane.worker for lane in self._ordering_keys.values() if lane.worker]

    def _push(self, due_at: datetime, task: _Task) -> None:
        heapq.heappush(self._due, (due_at, next(self._ticket), task))

    def _sweep(self) -> None:
        if self._forgotten:
            self._forgotten = 0
            self._due = [each for each in self._due if not each[2].message.forgotten]
            heapq.heapify(self._due)

    async def _run(self, group: asyncio.TaskGroup) -> None:
        while True:
            self._woken.clear()
            pause = self._begin_due(group)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._woken.wait()

    def _begin_due(self, group: asyncio.TaskGroup) -> float | None:
        """Hands what is due to the lanes; returns the seconds until there is more, None for never."""
        now = self._clock.now()
        while self._due and self._due[0][0] <= now:
            task = heapq.heappop(self._due)[2]
            lane = self._ordering_keys.setdefault(task.message, _Lane())
            lane.tasks.append(task)
            if lane.worker is None:
                lane.worker = group.create_task(self._work(task.message, lane))
        return (self._due[0][0] - now).total_seconds() if self._due else None

    async def _work(self, message: Message, lane: _Lane) -> None:
        while lane.tasks:
            task = lane.tasks.popleft()
            async with self._slots:
                # it may have been forgotten while it waited for its turn
                if not message.forgotten:
                    await self._call(task)
        if self._ordering_keys.get(message) is lane:
            del self._ordering_keys[message]
        self._settled.set()

    async def _call(self, task: _Task) -> None:
        if task.message.api is Api.V1:
            await self._call_v1(task)
        else:
            await self._call_v2(task)

    async def _call_v1(self, task: _Task) -> None:
        message, destination = task.message, task.message.destination
        told = v1.event(message, task.post.steps[0], message.uri)
        for route, url in (("primary", destination.url), ("fallback", destination.fallback)):
            if url is None:
                continue
            if destination.method == "get":
                answer = await self._ask(task, route, url, query=v1.query(told))
            else:
                answer = await self._ask(task, route, url, body=orjson.dumps(told))
            if self._is_settled(task, answer):
                return

    async def _call_v2(self, task: _Task) -> None:
        message, url = task.message, task.message.destination.url
        assert url is not None  # noqa: S101
        body = orjson.dumps([v2.event(message, step, self._settings.speed) for step in task.post.steps])
        answer = await self._ask(task, "primary", url, body=body)
        if answer.status == 401 and not answer.challenged:
            # nobody asked for credentials, so there is no second request: the callback is lost
            return
        if answer.challenged and self._settings.callback_credentials:
            pair = self._settings.callback_credentials.get_secret_value()
            answer = await self._ask(task, "primary", url, body=body, credentials=pair)
        if not self._is_settled(task, answer) and not answer.hopeless:
            self._try_again(task)

    def _is_settled(self, task: _Task, answer: Answer) -> bool:
        """Whether the callback has arrived; keeps the books on what the other side knows."""
        if answer.is_success:
            task.message.confirmed.update(task.post.steps)
        elif answer.unsure:
            task.message.unsure.update(task.post.steps)
        return answer.is_success

    def _try_again(self, task: _Task) -> None:
        """Plans the next attempt, unless a day has passed since the first."""
        speed, now = self._settings.speed, self._clock.now()
        task.first_at = task.first_at or now
        due_at = now + timedelta(seconds=PAUSES[min(task.attempt, len(PAUSES)) - 1] / speed)
        task.attempt += 1
        if due_at - task.first_at <= GIVEN_UP_AFTER / speed and not task.message.forgotten:
            self._push(due_at, task)
            self.wake()

    async def _ask(
        self,
        task: _Task,
        route: str,
        url: str,
        *,
        query: str = "",
        body: bytes = b"",
        credentials: str | None = None,
    ) -> Answer:
        """Makes one request and keeps a record of it."""
        message, started_at, loop = task.message, self._clock.now(), asyncio.get_running_loop()
        user_agent = v1.USER_AGENT if message.api is Api.V1 else v2.USER_AGENT
        request = CallbackRequest(url=url, user_agent=user_agent, query=query, body=body, credentials=credentials)
        start = loop.time()
        answer = await self._client.ask(request, message.destination.seconds)
        parts = urlsplit(url)
        self.calls.append(
            Call(
                id=next(self._numbers),
                api=message.api,
                message_id=message.id,
                route=route,
                method=request.method,
                url=f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}",
                query=query,
                attempt=task.attempt,
                with_credentials=credentials is not None or "@" in parts.netloc,
                status=answer.status,
                error=answer.error,
                started_at=started_at,
                seconds=loop.time() - start,
                body=body,
            )
        )
        return answer
