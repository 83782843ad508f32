"""`receiver demo`: a receiver and a sandbox in one process, and somebody who sends.

One process, so that nothing is left running however it ends.
"""

import asyncio
import secrets
import shlex
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from urllib.parse import quote

import httpx2
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from starlette.applications import Starlette

from receiver import credentials, logs
from receiver.app import Receiver
from receiver.cli.demo_messages import INBOUND, Request, Wiring, traffic
from receiver.cli.output import echo, write
from receiver.cli.serving import bind, run, serving, stop_signal
from receiver.sandbox.app import application
from receiver.sandbox.callback_sender import Caller
from receiver.sandbox.faults import Rates
from receiver.sandbox.settings import SandboxSettings
from receiver.settings import GivenSettings, Settings
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
_SETTLE_SECONDS: Final = 15.0
# how often the counts are told: on a terminal in place, else as a line of their own
_LOOK_SECONDS: Final = 0.5
_LINE_SECONDS: Final = 10.0
_RESULTS: Final = ("accepted", "duplicate", "quarantined")
_STATUSES: Final = ("delivered", "failed", "unconfirmed")
_MORE_FAILURES: Final = '{"failed": 0.5}'
_HELLO: Final = '{"from": "+14155550100", "to": "+19195550101", "text": "hello"}'


@dataclass(slots=True)
class _Sent:
    """How many messages went out and came in."""

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
    """What runs."""

    settings: Settings
    receiver: Receiver
    sandbox_url: str
    caller: Caller
    is_kept: bool


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

    async def work() -> None:
        stop = stop_signal()
        async with _running(data_dir, seed=seed, speed=speed) as demo:
            echo(*_announcement(demo))
            sent = _Sent()
            client = httpx2.AsyncClient(base_url=demo.sandbox_url, auth=("token", "secret"), trust_env=False)
            async with client:
                stream = traffic(_wiring(demo.settings), seed=seed)
                sending = _send(client, stream, sent, per_second=per_second, messages=messages, seconds=seconds)
                await _first_of(stop.wait(), _then_settle(sending, demo.caller), _tell(demo.receiver.worker, sent))
            _end(demo, sent)

    run(work())
    return 0


@asynccontextmanager
async def _running(data_dir: Path | None, *, seed: int, speed: float) -> AsyncIterator[_Demo]:
    async with AsyncExitStack() as stack:
        folder = data_dir or Path(stack.enter_context(TemporaryDirectory(prefix="receiver-demo-")))
        mine, others = _listening(stack), _listening(stack)
        given = _settings(folder.absolute(), _port(mine))
        settings = credentials.secure(given).settings
        receiver = Receiver(settings)
        sandbox = application(_sandbox_settings(settings, seed=seed, speed=speed))
        # here and not by the server: what goes wrong is then an error of ours, with its own line
        await stack.enter_async_context(receiver.running())
        await stack.enter_async_context(serving(receiver.app, mine, lifespan=False))
        await stack.enter_async_context(serving(sandbox, others))
        caller = _caller(sandbox)
        stack.callback(caller.end_waits)
        yield _Demo(
            settings=settings,
            receiver=receiver,
            sandbox_url=f"http://{_HOST}:{_port(others)}",
            caller=caller,
            is_kept=data_dir is not None,
        )


def _listening(stack: AsyncExitStack) -> list[socket.socket]:
    listeners = bind(_HOST, 0)
    for listener in listeners:
        stack.callback(listener.close)
    return listeners


def _port(listeners: list[socket.socket]) -> int:
    return int(listeners[0].getsockname()[1])


def _caller(sandbox: Starlette) -> Caller:
    found: Caller = sandbox.state.caller
    return found


