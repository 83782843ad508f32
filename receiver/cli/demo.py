"""`receiver demo`: a receiver, a sandbox and a stream of messages in one process.

One process, because then nothing keeps running after it, however it ends.
"""

import asyncio
import logging
import secrets
import shlex
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from urllib.parse import quote

import httpx2
from pydantic import SecretStr
from starlette.applications import Starlette

from receiver import credentials, logs
from receiver.app import Receiver
from receiver.cli.demo_messages import INBOUND, MessageSettings, Request, generate_requests
from receiver.cli.output import echo, write
from receiver.cli.serve import bind, run, serving, stop_signal
from receiver.sandbox.app import application
from receiver.sandbox.callback_sender import CallbackSender, Clock
from receiver.sandbox.settings import Rates, SandboxSettings
from receiver.settings import GivenSettings, Settings
from receiver.storage.processor import Settling
from receiver.supervisor import Supervisor

_HOST: Final = "127.0.0.1"
_KID: Final = "demo"
_EVENTS: Final = "events.jsonl"
_V1: Final = "/callbacks/bandwidth/v1"
_V2: Final = "/callbacks/bandwidth/v2"
_RATES: Final = Rates(
    failed=0.08,
    unconfirmed=0.04,
    duplicate=0.1,
    reorder=0.05,
    delay=0.03,
    missing=0.01,
    contradict=0.01,
    unknown_type=0.01,
    batch=0.2,
)
_IDLE_SECONDS: Final = 15.0
_DELAYS: Final = timedelta(hours=1)
# A terminal shows the counts in one line that is rewritten, other outputs get a new line each time.
_REWRITE_SECONDS: Final = 0.5
_LINE_SECONDS: Final = 10.0
_RESULTS: Final = ("accepted", "duplicate", "quarantined")
_STATUSES: Final = ("delivered", "failed", "unconfirmed")
_MORE_FAILURES: Final = '{"failed": 0.5}'
_HELLO: Final = '{"from": "+14155550100", "to": "+19195550101", "text": "hello"}'


@dataclass(slots=True)
class _Sent:
    """The number of outbound and inbound messages."""

    outbound: int = 0
    inbound: int = 0

    @property
    def messages(self) -> int:
        return self.outbound + self.inbound

    def add(self, request: Request) -> None:
        if request.path == INBOUND:
            self.inbound += request.messages
        else:
            self.outbound += request.messages


@dataclass(frozen=True, slots=True, kw_only=True)
class _Demo:
    """The running receiver and sandbox."""

    settings: Settings
    receiver: Receiver
    sandbox_url: str
    callback_sender: CallbackSender
    sandbox_clock: Clock
    keeps_data: bool


def demo(
    data_dir: Path | None,
    *,
    per_second: float,
    messages: int | None,
    seconds: float | None,
    seed: int,
    speed: float,
) -> int:
    """Runs until SIGTERM or SIGINT, or until `messages` are sent or `seconds` have passed."""
    logs.configure(level="warning")
    # The sandbox sends types that nobody knows, on purpose; the demo counts what is quarantined.
    logging.getLogger("receiver.processor").setLevel(logging.ERROR)

    async def work() -> None:
        stop = stop_signal()
        async with _running(data_dir, seed=seed, speed=speed) as demo:
            echo(*_banner(demo))
            sent = _Sent()
            client = httpx2.AsyncClient(base_url=demo.sandbox_url, auth=("token", "secret"), trust_env=False)
            async with client:
                requests = generate_requests(_message_settings(demo.settings), seed=seed)
                sending = _send(client, requests, sent, per_second=per_second, messages=messages, seconds=seconds)
                await _first_of(
                    stop.wait(),
                    _send_until_idle(sending, demo),
                    _show_counts(demo.receiver.worker, sent),
                )
            _show_summary(demo, sent)

    run(work())
    return 0


