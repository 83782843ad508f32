"""Calls back as Bandwidth does: v1 once, then the fallback URL; v2 with a challenge, again and again until 2xx."""

import asyncio
import base64
import heapq
import ipaddress
import itertools
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

import httpcore2
import httpx2
import orjson

from receiver.domain.events import Api
from receiver.sandbox import v1, v2
from receiver.sandbox.clock import Clock
from receiver.sandbox.messages import Message
from receiver.sandbox.settings import SandboxSettings
from receiver.sandbox.timeline import Post

# v2's pauses are not published; these are ours, the last one repeats
PAUSES: Final = (10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
GIVEN_UP_AFTER: Final = timedelta(hours=24)

_JSON: Final = "application/json; charset=utf-8"
_MOST_READ: Final = 64 * 1024
# common servers close an idle connection after five seconds
_IDLE_SECONDS: Final = 4.0
_LOOK_SECONDS: Final = 0.5
# nothing of the callback has left us
_UNREACHABLE: Final = (httpcore2.ConnectError, httpcore2.ConnectTimeout, httpx2.InvalidURL)
_REMOTE: Final = "not on this machine; remote_callbacks allows it"


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


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a request gave: a status and whether credentials are asked for, or an error.

    `unsure` says that the other side may have got the request without telling, `hopeless` that it never will get it.
    """

    status: int | None = None
    challenged: bool = False
    error: str | None = None
    unsure: bool = False
    hopeless: bool = False

    @property
    def is_success(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


class Caller:
    """Posts callbacks when they are due.

    First attempts of one message are made one after the other, so that nothing comes out of order but on purpose.
    """

    def __init__(self, settings: SandboxSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._due: list[tuple[datetime, int, _Task]] = []
        self._ticket = itertools.count()
        self._lanes: dict[Message, _Lane] = {}
        self._forgotten = 0
        self._slots = asyncio.Semaphore(settings.connections)
        self._woken = asyncio.Event()
        self._settled = asyncio.Event()
        self._pool: httpcore2.AsyncConnectionPool | None = None
        self._numbers = itertools.count(1)
        self.calls: deque[Call] = deque(maxlen=settings.max_posts)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Posts what is due as long as the block runs."""
        async with (
            httpcore2.AsyncConnectionPool(
                max_connections=self._settings.connections,
                max_keepalive_connections=self._settings.connections,
                keepalive_expiry=_IDLE_SECONDS,
            ) as self._pool,
            asyncio.TaskGroup() as group,
        ):
            runner = group.create_task(self._run(group))
            try:
                yield
            finally:
                for task in (runner, *self._workers()):
                    task.cancel()
                self._lanes.clear()

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
        self._lanes.clear()
        self.calls.clear()
        self._settled.set()
        self.wake()

    def wake(self) -> None:
        """Looks again at what is due: the clock was moved, or there is more."""
        self._woken.set()

    def state(self) -> State:
        self._sweep()
        under_way = sum(len(lane.tasks) + 1 for lane in self._lanes.values())
        return State(len(self._due), under_way, self._due[0][0] if self._due else None)

    async def settle(self, seconds: float) -> State:
        """Waits until nothing is left to post, at most so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self.state().idle:
                    self._settled.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK_SECONDS):
                            await self._settled.wait()
        return self.state()

    def _workers(self) -> Iterable[asyncio.Task[None]]:
        return [lane.worker for lane in self._lanes.values() if lane.worker]

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
            lane = self._lanes.setdefault(task.message, _Lane())
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
        if self._lanes.get(message) is lane:
            del self._lanes[message]
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

    def _is_settled(self, task: _Task, answer: _Answer) -> bool:
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
    ) -> _Answer:
        """Makes one request and keeps a record of it."""
        started_at, loop = self._clock.now(), asyncio.get_running_loop()
        start = loop.time()
        answer = await self._answer(task.message, url, query, body, credentials)
        parts = urlsplit(url)
        self.calls.append(
            Call(
                id=next(self._numbers),
                api=task.message.api,
                message_id=task.message.id,
                route=route,
                method="GET" if query else "POST",
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

    async def _answer(self, message: Message, url: str, query: str, body: bytes, credentials: str | None) -> _Answer:
        try:
            target = _target(url)
            if not (self._settings.remote_callbacks or target.is_local):
                return _Answer(error=_REMOTE, hopeless=True)
            async with asyncio.timeout(message.destination.seconds):
                return await self._exchange(message.api, target, query, body, credentials)
        except TimeoutError:
            return _Answer(error="timeout", unsure=True)
        except _UNREACHABLE as error:
            return _Answer(error=f"unreachable: {type(error).__name__}")
        except (httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            return _Answer(error=f"connection broken: {type(error).__name__}", unsure=True)
        except Exception as error:
            # whatever it is, the other callbacks must go on
            return _Answer(error=f"unforeseen: {type(error).__name__}", unsure=True)

    async def _exchange(self, api: Api, target: "_Target", query: str, body: bytes, credentials: str | None) -> _Answer:
        assert self._pool is not None  # noqa: S101
        headers = {
            "host": target.netloc,
            "user-agent": v1.USER_AGENT if api is Api.V1 else v2.USER_AGENT,
            "accept-encoding": "identity",
        }
        if body:
            headers["content-type"] = _JSON
        if pair := credentials or target.credentials:
            headers["authorization"] = f"Basic {base64.b64encode(pair.encode()).decode('ascii')}"
        async with self._pool.stream(
            "GET" if query else "POST", target.with_query(query), headers=list(headers.items()), content=body or None
        ) as response:
            await _read(response)
        return _Answer(response.status, challenged=response.status == 401 and _is_challenge(response))


@dataclass(frozen=True, slots=True)
class _Target:
    """A URL taken apart."""

    url: httpx2.URL
    netloc: str
    credentials: str | None = field(repr=False)
    is_local: bool

    def with_query(self, query: str) -> httpcore2.URL:
        """The URL to ask, with these parameters after its own."""
        path = self.url.raw_path.decode("ascii")
        if query:
            path += ("&" if self.url.query else "" if path.endswith("?") else "?") + query
        return httpcore2.URL(
            scheme=self.url.raw_scheme, host=self.url.raw_host, port=self.url.port, target=path.encode("ascii")
        )


@lru_cache(maxsize=256)
def _target(text: str) -> _Target:
    url = httpx2.URL(text)
    pair = f"{url.username}:{url.password}" if url.userinfo else None
    return _Target(url, url.netloc.decode("ascii"), pair, _is_local(url.host))


def _is_local(host: str) -> bool:
    """Whether a host is this machine, as far as its name tells."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _read(response: httpcore2.Response) -> None:
    """Reads an answer to its end, so that the connection can be used again, or so far and no further."""
    read = 0
    async with aclosing(response.aiter_stream()) as chunks:
        async for chunk in chunks:
            read += len(chunk)
            if read >= _MOST_READ:
                break


def _is_challenge(response: httpcore2.Response) -> bool:
    return any(
        name.lower() == b"www-authenticate" and value.lstrip().lower().startswith(b"basic")
        for name, value in response.headers
    )
