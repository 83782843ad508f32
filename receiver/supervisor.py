"""The supervisor: runs the worker of a web process as a child or in a thread, watches it, restarts it."""

import asyncio
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol
from uuid import uuid4

import orjson
import structlog

from receiver.errors import ReceiverError
from receiver.explanation.installation import WorkerRecord
from receiver.exposition import Families, families
from receiver.intake.processor import ProcessorStatus
from receiver.metrics import WorkerMetrics
from receiver.settings import Settings, dump
from receiver.sinks.python import APPLICATION_LOOP
from receiver.waiting import wait_for
from receiver.worker import LINE_BYTES, REPORT_SECONDS, Worker, loop_factory, worker_lock

_FIRST_BACKOFF_SECONDS: Final = 0.1
_MAX_BACKOFF_SECONDS: Final = 10.0
# After a worker ran this long, the backoff is reset.
_STABLE_SECONDS: Final = 30.0
# A worker without a report for this long is frozen, or its machine is overloaded.
SILENT_SECONDS: Final = 10 * REPORT_SECONDS
_STOP_SECONDS: Final = 20.0
_RELOAD_SECONDS: Final = 20.0

# The holder of leases: successive workers of a web process share it, so that a new one takes over without waiting.
_HOLDER: Final = uuid4().hex

log = structlog.get_logger("receiver.supervisor")


class Supervisor(Protocol):
    """The interface of all supervisors."""

    async def start(self) -> None: ...
    def will_stop(self) -> None:
        """Announces that this process is about to stop: a worker that ends from now on is not restarted."""
        ...

    async def stop(self) -> None: ...
    async def reload(self, settings: Settings) -> None:
        """Has the worker apply new settings; raises ReceiverError, and nothing changes, if it does not."""
        ...

    def wake(self) -> None:
        """Wakes the processor: the journal has new callbacks."""
        ...

    @property
    def is_starting(self) -> bool:
        """Whether the worker is still starting."""
        ...

    def view(self) -> WorkerRecord: ...
    def metrics(self) -> Families:
        """The metrics of the worker, at most two seconds old."""
        ...


def supervisor(settings: Settings, *, in_application: bool = False) -> Supervisor:
    """The supervisor for these settings; `in_application`: the web process is that of somebody's application."""
    match settings.worker:
        case "process":
            return WorkerProcess(settings)
        case "inline":
            return WorkerThread(settings, in_application=in_application)
        case _:
            return WorkerElsewhere()


class WorkerElsewhere:
    """No worker: `receiver work` runs it, on this machine or another one."""

    async def start(self) -> None: ...
    def will_stop(self) -> None: ...
    async def stop(self) -> None: ...
    async def reload(self, settings: Settings) -> None: ...
    def wake(self) -> None: ...

    is_starting = False

    def view(self) -> WorkerRecord:
        return WorkerRecord(mode="none", state="elsewhere")

    def metrics(self) -> Families:
        return []


