"""The worker: everything behind the answer. It processes the journal, publishes to the sinks, removes old data.

It runs as a child process of `receiver serve`, by itself (`receiver work`), or in a thread of the web process. A child
is started as `python -m receiver.worker FD`. FD is a socket to its supervisor (`receiver.supervisor`), with lines of
JSON in both directions.
"""

import asyncio
import contextlib
import gc
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import orjson
import structlog

from receiver import exposition, logs, tags
from receiver.alerts import rules, targets
from receiver.alerts.evaluator import Evaluator, LogWatch, Rulebook
from receiver.alerts.hooks import Context
from receiver.alerts.notifier import Notifier
from receiver.alerts.targets import Targets
from receiver.clock import now
from receiver.dispatch.dispatcher import Dispatchers
from receiver.dispatch.reader import Wakeup
from receiver.domain.alerts import Rule
from receiver.errors import Faults, ReceiverError
from receiver.intake.fold import TagChecker
from receiver.intake.processor import Processor, ProcessorStatus
from receiver.metrics import WorkerMetrics
from receiver.monitoring import Monitor
from receiver.providers.registry import URLS
from receiver.settings import Settings, restore
from receiver.sinks import registry
from receiver.sinks.registry import ConfiguredSink
from receiver.storage import callbacks, sqlite_file
from receiver.storage.database import Database, is_sqlite
from receiver.storage.retention import Pruner
from receiver.tracing.recorder import configured_tracing
from receiver.waiting import wait_for

if TYPE_CHECKING:
    from receiver.reconciliation.reconciler import Reconciliation

# Garbage collection took a tenth of the time under load, most of it for objects that live as long as the process.
_GC_THRESHOLDS: Final = (50_000, 20, 50)
REPORT_SECONDS: Final = 1.0
_STARTING_SECONDS: Final = 0.05
# Accepting has priority: where both compete for a CPU, the web process gets nine tenths of it.
_NICENESS: Final = 10
# A line contains settings or metrics.
LINE_BYTES: Final = 16 * 1024 * 1024
# After the death of its supervisor a worker finishes its work for this long; its successor waits for the lock.
_ORPHAN_SECONDS: Final = 5.0
_LOCK_SECONDS: Final = 0.2
_PARENT_SECONDS: Final = 0.5
# An orphan is killed this long after the time for its work is over.
_EXIT_SECONDS: Final = 2.0

log = structlog.get_logger("receiver.worker")


