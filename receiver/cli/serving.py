"""The event loop, the sockets, the HTTP servers and the stop signals of commands that serve until they are stopped."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any, Final

import uvicorn

from receiver.errors import ReceiverError
from receiver.intake.server import server


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
