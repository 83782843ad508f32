"""`receiver serve`: from nothing to a server that takes callbacks in, and back in good order."""

import asyncio
import gc
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import structlog
import uvicorn

from receiver import credentials, logs
from receiver.app import RELOADED, Receiver, behind_proxies
from receiver.cli.announcement import announcement
from receiver.cli.listening import bind
from receiver.cli.opening import make_data_dir, make_embedded
from receiver.cli.output import NobodyReads, say
from receiver.cli.running import run
from receiver.errors import ReceiverError
from receiver.settings import Settings, load
from receiver.storage import durability, embedded, schema
from receiver.storage.database import Database, is_sqlite
from receiver.web.server import server

# Collecting garbage took a tenth of the time under load, most of it for what lives as long as the process.
_GC_THRESHOLDS: Final = (50_000, 20, 50)
# what these say at `info` is said better elsewhere
_TALKATIVE: Final = ("alembic", "uvicorn.error")

log = structlog.get_logger("receiver.serve")


def serve(config: Path | None, *, host: str | None, port: int | None) -> int:
    """Serves until SIGTERM or SIGINT."""
    overrides = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    given = load(config, **overrides)
    _configure_logs(given)
    with ExitStack() as stack:
        if is_sqlite(given.database):
            stack.enter_context(embedded_database(given))
        secured = credentials.secure(given)
        listeners = bind(given.host, given.port)
        for listener in listeners:
            stack.callback(listener.close)
        settings = secured.settings.model_copy(update={"port": listeners[0].getsockname()[1]})
        receiver = Receiver(settings)
        reload = Reload(receiver, lambda: credentials.secure(load(config, **overrides)).settings)
        run(_serve(receiver, listeners, lambda: _announce(settings, given, secured.file), reload))
    log.info("stopped")
    return 0


def _configure_logs(settings: Settings) -> None:
    logs.configure(form=settings.log_format, level=settings.log_level)
    if settings.log_level == "info":
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)


@contextmanager
def embedded_database(settings: Settings) -> Iterator[None]:
    """The embedded database: there, ours alone, and whole."""
    if credentials.missing(settings):
        make_data_dir(settings)
    file = make_embedded(settings)
    with embedded.held(file):
        embedded.refuse_unwritable(file)
        embedded.refuse_damaged(file)
        yield


class Reload:
    """Reads the settings again when it is asked to; what is wrong with them is said, and nothing changes."""

    def __init__(self, receiver: Receiver, read: Callable[[], Settings]) -> None:
        self._receiver = receiver
        self._read = read
        self._asked = asyncio.Event()

    def ask(self) -> None:
        self._asked.set()

    async def run(self) -> None:
        """Waits to be asked, for ever."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            try:
                await self._reload(self._read())
            except (ReceiverError, OSError) as error:
                log.error("settings not reloaded", error=str(error))
            except Exception as error:
                # this task gone, the next signal would go unheard
                log.error("settings not reloaded", error=f"unexpected {type(error).__name__}")

    async def _reload(self, settings: Settings) -> None:
        before = self._receiver.settings
        await self._receiver.reload(settings)
        log.info("settings reloaded")
        # a port of 0 was found out at the start
        fixed = sorted(settings.model_fields_set - {*RELOADED, "port"})
        if waiting := [name for name in fixed if getattr(before, name) != getattr(settings, name)]:
            log.warning("these settings wait for a restart", settings=waiting)


async def _serve(
    receiver: Receiver, listeners: Sequence[socket.socket], announce: Callable[[], None], reload: Reload
) -> None:
    await prepare_database(receiver.settings)
    running = server(behind_proxies(receiver), host=receiver.settings.host, port=receiver.settings.port)
    _let_signals_pass()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload.ask)
    reloading = asyncio.create_task(reload.run())
    started = asyncio.create_task(_when_started(running, announce))
    try:
        await running.serve(sockets=list(listeners))
        await started
    finally:
        reloading.cancel()
        await asyncio.gather(reloading, return_exceptions=True)


async def prepare_database(settings: Settings) -> None:
    """Brings an embedded database up to date; a PostgreSQL must be so already, for others may be using it."""
    database = Database(settings.database)
    try:
        await (schema.migrate(database) if database.is_sqlite else schema.check(database))
        for weakness in await durability.weaknesses(database):
            log.warning(weakness)
    finally:
        await database.close()


def _let_signals_pass() -> None:
    """Signals do nothing by themselves from here on.

    uvicorn takes them, and raises them once more when all is done: then nothing is left to do but to exit with 0.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)


async def _when_started(running: uvicorn.Server, announce: Callable[[], None]) -> None:
    while not running.started:
        await asyncio.sleep(0.01)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    announce()


def _announce(settings: Settings, given: Settings, file: Path | None) -> None:
    log.info("listening", address=settings.base_url)
    with suppress(NobodyReads):
        say(*announcement(settings, given=given, file=file, secrets=sys.stdout.isatty()))