def freeze_garbage_collection() -> None:
    """Collects once, exempts what is there now, and collects rarely from then on.

    Called when a process has started: what the start made lives as long as the process.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


def tag_checker(settings: Settings) -> TagChecker:
    return TagChecker(keys=tag_keys(settings), policy=settings.tag_policy)


def tag_keys(settings: Settings) -> dict[str, str]:
    return tags.parse_keys([key.get_secret_value() for key in settings.tag_keys])


def configured_sinks(settings: Settings) -> list[ConfiguredSink]:
    """The sinks of the settings. None of them may publish to a callback URL of this receiver."""
    addresses = {settings.base_url, settings.listen_url}
    own_urls = {address + url.path for address in addresses for _, url in URLS}
    return registry.configure(settings.sinks, own_urls, settings.source, settings.public_url)


def _reconciliation(
    database: Database,
    settings: Settings,
    observer: WorkerMetrics,
    *,
    on_append: Callable[[], None],
    holder: str | None,
) -> "Reconciliation | None":
    if not settings.reconciliation.accounts:
        return None
    # Imported here: few installations need it, and its HTTP client.
    from receiver.reconciliation.reconciler import Reconciliation

    return Reconciliation(
        database,
        settings.reconciliation,
        observer=observer,
        clock=now,
        random_fraction=random.random,
        on_append=on_append,
        holder=holder,
    )


def configured_rules(settings: Settings) -> list[Rule]:
    """The rules of alerts of the settings, also while alerts are switched off: a wrong one is then reported too."""
    found = configured_targets(settings).rules
    return list(found) if settings.alerts_every else []


def configured_targets(settings: Settings) -> Targets:
    """The targets for people of the rules, and the rules; raises SettingsError with a line for each fault of them."""
    sinks = [str(table.get("name")) for table in settings.sinks]
    faults = Faults()
    valid = rules.configure_valid(settings.alerts, faults, sinks=sinks, country_code=settings.country_code)
    # For targets whose texts cannot be made: what else is wrong with them is reported too.
    context = targets.make_context(base_url=settings.base_url)
    with faults.collected():
        context = target_context(settings)
    found = Targets()
    with faults.collected():
        found = targets.configure(
            valid,
            sinks=sinks,
            context=context,
            default_to=[entry.get_secret_value() for entry in settings.alert_to],
        )
    faults.refuse()
    return found


def target_context(settings: Settings) -> Context:
    """What targets for people need of the settings."""
    return targets.make_context(
        base_url=settings.base_url,
        title=settings.alert_title,
        body=settings.alert_body,
        egress_allow=settings.alert_egress_allow,
    )


def rulebook(settings: Settings, found: Targets) -> Rulebook:
    """What the evaluator of alerts needs of the settings and of the targets and rules in them."""
    sinks = {str(table.get("name")): str(table.get("type")) for table in settings.sinks}
    return Rulebook(
        rules=found.rules if settings.alerts_every else (),
        sinks=sinks,
        sinks_of=found.sinks_of,
        every=settings.alerts_every,
        base_url=settings.base_url,
        further=found.further,
    )


class Worker:
    """Processor, dispatchers, reconciliation, evaluator and notifier of alerts, and pruner of one process.

    They run on the event loop that starts it.
    """

    def __init__(self, settings: Settings, metrics: WorkerMetrics, *, holder: str | None = None) -> None:
        self.metrics = metrics
        self._monitor = Monitor(metrics, message="callbacks were processed", totals=lambda: metrics.totals)
        self._database = Database(settings.database)
        wakeup = Wakeup()
        self._tracing = configured_tracing(settings.tracing, partial(callbacks.headers_of, self._database))
        self.processor = Processor(
            self._database,
            checker=tag_checker(settings),
            conflict=settings.final_conflict,
            observer=metrics,
            clock=now,
            on_commit=wakeup.set,
            holder=holder,
            tracing=self._tracing,
        )
        sinks, found = configured_sinks(settings), configured_targets(settings)
        self._dispatchers = Dispatchers(
            self._database,
            sinks,
            clock=now,
            wakeup=wakeup,
            observer=metrics,
            random_fraction=random.random,
            holder=holder,
            tracing=self._tracing,
        )
        self._notifier = Notifier(
            self._database,
            found,
            clock=now,
            observer=metrics,
            random_fraction=random.random,
        )
        self._evaluator = Evaluator(
            self._database,
            rulebook(settings, found),
            LogWatch(self._database),
            observer=metrics,
            clock=now,
            on_heard=self._on_heard,
            holder=holder,
        )
        self._wakeup = wakeup
        names = [sink.name for sink in sinks]
        metrics.name_sinks(names)
        self._reconciliation = _reconciliation(
            self._database, settings, metrics, on_append=self.processor.wake, holder=holder
        )
        metrics.name_reconciled(settings.reconciliation.accounts)
        self._pruner = Pruner(self._database, settings.retention.ages, clock=now, sinks=names, observer=metrics)

    async def start(self) -> None:
        if self._tracing is not None:
            self._tracing.start()
        # The sinks first: a new sink starts at the end of the log, before this worker appends to it.
        await self._dispatchers.start()
        await self.processor.start()
        await self._evaluator.start()
        await self._notifier.start()
        await self._pruner.start()
        if self._reconciliation is not None:
            await self._reconciliation.start()
        await self._monitor.start()

    async def stop(self) -> None:
        """Finishes the current work, then closes the database."""
        await self._evaluator.stop()
        await self._notifier.stop()
        if self._reconciliation is not None:
            await self._reconciliation.stop()
        await self.processor.stop()
        await self._dispatchers.stop()
        await self._pruner.stop()
        await self._monitor.stop()
        if self._tracing is not None:
            await self._tracing.stop()
        await self._database.close()

    async def reload(self, settings: Settings) -> None:
        """Applies new sinks, tag keys and rules of alerts.

        Raises SettingsError, or StorageUnavailable if new sinks cannot be registered; then nothing has changed.
        """
        # Every step that may fail comes before the first that changes something.
        sinks = configured_sinks(settings)
        checker = tag_checker(settings)
        # In a thread: the first target of Apprise loads all its plug-ins, which takes a second.
        new_targets = await asyncio.to_thread(configured_targets, settings)
        new_rules = rulebook(settings, new_targets)
        names = frozenset(sink.name for sink in sinks)
        await self._dispatchers.prepare(sinks)
        self.processor.checker = checker
        self._pruner.sinks = names
        self.metrics.name_sinks(names)
        await self._dispatchers.apply(sinks)
        self._evaluator.reload(new_rules)
        self._notifier.reload(new_targets)

    def _on_heard(self) -> None:
        """Others hear of alerts: sinks by the event log, people by the notifier."""
        self._wakeup.set()
        self._notifier.wake()

    def wake(self) -> None:
        """Wakes the processor: the journal has new callbacks."""
        self.processor.wake()

    def report(self) -> dict[str, Any]:
        """The state of the worker and its metrics, in the types of JSON."""
        health = self.processor.health
        self.metrics.log_lines_dropped(logs.dropped())
        if self._tracing is not None:
            self.metrics.spans_dropped(self._tracing.dropped)
        return {
            "processor": health.status,
            "failingSince": health.failing_since_at,
            "error": health.error,
            "metrics": exposition.families(self.metrics.registry),
        }


@contextlib.contextmanager
def worker_lock(settings: Settings) -> Iterator[None]:
    """Holds the worker lock of an SQLite database; raises UnfitDatabase if another worker holds it."""
    if not is_sqlite(settings.database):
        yield
        return
    with sqlite_file.held(sqlite_file.file_of(settings.database), sqlite_file.WORKER):
        yield


async def _lock(settings: Settings, stack: contextlib.ExitStack, is_ending: Callable[[], bool]) -> None:
    """Takes the worker lock; waits while the worker of a dead supervisor holds it."""
    is_waiting = False
    while not is_ending():
        try:
            stack.enter_context(worker_lock(settings))
        except sqlite_file.UnfitDatabase as error:
            if not is_waiting:
                log.info("waiting for another worker to end", reason=str(error))
            is_waiting = True
            await asyncio.sleep(_LOCK_SECONDS)
        else:
            return


# --- as a child of `receiver serve` ---


class _Child:
    """A worker that a supervisor runs: the messages on the socket, and the worker itself."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._settings: Settings | None = None
        self._holder: str | None = None
        self._worker: Worker | None = None
        # A reload waits until the worker has started.
        self._worker_lock = asyncio.Lock()
        self._reloads: set[asyncio.Task[None]] = set()
        self._ending = asyncio.Event()
        self._is_orphan = False

    async def run(self) -> None:
        reader, self._writer = await asyncio.open_connection(sock=self._connection, limit=LINE_BYTES)
        first = await reader.readline()
        message = orjson.loads(first) if first else {}
        if "settings" not in message:
            # The supervisor has ended, or is about to stop.
            return
        settings = self._settings = restore(orjson.dumps(message["settings"]))
        self._holder = message["holder"]
        logs.configure(form=settings.log_format, level=settings.log_level)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._ending.set)
        listening = asyncio.create_task(self._listen(reader))
        try:
            with contextlib.ExitStack() as stack:
                await _lock(settings, stack, self._ending.is_set)
                if not self._ending.is_set():
                    await self._work()
        finally:
            listening.cancel()
            await asyncio.gather(listening, *self._reloads, return_exceptions=True)
            self._writer.close()

    async def _work(self) -> None:
        worker = await self._start()
        freeze_garbage_collection()
        while not self._ending.is_set():
            self._send(report=worker.report())
            is_starting = worker.processor.health.status is ProcessorStatus.STARTING
            await wait_for(self._ending, _STARTING_SECONDS if is_starting else REPORT_SECONDS)
        try:
            async with asyncio.timeout(_ORPHAN_SECONDS if self._is_orphan else None):
                await worker.stop()
        except TimeoutError:
            log.warning("worker ended with work under way; what was published may be published once more")

    async def _start(self) -> Worker:
        async with self._worker_lock:
            assert self._settings is not None  # noqa: S101
            worker = Worker(self._settings, WorkerMetrics(own_process=True), holder=self._holder)
            await worker.start()
            self._worker = worker
        return worker

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        """Handles the messages of the supervisor until it sends `stop` or ends."""
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                if line == b"\n":
                    if self._worker is not None:
                        self._worker.wake()
                    continue
                message = orjson.loads(line)
                if "settings" in message:
                    # In a task, so that `stop` is read while a reload waits for the database.
                    task = asyncio.create_task(self._reload(message["settings"], message["number"]))
                    self._reloads.add(task)
                    task.add_done_callback(self._reloads.discard)
                elif "stop" in message:
                    self._ending.set()
                    return
        self._is_orphan = True
        self._ending.set()

    async def _reload(self, dumped: dict[str, Any], number: int) -> None:
        try:
            settings = restore(orjson.dumps(dumped))
            async with self._worker_lock:
                if self._worker is not None:
                    await self._worker.reload(settings)
                self._settings = settings
        except Exception as error:
            reason = str(error) if isinstance(error, ReceiverError) else f"unexpected {type(error).__name__}"
            self._send(reloaded=reason, number=number)
        else:
            self._send(reloaded=None, number=number)

    def _send(self, **message: Any) -> None:
        # A supervisor that does not read must not fill the memory of this process.
        if self._writer.transport.get_write_buffer_size() < LINE_BYTES:
            self._writer.write(orjson.dumps(message, default=str) + b"\n")