def _settings(folder: Path, port: int) -> Settings:
    return GivenSettings(
        data_dir=folder,
        host=_HOST,
        port=port,
        # one process, so that nothing is left running however it ends
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
    """Where v1 calls back, credentials included."""
    user, _, password = settings.callback_credentials[0].get_secret_value().partition(":")
    return f"http://{quote(user, safe='')}:{quote(password, safe='')}@{_HOST}:{settings.port}{_V1}"


def _wiring(settings: Settings) -> Wiring:
    kid, _, key = settings.tag_keys[0].get_secret_value().partition(":")
    return Wiring(_v1_url(settings), kid, key)


async def _send(
    client: httpx2.AsyncClient,
    requests: Iterable[Request],
    sent: _Sent,
    *,
    per_second: float,
    messages: int | None,
    seconds: float | None,
) -> None:
    """Sends at an even pace; with no limit for ever."""
    loop = asyncio.get_running_loop()
    begun_at = loop.time()
    for request in requests:
        if messages is not None and sent.messages == messages:
            return
        if messages is not None and sent.messages + request.messages > messages:
            continue
        answer = await client.post(request.path, json=request.body)
        answer.raise_for_status()
        sent.add(request)
        next_after = sent.messages / per_second
        if seconds is not None and next_after >= seconds:
            await asyncio.sleep(begun_at + seconds - loop.time())
            return
        await asyncio.sleep(begun_at + next_after - loop.time())


async def _then_settle(sending: Awaitable[None], caller: Caller) -> None:
    """Sends, then waits for the callbacks that are due soon."""
    await sending
    await caller.settle(_SETTLE_SECONDS)


async def _first_of(*works: Awaitable[object]) -> None:
    """Works on all of them until one ends, and cancels the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        await task


async def _tell(worker: Supervisor, sent: _Sent) -> None:
    """Tells the counts now and then, for ever."""
    if not sys.stdout.isatty():
        while True:
            await asyncio.sleep(_LINE_SECONDS)
            echo(_counts(worker, sent))
    while True:
        # a line that wraps could not be written over
        counts = _counts(worker, sent)[: shutil.get_terminal_size().columns - 1]
        write(f"\r{counts}\x1b[K".encode())
        await asyncio.sleep(_LOOK_SECONDS)


def _counts(worker: Supervisor, sent: _Sent) -> str:
    samples = {
        (sample.name, tuple(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(worker.metrics().decode())
        for sample in family.samples
    }

    def of(name: str, label: str, value: str) -> int:
        return int(samples.get((name, ((label, value),)), 0))

    callbacks = {result: of("receiver_callbacks_total", "result", result) for result in _RESULTS}
    events = ", ".join(f"{status} {of('receiver_events_total', 'type', f'message.{status}')}" for status in _STATUSES)
    told = f"callbacks {sum(callbacks.values())} ({callbacks['duplicate']} repeated)"
    return f"out {sent.outbound}, in {sent.inbound} | {told} | {events}"


def _end(demo: _Demo, sent: _Sent) -> None:
    """The last counts, and what is not there yet."""
    if sys.stdout.isatty():
        write(b"\r\x1b[K")
    echo(_counts(demo.receiver.worker, sent))
    if due := demo.caller.state().waiting:
        echo(f"{due} callbacks were not due yet.")
    if demo.is_kept:
        echo(f"What came is kept in {demo.settings.data_dir}.")


def _program() -> str:
    """How to call this program from another terminal, where its virtual environment may not be active."""
    return shlex.quote(str(Path(sys.argv[0]).absolute()))


def _announcement(demo: _Demo) -> list[str]:
    settings, box = demo.settings, demo.sandbox_url
    api, folder = f"{settings.base_url}/api", shlex.quote(str(settings.data_dir))
    token, told = "$TOKEN", [f"TOKEN is the one of api_tokens in {settings.data_dir / credentials.FILE}."]
    if sys.stdout.isatty():
        token, told = settings.api_tokens[0].get_secret_value(), []
    curl, post = f'curl -H "Authorization: Bearer {token}"', "curl -H 'Content-Type: application/json'"
    return [
        f"receiver listens on {settings.base_url}",
        f"sandbox listens on {box}, and plays Bandwidth",
        "",
        "What became of the messages",
        f"  {curl} '{api}/messages?size=3'",
        f"  {curl} '{api}/messages?status=failed'",
        f"  RECEIVER_DATA_DIR={folder} {_program()} messages list",
        *told,
        "What is published",
        f"  tail -f {folder}/{_EVENTS}",
        "What the sandbox called back, and what must have arrived",
        f"  curl '{box}/sandbox/posts?limit=3'",
        f"  curl {box}/sandbox/truth",
        "Let more of them fail, let a message come in",
        f"  {post} {box}/sandbox/rates -d '{_MORE_FAILURES}'",
        f"  {post} {box}{INBOUND} -d '{_HELLO}'",
        "",
        "Ctrl-C ends both." + ("" if demo.is_kept else " The data goes with them; --data-dir keeps it."),
        "",
    ]