class WorkerThread:
    """A worker in a thread of this process, with an event loop of its own.

    `in_application`: sinks that call async functions of the application call them on the event loop of the application.
    """

    def __init__(self, settings: Settings, *, in_application: bool = False) -> None:
        self._settings = settings
        self._in_application = in_application
        self._loop: asyncio.AbstractEventLoop | None = None
        self._worker: Worker | None = None
        self._since: datetime | None = None
        self._thread: threading.Thread | None = None
        self._lock = worker_lock(settings)
        # A reload waits until the worker has started.
        self._changing = asyncio.Lock()

    async def start(self) -> None:
        self._lock.__enter__()
        factory = loop_factory()
        loop = self._loop = factory() if factory else asyncio.new_event_loop()
        self._thread = threading.Thread(target=loop.run_forever, name="receiver-worker", daemon=True)
        self._thread.start()
        try:
            async with self._changing:
                await self._on_worker_loop(self._start_worker())
        except BaseException:
            self._end_thread()
            raise
        self._since = datetime.now(UTC)

    def will_stop(self) -> None: ...

    async def stop(self) -> None:
        if self._worker is not None:
            await self._on_worker_loop(self._worker.stop())
            self._end_thread()

    async def reload(self, settings: Settings) -> None:
        async with self._changing:
            if self._worker is not None:
                await self._on_worker_loop(self._worker.reload(settings))
            self._settings = settings

    def wake(self) -> None:
        if self._loop is not None and self._worker is not None:
            self._loop.call_soon_threadsafe(self._worker.wake)

    @property
    def is_starting(self) -> bool:
        return self._worker is None

    def view(self) -> WorkerRecord:
        if self._worker is None:
            return WorkerRecord(mode="inline", state="down")
        health = self._worker.processor.health
        return WorkerRecord(
            mode="inline",
            state="running",
            since=self._since,
            processor=health.status,
            failing_since_at=health.failing_since_at,
            error=health.error,
        )

    def metrics(self) -> Families:
        return families(self._worker.metrics.registry) if self._worker is not None else []

    async def _start_worker(self) -> None:
        worker = Worker(self._settings, WorkerMetrics())
        await worker.start()
        self._worker = worker

    async def _on_worker_loop(self, work: Any) -> None:
        """Runs a coroutine on the event loop of the worker, and waits for it."""
        assert self._loop is not None  # noqa: S101
        # The work and every task that it begins has a copy of the context.
        context = copy_context()
        if self._in_application:
            context.run(APPLICATION_LOOP.set, asyncio.get_running_loop())
        await asyncio.wrap_future(context.run(asyncio.run_coroutine_threadsafe, work, self._loop))

    def _end_thread(self) -> None:
        assert self._loop is not None  # noqa: S101
        assert self._thread is not None  # noqa: S101
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = self._worker = None
        self._lock.__exit__(None, None, None)


