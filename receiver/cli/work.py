"""`receiver work`: a separate worker, for web processes without one (`RECEIVER_WORKER=none`)."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from receiver import credentials, exposition, logs
from receiver.api import problems
from receiver.api.auth import Tokens, token_guard
from receiver.app import log_open_doors, metrics_answer
from receiver.cli.context import check_schema, refuse_absent
from receiver.cli.serve import bind, configure_logs, serving
from receiver.errors import ReceiverError, SettingsError
from receiver.intake.request_ids import RequestIds
from receiver.metrics import WorkerMetrics
from receiver.settings import Settings, load
from receiver.settings_sources import PREFIX
from receiver.storage import sqlite_file
from receiver.storage.database import is_sqlite
from receiver.worker import Worker, freeze_garbage_collection, run, worker_lock

# As long as `receiver serve` waits for its worker.
STOP_SECONDS: Final = 20.0

log = structlog.get_logger("receiver.work")


def work(config: Path | None, *, metrics: str | None) -> int:
    """Runs a worker until SIGTERM or SIGINT."""
    settings = load(config)
    configure_logs(settings)
    refuse_absent(settings)
    listeners = _listeners(metrics, settings) if metrics is not None else []
    try:
        run(lambda: _work(settings, lambda: load(config), listeners))
    finally:
        for listener in listeners:
            listener.close()
    log.info("stopped")
    return 0


async def _work(settings: Settings, read: Callable[[], Settings], listeners: Sequence[socket.socket]) -> None:
    ending, reload = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload.set)
    async with AsyncExitStack() as stack:
        stack.enter_context(worker_lock(settings))
        await _refuse_unfit(settings)
        worker = Worker(settings, WorkerMetrics(own_process=True))
        await worker.start()
        stack.push_async_callback(_stop, worker)
        if listeners:
            log_open_doors(settings, "metrics_auth")
            await stack.enter_async_context(serving(_application(settings, worker), listeners))
        await stack.enter_async_context(_reloading(worker, read, reload))
        freeze_garbage_collection()
        log.info("working", **_metrics_address(listeners))
        await ending.wait()


async def _refuse_unfit(settings: Settings) -> None:
    """Raises SchemaError or UnfitDatabase if this version cannot work with the database."""
    if is_sqlite(settings.database):
        file = sqlite_file.file_of(settings.database)
        sqlite_file.refuse_half_restored(file)
        sqlite_file.refuse_unfit(file)
    await check_schema(settings)


async def _stop(worker: Worker) -> None:
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await worker.stop()
    except TimeoutError:
        log.warning("worker ended with work under way; what was published may be published once more")


# --- SIGHUP ---


@asynccontextmanager
async def _reloading(worker: Worker, read: Callable[[], Settings], reload: asyncio.Event) -> AsyncIterator[None]:
    task = asyncio.create_task(_reload_on_signal(worker, read, reload))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _reload_on_signal(worker: Worker, read: Callable[[], Settings], reload: asyncio.Event) -> None:
    while True:
        await reload.wait()
        reload.clear()
        try:
            await worker.reload(read())
        except (ReceiverError, OSError) as error:
            log.error("settings not reloaded", error=str(error))
        except Exception as error:
            # Without this task the next signal would be lost.
            log.error("settings not reloaded", error=f"unexpected {type(error).__name__}")
        else:
            log.info("settings reloaded")


# --- metrics ---


def _metrics_address(listeners: Sequence[socket.socket]) -> dict[str, str]:
    host, port = listeners[0].getsockname()[:2] if listeners else ("", 0)
    return {"metrics": f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"} if listeners else {}


def _listeners(address: str, settings: Settings) -> list[socket.socket]:
    host, _, port = address.rpartition(":")
    if not (host and port.isascii() and port.isdecimal() and int(port) < 65536):
        raise SettingsError(f"--metrics: {address} is not HOST:PORT")
    # A missing token is an error before anything starts.
    _tokens(settings)
    return bind(host.removeprefix("[").removesuffix("]"), int(port))


def _tokens(settings: Settings) -> Tokens | None:
    """The tokens that `/metrics` requires; None: no token."""
    if settings.metrics_auth == "none":
        return None
    if not settings.api_tokens and is_sqlite(settings.database):
        settings = credentials.secure(settings).settings
    if not settings.api_tokens:
        raise SettingsError(f"--metrics: set {PREFIX}API_TOKENS, or {PREFIX}METRICS_AUTH=none")
    return Tokens(token.get_secret_value() for token in settings.api_tokens)


def _application(settings: Settings, worker: Worker) -> RequestIds:
    """`/metrics`, which needs the same tokens as `/metrics` of the web process, and `/healthz`."""
    tokens = _tokens(settings)

    async def metrics(request: Request) -> Response:
        worker.metrics.log_lines_dropped(logs.dropped())
        return metrics_answer(request, exposition.families(worker.metrics.registry))

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    app = Starlette(
        routes=[
            Route("/metrics", metrics, middleware=[token_guard(tokens)] if tokens is not None else []),
            Route("/healthz", healthz),
        ],
        exception_handlers=problems.APPLICATION_HANDLERS,
    )
    return RequestIds(app, settings.request_id_header)
