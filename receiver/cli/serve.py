"""`receiver serve`: the web process, its sockets and signals, its banner; and what other commands need to serve."""

import asyncio
import gc
import logging
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Final
from urllib.parse import quote, urlsplit, urlunsplit

import structlog
import uvicorn

from receiver import credentials, logs
from receiver.app import RELOADED, Receiver
from receiver.cli.context import make_embedded
from receiver.cli.output import OutputClosed, echo
from receiver.errors import ReceiverError, line
from receiver.intake.server import server
from receiver.providers import PROVIDERS
from receiver.providers.base import Provider
from receiver.settings import Settings, bare_token, load
from receiver.settings_sources import PREFIX
from receiver.storage.database import is_sqlite
from receiver.supervisor import Supervisor
from receiver.tracing.recorder import refuse_other_process
from receiver.worker import configured_rules, configured_sinks, freeze_garbage_collection


def bind(host: str, port: int) -> list[socket.socket]:
    """A listening socket for every address of a host name, all on the same port; port 0 takes a free port."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        with ExitStack() as undo:
            bound: list[socket.socket] = []
            for family, _, _, _, address in dict.fromkeys(found):
                listener = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((address[0], port, *address[2:]))
                port = port or listener.getsockname()[1]
                bound.append(listener)
            undo.pop_all()
            return bound
    except OSError as error:
        raise ReceiverError(f"cannot listen on {host} port {port}: {error.strerror}") from None


_STOPPING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(work: Coroutine[Any, Any, None]) -> None:
    """Runs a coroutine on uvloop if it is installed, else on the event loop of asyncio."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            runner.run(work)
        except SystemExit:
            # uvicorn exits like this when the application did not start.
            raise ReceiverError("the server did not start; the log has the reason") from None


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def stop_signal() -> asyncio.Event:
    """An event that is set by SIGINT, SIGTERM or SIGHUP, each time one arrives."""
    stop = asyncio.Event()
    for number in _STOPPING:
        # SIGHUP comes from a closed terminal; a process started with nohup ignores it.
        if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
            continue
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


@asynccontextmanager
async def serving(app: Any, listeners: Sequence[socket.socket], *, lifespan: bool = True) -> AsyncIterator[None]:
    """Serves an application, with its lifespan, while the block runs, without handlers for signals."""
    host, port = listeners[0].getsockname()[:2]
    running = _ServerWithoutSignals(server(app, host=host, port=port, lifespan=lifespan).config)
    task = asyncio.create_task(running.serve(sockets=list(listeners)))
    try:
        while not running.started:
            await asyncio.sleep(0.01)
            if task.done():
                await task
        yield
    finally:
        running.should_exit = True
        await task