class WorkerProcess:
    """A worker in a child process. It is restarted when it ends, and ends with this process, even if that is killed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_stopping = False
        self._stopping = asyncio.Event()
        self._restarts = 0
        self._since: datetime | None = None
        self._reported_at = float("-inf")
        self._report: dict[str, Any] = {}
        self._reloads = 0
        self._reload: _Reload | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._supervise())

    def will_stop(self) -> None:
        # The handler of a signal calls this, so it must not touch the event loop.
        self._is_stopping = True

    async def stop(self) -> None:
        """Lets the worker finish its current work, and kills it if that takes too long."""
        self._is_stopping = True
        self._stopping.set()
        self._write({"stop": True})
        if self._task is None:
            return
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await asyncio.shield(self._task)
        except TimeoutError:
            log.warning("worker did not stop in time, killing it", process=self._pid)
            self._kill()
            await self._task

    async def reload(self, settings: Settings) -> None:
        """Has the worker apply new settings. A worker that is down, or dies meanwhile, starts with them."""
        if self._writer is not None:
            self._reloads += 1
            reload = self._reload = _Reload(self._reloads, asyncio.get_running_loop().create_future())
            self._write(_settings_message(settings, reload.number))
            try:
                async with asyncio.timeout(_RELOAD_SECONDS):
                    error = await reload.answer
            except TimeoutError:
                # Once it reads again, it applies both messages, and has the same settings as the web process.
                self._write(_settings_message(self._settings))
                raise ReceiverError(f"the worker did not apply the settings within {_RELOAD_SECONDS:.0f} s") from None
            finally:
                self._reload = None
            if error is not None:
                raise ReceiverError(error)
        self._settings = settings

    def wake(self) -> None:
        # A worker that has not read earlier messages will wake up anyway.
        if self._is_connected and not self._transport.get_write_buffer_size():
            self._transport.write(b"\n")

    @property
    def is_starting(self) -> bool:
        return self._report.get("processor") in (None, ProcessorStatus.STARTING)

    def view(self) -> WorkerRecord:
        is_silent = time.monotonic() - self._reported_at > SILENT_SECONDS
        state = "down" if self._process is None else "silent" if is_silent else "running"
        since = self._report.get("failingSince")
        return WorkerRecord(
            mode="process",
            state=state,
            process=self._pid,
            restarts=self._restarts,
            since=self._since,
            processor=self._report.get("processor"),
            failing_since_at=datetime.fromisoformat(since) if since else None,
            error=self._report.get("error"),
        )

    def metrics(self) -> Families:
        reported: Families = self._report.get("metrics", [])
        return reported

    @property
    def _pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    async def _supervise(self) -> None:
        backoff = _FIRST_BACKOFF_SECONDS
        while not self._is_stopping:
            started_at = time.monotonic()
            try:
                code = await self._run_once()
            except OSError as error:
                log.error("worker cannot be started", error=str(error))
                code = None
            if self._is_stopping:
                return
            if time.monotonic() - started_at >= _STABLE_SECONDS:
                backoff = _FIRST_BACKOFF_SECONDS
            log.error("worker ended, restarting it", exit_code=code, after_seconds=backoff)
            self._restarts += 1
            await wait_for(self._stopping, backoff)
            backoff = min(backoff * 2, _MAX_BACKOFF_SECONDS)

    async def _run_once(self) -> int | None:
        """Starts the worker and reads its reports until it ends; returns its exit code."""
        ours, theirs = socket.socketpair()
        try:
            process = await _spawn(theirs)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours, limit=LINE_BYTES)
        self._process, self._writer, self._since = process, writer, datetime.now(UTC)
        self._reported_at = time.monotonic()
        try:
            self._write({"stop": True} if self._is_stopping else _settings_message(self._settings))
            if await self._listen(reader):
                # The worker closed its end. It is about to exit, unless a thread of a sink prevents that.
                with suppress(TimeoutError):
                    async with asyncio.timeout(_STOP_SECONDS):
                        await process.wait()
        finally:
            self._kill()
            code = await process.wait()
            writer.close()
            self._process = self._writer = None
            self._report = {}
            if self._reload is not None:
                # The next worker starts with the new settings.
                self._reload.end(None)
        return code

    async def _listen(self, reader: asyncio.StreamReader) -> bool:
        """Reads the messages of the worker until it closes its end; False if a message is not valid."""
        try:
            while line := await reader.readline():
                message = orjson.loads(line)
                if "report" in message:
                    self._report, self._reported_at = message["report"], time.monotonic()
                elif self._reload is not None and message.get("number") == self._reload.number:
                    self._reload.end(message["reloaded"])
        except ConnectionError:
            return True
        except ValueError as error:
            log.error("the worker's reports cannot be read, killing it", error=str(error))
            return False
        return True

    @property
    def _transport(self) -> asyncio.WriteTransport:
        assert self._writer is not None  # noqa: S101
        return self._writer.transport

    @property
    def _is_connected(self) -> bool:
        return self._writer is not None and not self._transport.is_closing()

    def _write(self, message: dict[str, Any]) -> None:
        if self._is_connected:
            self._transport.write(orjson.dumps(message) + b"\n")

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()


@dataclass(frozen=True, slots=True)
class _Reload:
    """New settings that were sent to the worker; the answer is None, or the error that keeps it from applying them."""

    number: int
    answer: asyncio.Future[str | None]

    def end(self, error: str | None) -> None:
        if not self.answer.done():
            self.answer.set_result(error)


async def _spawn(connection: socket.socket) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        # The worker imports from the same places as this process; without -P its current folder would come first.
        "-P",
        "-m",
        "receiver.worker",
        str(connection.fileno()),
        pass_fds=(connection.fileno(),),
        stdin=asyncio.subprocess.DEVNULL,
        # Ctrl-C in a terminal reaches the web process alone, which stops its worker after the last callback.
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(place or os.getcwd() for place in sys.path)},  # noqa: PTH109
    )


def _settings_message(settings: Settings, number: int = 0) -> dict[str, Any]:
    return {"settings": orjson.loads(dump(settings)), "number": number, "holder": _HOLDER}