@asynccontextmanager
async def _running(data_dir: Path | None, *, seed: int, speed: float) -> AsyncIterator[_Demo]:
    async with AsyncExitStack() as stack:
        folder = data_dir or Path(stack.enter_context(TemporaryDirectory(prefix="receiver-demo-")))
        receiver_listeners, sandbox_listeners = _listeners(stack), _listeners(stack)
        settings = credentials.secure(_settings(folder.absolute(), _port(receiver_listeners))).settings
        receiver = Receiver(settings)
        sandbox = application(_sandbox_settings(settings, seed=seed, speed=speed))
        # Started here and not by the server: an error is then a ReceiverError, which the command prints as one line.
        await stack.enter_async_context(receiver.running())
        await stack.enter_async_context(serving(receiver.app, receiver_listeners, lifespan=False))
        await stack.enter_async_context(serving(sandbox, sandbox_listeners))
        callback_sender = _callback_sender(sandbox)
        stack.callback(callback_sender.end_waits)
        yield _Demo(
            settings=settings,
            receiver=receiver,
            sandbox_url=f"http://{_HOST}:{_port(sandbox_listeners)}",
            callback_sender=callback_sender,
            sandbox_clock=sandbox.state.sandbox.clock,
            keeps_data=data_dir is not None,
        )


def _listeners(stack: AsyncExitStack) -> list[socket.socket]:
    listeners = bind(_HOST, 0)
    for listener in listeners:
        stack.callback(listener.close)
    return listeners


def _port(listeners: list[socket.socket]) -> int:
    return int(listeners[0].getsockname()[1])


def _callback_sender(sandbox: Starlette) -> CallbackSender:
    callback_sender: CallbackSender = sandbox.state.callback_sender
    return callback_sender


def _settings(folder: Path, port: int) -> Settings:
    return GivenSettings(
        data_dir=folder,
        host=_HOST,
        port=port,
        worker="inline",
        tag_keys=[SecretStr(f"{_KID}:{secrets.token_urlsafe(32)}")],
        sinks=[{"name": "events", "type": "jsonl", "path": str(folder / _EVENTS)}],
    )


def _sandbox_settings(settings: Settings, *, seed: int, speed: float) -> SandboxSettings:
    return SandboxSettings(
        outbound_url=SecretStr(settings.base_url + _V2),
        callback_credentials=settings.callback_credentials[0],
        v1_inbound_url=SecretStr(_v1_url(settings)),
        seed=seed,
        speed=speed,
        messages_per_second=0,
        rates=_RATES,
    )


def _v1_url(settings: Settings) -> str:
    """The callback URL for v1, with credentials."""
    user, _, password = settings.callback_credentials[0].get_secret_value().partition(":")
    return f"http://{quote(user, safe='')}:{quote(password, safe='')}@{_HOST}:{settings.port}{_V1}"


def _message_settings(settings: Settings) -> MessageSettings:
    kid, _, key = settings.tag_keys[0].get_secret_value().partition(":")
    return MessageSettings(_v1_url(settings), kid, key)


async def _send(
    client: httpx2.AsyncClient,
    requests: Iterable[Request],
    sent: _Sent,
    *,
    per_second: float,
    messages: int | None,
    seconds: float | None,
) -> None:
    """Sends requests at an even rate until a limit is reached; without a limit it never returns."""
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    for request in requests:
        if messages is not None and sent.messages == messages:
            return
        if messages is not None and sent.messages + request.messages > messages:
            continue
        answer = await client.post(request.path, json=request.body)
        answer.raise_for_status()
        sent.add(request)
        next_at = sent.messages / per_second
        if seconds is not None and next_at >= seconds:
            await asyncio.sleep(started_at + seconds - loop.time())
            return
        await asyncio.sleep(started_at + next_at - loop.time())


async def _send_until_idle(sending: Awaitable[None], demo: _Demo) -> None:
    """Sends, then waits until every callback is sent and processed, so that the summary is final.

    After 15 seconds the clock of the sandbox moves forward: a delayed callback comes up to two minutes late.
    """
    await sending
    state = await demo.callback_sender.wait_until_idle(_IDLE_SECONDS)
    if not state.is_idle:
        demo.sandbox_clock.advance(_DELAYS)
        demo.callback_sender.wake()
        await demo.callback_sender.wait_until_idle(_IDLE_SECONDS)
    await Settling(demo.receiver.database).wait()


