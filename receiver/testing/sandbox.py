"""A sandbox for the tests of your application: it plays Bandwidth on a port of this machine.

    @pytest.fixture
    def receiver_sandbox_settings(shop):
        return {"outbound_url": f"{shop.url}/callbacks", "callback_credentials": "user:password"}

    def test_a_number_that_is_none_is_marked(shop, receiver_sandbox):
        shop.remind(receiver_sandbox.number(4720))
        receiver_sandbox.wait_until_idle()
        ...

It runs in a thread of its own. Its methods wait for the answer: if your application runs on the event loop of the test,
call those that wait with `asyncio.to_thread`.
"""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import httpx2
import uvicorn
from pydantic.alias_generators import to_camel

from receiver.domain.events import Api
from receiver.intake.server import server
from receiver.sandbox.app import application
from receiver.sandbox.faults import Fault
from receiver.sandbox.numbers import magic, of, of_code
from receiver.sandbox.settings import SandboxSettings

_HOST: Final = "127.0.0.1"
_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 0.005
_ANSWER_SECONDS: Final = 60.0
# delays pass a thousand times faster, and nobody is told to slow down
_DEFAULTS: Final = {"speed": 1000.0, "messages_per_second": 0.0}


class Sandbox:
    """A running sandbox: send your messages to `url`, with `credentials` as Basic authentication."""

    def __init__(self, url: str, credentials: tuple[str, str] | None) -> None:
        self.url = url
        self.credentials = credentials
        self._client = httpx2.Client(base_url=f"{url}/sandbox/", timeout=_ANSWER_SECONDS, trust_env=False)

    def send_inbound(self, *, sender: str, to: str | list[str], text: str | None = None, **more: Any) -> list[str]:
        """Lets a message come in and returns its id: of each number in `to`, which are yours, one.

        `more` is what `POST /sandbox/inbound` takes besides: `api`, `others`, `media`, `channel`, `event`, …
        """
        given = {to_camel(name): value for name, value in more.items()}
        told = self._post("inbound", {"from": sender, "to": to, "text": text, **given})
        return [message["id"] for message in told["messages"]]

    def posts(self, message_id: str | None = None) -> list[dict[str, Any]]:
        """The requests made to callback URLs, of one message or all, the newest last."""
        found: list[dict[str, Any]] = self._get("posts", {"messageId": message_id} if message_id else {})
        return found

    def truth(self, message_id: str | None = None) -> list[dict[str, Any]]:
        """What your application must know of each delivery by now, of one message or all."""
        found: list[dict[str, Any]] = self._get("truth", {"messageId": message_id} if message_id else {})
        return found

    def wait_until_idle(self, seconds: float = 10) -> None:
        """Waits until everything is called back; raises TimeoutError if something is still due after `seconds`."""
        state = self._get("idle", {"wait": seconds}, timeout=seconds + _ANSWER_SECONDS)
        if not state["idle"]:
            raise TimeoutError(
                f"{state['waiting']} callbacks are still due, {state['underWay']} are under way, after {seconds:g} s"
            )

    def set_rates(self, **shares: float) -> None:
        """Has messages from now on fail or misbehave at these rates, 0 to 1; those not named stay as they are."""
        self._post("rates", {to_camel(name): share for name, share in shares.items()})

    def advance(self, seconds: float) -> None:
        """Moves the clock forward; what falls due is called back at once."""
        self._post("clock", {"advance": seconds})

    def reset(self, seed: int | None = None) -> None:
        """Forgets every message; rates and clock are as at the start."""
        self._post("reset", {} if seed is None else {"seed": seed})

    @staticmethod
    def number(code: int, api: str = "v2") -> str:
        """The recipient whose messages end with this delivery code; raises ValueError for one that is not known."""
        found = of_code(Api(api), code)
        if magic(Api(api), found) is None:
            raise ValueError(f"{api} has no delivery code {code}")
        return found

    @staticmethod
    def misbehaving_number(misbehaviour: str) -> str:
        """The recipient whose callbacks misbehave so: `duplicate`, `reorder`, `missing`, …"""
        return of(Fault(misbehaviour))

    def close(self) -> None:
        self._client.close()

    def _get(self, name: str, parameters: dict[str, Any], *, timeout: float = _ANSWER_SECONDS) -> Any:
        return _judged(self._client.get(name, params=parameters, timeout=timeout)).json()

    def _post(self, name: str, body: dict[str, Any]) -> Any:
        answer = _judged(self._client.post(name, json=body))
        return answer.json() if answer.content else None


def _judged(answer: httpx2.Response) -> httpx2.Response:
    """The answer; raises ValueError with the sandbox's words if it refused."""
    if answer.status_code >= 400:
        raise ValueError(answer.json()["error"])
    return answer


@contextmanager
def running_sandbox(**settings: Any) -> Iterator[Sandbox]:
    """A sandbox that runs while the block does; `settings` are those of `SandboxSettings`.

    Delays pass a thousand times faster and v1 has no limit of messages a second, unless you say otherwise.
    """
    told = SandboxSettings(**{**_DEFAULTS, **settings})
    running = server(application(told), host=_HOST, port=0)
    thread = threading.Thread(target=_serve, args=[running], name="receiver-sandbox", daemon=True)
    thread.start()
    try:
        box = Sandbox(f"http://{_HOST}:{_port(running, thread)}", _credentials(told))
        try:
            yield box
        finally:
            box.close()
    finally:
        running.should_exit = True
        thread.join(_STOP_SECONDS)
        if thread.is_alive():
            raise RuntimeError("the sandbox does not stop")


def _serve(running: uvicorn.Server) -> None:
    with asyncio.Runner() as runner:
        runner.run(running.serve())


def _port(running: uvicorn.Server, thread: threading.Thread) -> int:
    deadline = time.monotonic() + _START_SECONDS
    while not running.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise RuntimeError("the sandbox does not start")
        time.sleep(_LOOK_SECONDS)  # between two looks at another thread
    return int(running.servers[0].sockets[0].getsockname()[1])


def _credentials(settings: SandboxSettings) -> tuple[str, str] | None:
    """Who may send: of several the first; None if anybody may."""
    if not settings.credentials:
        return None
    token, _, secret = settings.credentials[0].get_secret_value().partition(":")
    return token, secret
