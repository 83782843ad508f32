"""The journal's writer: group commit. A callback is accepted once the transaction that appends it is on disk.

While one group is being committed the next gathers, so the busier it is, the larger the groups. What waits is bounded
in number, bytes and time: a request that has waited `ANSWER_SECONDS` gets an error. Bandwidth then sends the callback
again, and if the first one was committed after all, the processor finds the second one to be a repeat.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Protocol

import msgspec
import structlog

from receiver.domain.callbacks import Callback
from receiver.errors import JournalFull, StorageUnavailable
from receiver.storage.journal import JournalWriter

# 4.5 s plus one tick of the watchdog (4.5/20 s) keeps the answer under 5 s.
ANSWER_SECONDS: Final = 4.5
_MAX_WAITING: Final = 4096
_MAX_WAITING_BYTES: Final = 64 * 1024 * 1024
_GROUP_CALLBACKS: Final = 512
_GROUP_BYTES: Final = 16 * 1024 * 1024
# A group closes after so many turns of the event loop in which nobody joined.
_QUIET_TURNS: Final = 2
_LOG_EVERY_SECONDS: Final = 60.0

log = structlog.get_logger("receiver.journal")


class JournalObserver(Protocol):
    """Receives the measurements of the journal."""

    def appended(self, callbacks: int, commit_seconds: float, waited_seconds: Iterable[float]) -> None: ...


class _Waiting(msgspec.Struct, eq=False):
    callback: Callback
    accepted: asyncio.Future[None]
    since: float


class Journal:
    """Appends callbacks in groups, one transaction for each."""

    def __init__(
        self, writer: JournalWriter, *, observer: JournalObserver, on_append: Callable[[], None] = lambda: None
    ) -> None:
        self._writer = writer
        self._observer = observer
        self._on_append = on_append
        self._waiting: deque[_Waiting] = deque()
        self._committing: list[_Waiting] = []
        self._bytes = 0
        self._arrived = asyncio.Event()
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        # one transaction at a time: a probe waits for the group that is being committed, and the other way round
        self._turn = asyncio.Lock()
        self._failures = _Failures()

    async def start(self) -> None:
        self._tasks = [asyncio.create_task(self._work()), asyncio.create_task(self._watch())]

    async def stop(self) -> None:
        """Commits what was accepted for appending, then ends."""
        self._stopping = True
        self._arrived.set()
        worker, watch = self._tasks
        await worker
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        await self._writer.close()

    def append(self, callback: Callback) -> asyncio.Future[None]:
        """A future that is done once the callback is on disk.

        It fails with StorageUnavailable where that could not be done in time. Raises JournalFull where too many
        callbacks wait already.
        """
        if self._stopping or len(self._waiting) >= _MAX_WAITING or self._bytes >= _MAX_WAITING_BYTES:
            raise JournalFull("too many callbacks wait to be committed")
        accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(callback, accepted, time.monotonic()))
        self._bytes += len(callback.body)
        if len(self._waiting) == 1:
            self._arrived.set()
        return accepted

    async def probe(self) -> None:
        """Commits on the very path of a callback; raises JournalFull or StorageUnavailable where that fails."""
        if self._stopping or len(self._waiting) >= _MAX_WAITING or self._bytes >= _MAX_WAITING_BYTES:
            raise JournalFull("too many callbacks wait to be committed")
        async with self._turn:
            await self._writer.probe()

    @property
    def waiting(self) -> int:
        """How many callbacks wait for their commit."""
        return len(self._waiting) + len(self._committing)

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            await self._let_others_join()
            self._committing = group = self._gather()
            if group:
                try:
                    await self._commit(group)
                except Exception:  # an observer that fails must not end the journal
                    log.exception("the journal's group was handled badly", callbacks=len(group))
            elif self._stopping:
                return
            else:
                self._arrived.clear()

    async def _let_others_join(self) -> None:
        """Waits for the requests that are being read right now.

        Without it two groups form that take turns, one large and one of a single callback, each with its own commit.
        """
        quiet = 0
        while quiet < _QUIET_TURNS and len(self._waiting) < _GROUP_CALLBACKS:
            waiting = len(self._waiting)
            await asyncio.sleep(0)
            quiet = quiet + 1 if len(self._waiting) == waiting else 0

    def _gather(self) -> list[_Waiting]:
        group: list[_Waiting] = []
        size = 0
        while self._waiting and len(group) < _GROUP_CALLBACKS and size < _GROUP_BYTES:
            one = self._waiting.popleft()
            self._bytes -= len(one.callback.body)
            # Its sender was answered 503 meanwhile, or went away, and sends the callback again.
            if not one.accepted.done():
                group.append(one)
                size += len(one.callback.body)
        return group

    async def _commit(self, group: list[_Waiting]) -> None:
        """Appends a group. An error costs its members their answer and never the journal its life."""
        started = time.monotonic()
        try:
            async with self._turn:
                await self._writer.append([one.callback for one in group])
        except Exception as error:
            known = isinstance(error, StorageUnavailable)
            refusal = error if isinstance(error, StorageUnavailable) else StorageUnavailable(type(error).__name__)
            self._failures.add(len(group), str(error) if known else repr(error))
            _fail(group, refusal)
            return
        finally:
            self._committing = []
        ended = time.monotonic()
        for one in group:
            if not one.accepted.done():
                one.accepted.set_result(None)
        self._failures.end()
        self._on_append()
        self._observer.appended(len(group), ended - started, [ended - one.since for one in group])

    async def _watch(self) -> None:
        """Fails those who waited too long. What is being committed may still be stored."""
        while True:
            await asyncio.sleep(ANSWER_SECONDS / 20)
            deadline = time.monotonic() - ANSWER_SECONDS
            waiting = (*self._committing, *self._waiting)
            late = [one for one in waiting if one.since < deadline and not one.accepted.done()]
            if late:
                _fail(late, StorageUnavailable(f"not committed within {ANSWER_SECONDS} s"))
                self._failures.add(len(late), f"not committed within {ANSWER_SECONDS} s")


class _Failures:
    """Logs that callbacks could not be committed: the first time at once, then once a minute with their number."""

    def __init__(self) -> None:
        self._callbacks = 0
        self._logged_at = float("-inf")
        self._is_failing = False

    def add(self, callbacks: int, error: str) -> None:
        self._is_failing = True
        self._callbacks += callbacks
        if time.monotonic() - self._logged_at >= _LOG_EVERY_SECONDS:
            log.error("callbacks could not be committed", callbacks=self._callbacks, error=error)
            self._logged_at, self._callbacks = time.monotonic(), 0

    def end(self) -> None:
        if self._is_failing:
            log.info("callbacks are committed again")
            self._is_failing, self._logged_at = False, float("-inf")


def _fail(group: Iterable[_Waiting], error: StorageUnavailable) -> None:
    for one in group:
        if not one.accepted.done():
            one.accepted.set_exception(error)