async def _first_of(*awaitables: Awaitable[object]) -> None:
    """Runs all awaitables until one ends, and cancels the others."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        await task


async def _show_counts(worker: Supervisor, sent: _Sent) -> None:
    """Shows the counts periodically until it is cancelled."""
    if not sys.stdout.isatty():
        while True:
            await asyncio.sleep(_LINE_SECONDS)
            echo(_counts(worker, sent))
    while True:
        # Cut to the width of the terminal: a line that wraps cannot be rewritten.
        counts = _counts(worker, sent)[: shutil.get_terminal_size().columns - 1]
        write(f"\r{counts}\x1b[K".encode())
        await asyncio.sleep(_REWRITE_SECONDS)


def _counts(worker: Supervisor, sent: _Sent) -> str:
    samples = {
        (name, tuple(labels.items())): value for family in worker.metrics() for name, labels, value in family["samples"]
    }

    def sample(name: str, label: str, value: str) -> int:
        return int(samples.get((name, ((label, value),)), 0))

    callbacks = {result: sample("receiver_callbacks_total", "result", result) for result in _RESULTS}
    events = ", ".join(
        f"{status} {sample('receiver_events_total', 'type', f'message.{status}')}" for status in _STATUSES
    )
    repeats = f"callbacks {sum(callbacks.values())} ({callbacks['duplicate']} repeated)"
    return f"out {sent.outbound}, in {sent.inbound} | {repeats} | {events}"


def _show_summary(demo: _Demo, sent: _Sent) -> None:
    """Shows the last counts, and the number of callbacks that were not due yet."""
    if sys.stdout.isatty():
        write(b"\r\x1b[K")
    echo(_counts(demo.receiver.worker, sent))
    if due := demo.callback_sender.queue_state().waiting:
        echo(f"{due} callbacks were not due yet.")
    if demo.keeps_data:
        echo(f"The data is in {demo.settings.data_dir}.")


def _program() -> str:
    """The absolute path of this program, for a terminal where its virtual environment is not active."""
    return shlex.quote(str(Path(sys.argv[0]).absolute()))


def _banner(demo: _Demo) -> list[str]:
    settings, sandbox_url = demo.settings, demo.sandbox_url
    api, folder = f"{settings.base_url}/api", shlex.quote(str(settings.data_dir))
    token, hint = "$TOKEN", [f"Set TOKEN to the value of api_tokens in {settings.data_dir / credentials.FILE}."]
    if sys.stdout.isatty():
        token, hint = settings.api_tokens[0].get_secret_value(), []
    curl, post = f'curl -H "Authorization: Bearer {token}"', "curl -H 'Content-Type: application/json'"
    return [
        f"receiver listens on {settings.base_url}",
        f"sandbox listens on {sandbox_url} and stands in for Bandwidth",
        "",
        f"Look at them in a browser: {settings.base_url}/",
        "List messages",
        f"  {curl} '{api}/messages?size=3'",
        f"  {curl} '{api}/messages?status=failed'",
        f"  RECEIVER_DATA_DIR={folder} {_program()} messages list",
        *hint,
        "Follow the published events",
        f"  tail -f {folder}/{_EVENTS}",
        "List the callbacks sent, and the expected status of each delivery",
        f"  curl '{sandbox_url}/sandbox/posts?limit=3'",
        f"  curl {sandbox_url}/sandbox/expected",
        "Raise the failure rate, simulate an inbound message",
        f"  {post} {sandbox_url}/sandbox/rates -d '{_MORE_FAILURES}'",
        f"  {post} {sandbox_url}{INBOUND} -d '{_HELLO}'",
        "",
        "Ctrl-C ends both." + ("" if demo.keeps_data else " The data is deleted then; --data-dir keeps it."),
        "",
    ]