def run_child(descriptor: int) -> None:
    """Runs a worker for the supervisor at the other end of the socket."""
    for number in (signal.SIGINT, signal.SIGHUP):
        # The supervisor handles these signals, and sends messages instead.
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_orphan, args=(os.getppid(),), name="receiver-orphan", daemon=True).start()
    os.nice(_NICENESS)
    connection = socket.socket(fileno=descriptor)
    # Until the settings arrive: an earlier error must be a line of the log too.
    logs.configure()
    try:
        run(lambda: _Child(connection).run())
    except ReceiverError as error:
        log.error("worker failed", error=str(error))
        sys.exit(1)
    except Exception:
        log.exception("worker failed")
        sys.exit(1)


def _end_orphan(supervisor: int) -> None:
    """Ends this process some seconds after its supervisor.

    It runs in a thread, because a blocked event loop does not notice the end of the supervisor, and a hanging thread
    of a sink prevents an orderly exit.
    """
    while os.getppid() == supervisor:
        time.sleep(_PARENT_SECONDS)
    time.sleep(_ORPHAN_SECONDS + _EXIT_SECONDS)
    logs.flush()
    os._exit(1)


def run(work: Callable[[], Awaitable[None]]) -> None:
    """Runs a coroutine on uvloop if it is installed, else on the event loop of asyncio."""

    async def main() -> None:
        await work()

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(main())


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


if __name__ == "__main__":
    run_child(int(sys.argv[1]))
