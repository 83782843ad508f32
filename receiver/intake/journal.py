"""Group commit of the journal. A callback is accepted once the transaction that appends it is on disk.

While one group is committed the next one gathers, so groups grow with the load. The waiting callbacks are bounded in
number, bytes and time: a request that has waited `ANSWER_SECONDS` gets an error. Bandwidth then repeats the callback,
and if the first copy was committed after all, the processor drops the second as a repeat.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Protocol

import msgspec
import structlog

from receiver.domain.events import Callback
from receiver.errors import JournalFull, StorageUnavailable
from receiver.storage.journal import JournalWriter

# 4.5 s plus one tick of the watchdog (4.5/20 s) keeps the answer under 5 s.
ANSWER_SECONDS: Final = 4.5
_MAX_WAITING: Final = 4096
_MAX_WAITING_BYTES: Final = 64 * 1024 * 1024
_GROUP_CALLBACKS: Final = 512
_GROUP_BYTES: Final = 16 * 1024 * 1024
# A group closes after this many turns of the event loop in which no callback joined.
_QUIET_TURNS: Final = 2
_LOG_EVERY_SECONDS: Final = 60.0

log = structlog.get_logger("receiver.journal")
_levels: Final = logging.getLogger("receiver.journal")


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
        # One transaction at a time: a probe waits for the commit of a group, and a group for a probe.
        self._turn = asyncio.Lock()
        self._failures = _Failures()
        # Of their own: probes that succeed between appends that fail would begin a line of the log each time.
        self._probe_failures = _Failures()

    async def start(self) -> None:
        self._tasks = [asyncio.create_task(self._work()), asyncio.create_task(self._watch())]

    async def stop(self) -> None:
        """Commits the waiting callbacks, then stops."""
        self._stopping = True
        self._arrived.set()
        worker, watch = self._tasks
        await worker
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        await self._writer.close()

    def append(self, callback: Callback) -> asyncio.Future[None]:
        """A future that is done once the callback is on disk.

        It fails with StorageUnavailable if the callback could not be committed in time. Raises JournalFull if too many
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
        """Commits on the same path as a callback; raises JournalFull or StorageUnavailable if that fails."""
        if self._stopping or len(self._waiting) >= _MAX_WAITING or self._bytes >= _MAX_WAITING_BYTES:
            raise JournalFull("too many callbacks wait to be committed")
        try:
            async with self._turn:
                await self._writer.probe()
        except StorageUnavailable as error:
            # Without callbacks nothing else tells why this process is not ready.
            self._probe_failures.add(0, str(error))
            raise
        self._probe_failures.end()

    @property
    def waiting(self) -> int:
        """The number of callbacks that wait for commit."""
        return len(self._waiting) + len(self._committing)

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            await self._let_others_join()
            self._committing = group = self._gather()
            if group:
                try:
                    await self._commit(group)
                except Exception:  # an observer that raises must not end the journal
                    log.exception("the journal failed after a commit", callbacks=len(group))
            elif self._stopping:
                return
            else:
                self._arrived.clear()

    async def _let_others_join(self) -> None:
        """Waits for the requests that are being received right now.

        Otherwise two groups would alternate, a large one and one of a single callback, each with a commit of its own.
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
            waiting = self._waiting.popleft()
            self._bytes -= len(waiting.callback.body)
            # If the future is done, the sender got 503 or disconnected, and repeats the callback.
            if not waiting.accepted.done():
                group.append(waiting)
                size += len(waiting.callback.body)
        return group

    async def _commit(self, group: list[_Waiting]) -> None:
        """Appends a group. An error fails the requests of the group, and never ends the journal."""
        started = time.monotonic()
        try:
            async with self._turn:
                await self._writer.append([waiting.callback for waiting in group])
        except Exception as error:
            known = isinstance(error, StorageUnavailable)
            unavailable = error if isinstance(error, StorageUnavailable) else StorageUnavailable(type(error).__name__)
            self._failures.add(len(group), str(error) if known else repr(error))
            _fail(group, unavailable)
            return
        finally:
            self._committing = []
        ended = time.monotonic()
        for waiting in group:
            if not waiting.accepted.done():
                waiting.accepted.set_result(None)
        self._failures.end()
        if _levels.isEnabledFor(logging.DEBUG):
            log.debug(
                "callbacks were committed",
                callbacks=len(group),
                first=group[0].callback.id,
                last=group[-1].callback.id,
                seconds=round(ended - started, 4),
            )
        self._on_append()
        self._observer.appended(len(group), ended - started, [ended - waiting.since for waiting in group])

    async def _watch(self) -> None:
        """Fails the requests that waited too long. The callbacks of a running commit may still be stored."""
        while True:
            await asyncio.sleep(ANSWER_SECONDS / 20)
            deadline = time.monotonic() - ANSWER_SECONDS
            requests = (*self._committing, *self._waiting)
            late = [waiting for waiting in requests if waiting.since < deadline and not waiting.accepted.done()]
            if late:
                _fail(late, StorageUnavailable(f"not committed within {ANSWER_SECONDS} s"))
                self._failures.add(len(late), f"not committed within {ANSWER_SECONDS} s")


class _Failures:
    """Logs that callbacks could not be committed: the first failure at once, then once a minute with the number."""

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
    for waiting in group:
        if not waiting.accepted.done():
            waiting.accepted.set_exception(error)