class _ServerWithoutSignals(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def banner(settings: Settings, *, given: Settings, file: Path | None, secrets: bool) -> list[str]:
    """The lines. `given` are the settings before credentials were filled in from `file`.

    Without `secrets` the lines name the file or the setting that holds the credentials.
    """
    return [
        f"receiver listens on {settings.listen_url}{_public(settings)}",
        *_unreachable(settings),
        "",
        *(line for api in sorted(PROVIDERS) for line in _urls(settings, PROVIDERS[api], secrets)),
        *_user(settings, secrets),
        *_stored_in("callback_credentials", settings, given, file, secrets),
        "",
        f"Dashboard    {settings.base_url}/",
        f"API          {settings.base_url}/api/messages",
        f"Docs         {settings.base_url}/docs",
        f"OpenAPI      {settings.base_url}/openapi.json",
        *_token(settings, secrets),
        *_stored_in("api_tokens", settings, given, file, secrets),
    ]


def _urls(settings: Settings, provider: Provider, secrets: bool) -> Iterator[str]:
    yield f"{provider.title}: {provider.fields}"
    for url in provider.urls:
        if provider.user_in_url:
            yield f"  {_with_user(settings, url.path, secrets)}"
        elif url.route == "primary":
            yield f"  {settings.base_url}{url.path}"


def _public(settings: Settings) -> str:
    return f", and is called {settings.base_url}" if settings.public_url is not None else ""


def _unreachable(settings: Settings) -> list[str]:
    if settings.public_url is not None:
        return []
    return [f"Set {PREFIX}PUBLIC_URL to the address under which Bandwidth reaches this server."]


def _pair(settings: Settings) -> tuple[str, str] | None:
    """The user and the password for Bandwidth: the first of the callback credentials."""
    if settings.callback_auth == "none":
        return None
    user, _, password = settings.callback_credentials[0].get_secret_value().partition(":")
    return user, password


def _with_user(settings: Settings, path: str, secrets: bool) -> str:
    pair = _pair(settings)
    if pair is None:
        return settings.base_url + path
    user, password = (quote(part, safe="") for part in pair) if secrets else ("USER", "PASSWORD")
    url = urlsplit(settings.base_url + path)
    return urlunsplit(url._replace(netloc=f"{user}:{password}@{url.netloc}"))


def _user(settings: Settings, secrets: bool) -> list[str]:
    pair = _pair(settings)
    if pair is None or not secrets:
        return []
    return [f"  user      {pair[0]}", f"  password  {pair[1]}"]


def _token(settings: Settings, secrets: bool) -> list[str]:
    if not settings.api_tokens or not secrets:
        return []
    return [f"API token    {bare_token(settings.api_tokens[0].get_secret_value())}"]


def _stored_in(name: str, settings: Settings, given: Settings, file: Path | None, secrets: bool) -> list[str]:
    """The place that holds credentials which are not printed."""
    if secrets or not getattr(settings, name):
        return []
    label = _LABELS[name]
    return [f"{label} as set in {PREFIX}{name.upper()}" if getattr(given, name) else f"{label} in {file}"]


_LABELS = {"callback_credentials": "  user and password", "api_tokens": "API token   "}


# The banner waits at most this long for the worker, because callbacks are accepted already.
_WORKER_SECONDS: Final = 10.0
# Their INFO messages duplicate ours.
_DUPLICATING_LOGGERS: Final = ("alembic", "uvicorn.error")

log = structlog.get_logger("receiver.serve")


def serve(config: Path | None, *, host: str | None, port: int | None) -> int:
    """Serves until SIGTERM or SIGINT."""
    overrides = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    given = load(config, **overrides)
    configure_logs(given)
    # Sinks and port before any file is made: a start that fails leaves nothing half made.
    configured_sinks(given)
    refuse_other_process(given.tracing, given.worker)
    configured_rules(given)
    with ExitStack() as stack:
        listeners = bind(given.host, given.port)
        for listener in listeners:
            stack.callback(listener.close)
        if is_sqlite(given.database):
            make_embedded(given)
        secured = credentials.secure(given)
        settings = secured.settings.model_copy(update={"port": listeners[0].getsockname()[1]})
        receiver = Receiver(settings)
        reload = Reload(receiver, lambda: credentials.secure(load(config, **overrides)).settings)
        run(_serve(receiver, listeners, lambda: _echo_banner(settings, given, secured.file), reload))
    log.info("stopped")
    return 0


def configure_logs(settings: Settings) -> None:
    """Configures the log of a process that serves."""
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
        # The replaced routes are cycles of 0.2 MiB, and collections are rare: they would stay for hundreds of reloads.
        gc.collect()
        log.info("settings reloaded")
        # Port 0 was replaced by the actual port at the start.
        fixed = sorted(settings.model_fields_set - {*RELOADED, "port"})
        if waiting := [name for name in fixed if getattr(before, name) != getattr(settings, name)]:
            log.warning("these settings wait for a restart", settings=waiting)


async def _serve(
    receiver: Receiver, listeners: Sequence[socket.socket], echo_banner: Callable[[], None], reload: Reload
) -> None:
    settings = receiver.settings
    config = server(
        receiver.app,
        host=settings.host,
        port=settings.port,
        lifespan=False,
        keep_alive=settings.keep_alive,
        observer=receiver.metrics,
        trusted_proxies=settings.trusted_proxies,
    ).config
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
    log.info("listening", address=settings.listen_url, public_url=settings.public_url)
    with suppress(OutputClosed):
        echo(*banner(settings, given=given, file=file, secrets=sys.stdout.isatty()))
