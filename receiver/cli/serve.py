"""`receiver serve`: the start of the server, the reload on SIGHUP, and the orderly stop."""

import asyncio
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType
from typing import Final

import structlog
import uvicorn

from receiver import credentials, logs
from receiver.app import RELOADED, Receiver
from receiver.cli.banner import banner
from receiver.cli.context import make_embedded
from receiver.cli.output import OutputClosed, echo
from receiver.cli.serving import bind, run
from receiver.errors import ReceiverError, line
from receiver.intake.server import server
from receiver.settings import Settings, load
from receiver.storage.database import is_sqlite
from receiver.supervisor import Supervisor
from receiver.worker import freeze_garbage_collection

# The banner waits at most this long for the worker, because callbacks are accepted already.
_WORKER_SECONDS: Final = 10.0
# Their INFO messages duplicate ours.
_DUPLICATING_LOGGERS: Final = ("alembic", "uvicorn.error")

log = structlog.get_logger("receiver.serve")


def serve(config: Path | None, *, host: str | None, port: int | None) -> int:
    """Serves until SIGTERM or SIGINT."""
    overrides = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    given = load(config, **overrides)
    _configure_logs(given)
    with ExitStack() as stack:
        if is_sqlite(given.database):
            make_embedded(given)
        secured = credentials.secure(given)
        listeners = bind(given.host, given.port)
        for listener in listeners:
            stack.callback(listener.close)
        settings = secured.settings.model_copy(update={"port": listeners[0].getsockname()[1]})
        receiver = Receiver(settings)
        reload = Reload(receiver, lambda: credentials.secure(load(config, **overrides)).settings)
        run(_serve(receiver, listeners, lambda: _echo_banner(settings, given, secured.file), reload))
    log.info("stopped")
    return 0


def _configure_logs(settings: Settings) -> None:
    logs.configure(form=settings.log_format, level=settings.log_level)
    if settings.log_level == "info":
        for name in _DUPLICATING_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)


class Reload:
    """Reads the settings again on request. An error in them is logged and changes nothing."""

    def __init__(self, receiver: Receiver, read: Callable[[], Settings]) -> None:
        self._receiver = receiver
        self._read = read
        self._requested = asyncio.Event()

    def request(self) -> None:
        self._requested.set()

    async def run(self) -> None:
        """Waits for requests until it is cancelled."""
        while True:
            await self._requested.wait()
            self._requested.clear()
            try:
                await self._reload(self._read())
            except (ReceiverError, OSError) as error:
                log.error("settings not reloaded", error=line(error))
            except Exception as error:
                # Without this task the next signal would be lost.
                log.error("settings not reloaded", error=f"unexpected {type(error).__name__}")

    async def _reload(self, settings: Settings) -> None:
        before = self._receiver.settings
        await self._receiver.reload(settings)
        log.info("settings reloaded")
        # Port 0 was replaced by the actual port at the start.
        fixed = sorted(settings.model_fields_set - {*RELOADED, "port"})
        if waiting := [name for name in fixed if getattr(before, name) != getattr(settings, name)]:
            log.warning("these settings wait for a restart", settings=waiting)


async def _serve(
    receiver: Receiver, listeners: Sequence[socket.socket], echo_banner: Callable[[], None], reload: Reload
) -> None:
    config = server(receiver.app, host=receiver.settings.host, port=receiver.settings.port, lifespan=False).config
    running = _Server(config, on_exit=receiver.worker.will_stop)
    _ignore_repeated_signals()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload.request)
    reloading = asyncio.create_task(reload.run())
    try:
        # Here and not in uvicorn's lifespan, so that an error of the start has a line of its own.
        async with receiver.running():
            # Before the first answer: under load a collection takes a fifth of a second.
            freeze_garbage_collection()
            started = asyncio.create_task(_when_started(running, receiver.worker, echo_banner))
            await running.serve(sockets=list(listeners))
            await started
    finally:
        reloading.cancel()
        await asyncio.gather(reloading, return_exceptions=True)


class _Server(uvicorn.Server):
    """Tells the supervisor about the stop before the last requests are answered.

    A signal to all processes at once, as systemd sends it, ends the worker during these requests, and the supervisor
    must not restart it.
    """

    def __init__(self, config: uvicorn.Config, *, on_exit: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_exit = on_exit

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._on_exit()
        super().handle_exit(sig, frame)


def _ignore_repeated_signals() -> None:
    """Replaces the default handlers of SIGTERM and SIGINT by handlers that do nothing.

    uvicorn handles these signals while it serves, and raises them again at the end. The default handlers would then
    kill the process, which has stopped in order and exits with 0.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)


async def _when_started(running: uvicorn.Server, worker: Supervisor, echo_banner: Callable[[], None]) -> None:
    """Prints the banner once callbacks are accepted and the worker has started, or takes too long to start."""
    deadline = time.monotonic() + _WORKER_SECONDS
    while not running.started or (worker.is_starting and time.monotonic() < deadline and not running.should_exit):
        await asyncio.sleep(0.01)
    echo_banner()


def _echo_banner(settings: Settings, given: Settings, file: Path | None) -> None:
    log.info("listening", address=settings.base_url)
    with suppress(OutputClosed):
        echo(*banner(settings, given=given, file=file, secrets=sys.stdout.isatty()))
