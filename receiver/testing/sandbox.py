"""A sandbox for the tests of an application: it stands in for Bandwidth, on a port of this machine.

    @pytest.fixture
    def receiver_sandbox_settings(shop):
        return {"outbound_url": f"{shop.url}/callbacks", "callback_credentials": "user:password"}

    def test_an_invalid_number_is_not_written_to_again(shop, receiver_sandbox):
        shop.remind(receiver_sandbox.number(4720))
        receiver_sandbox.wait_until_idle()
        ...

The sandbox runs in a thread of its own. Its methods block until the sandbox answers: if the application runs on the
event loop of the test, call `wait_until_idle` with `asyncio.to_thread`.
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
from receiver.sandbox.scenario_writer import code_number, fault_number, magic_number
from receiver.sandbox.settings import Fault, SandboxSettings

_HOST: Final = "127.0.0.1"
_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.005
_REQUEST_SECONDS: Final = 60.0
_REGISTERED_AT_ONCE: Final = 500
# Delays are a thousand times shorter, and v1 has no rate limit.
_DEFAULTS: Final = {"speed": 1000.0, "messages_per_second": 0.0}


class Sandbox:
    """A running sandbox. Send messages to `url`, with Basic authentication.

    `credentials` are "token:secret", written as in every setting; `auth` is the pair, as HTTP clients take it. Both are
    None if no credentials are needed.
    """

    def __init__(self, url: str, credentials: str | None) -> None:
        self.url = url
        self.credentials = credentials
        token, _, secret = (credentials or "").partition(":")
        self.auth = (token, secret) if credentials else None
        self._client = httpx2.Client(base_url=f"{url}/sandbox/", timeout=_REQUEST_SECONDS, trust_env=False)

    def send_inbound(self, *, sender: str, to: str | list[str], text: str | None = None, **more: Any) -> list[str]:
        """Simulates an inbound message to your numbers `to`. Returns a message id for each of them.

        `more` are the other fields of `POST /sandbox/inbound`: `api`, `others`, `media`, `channel`, `event`, …
        """
        fields = {to_camel(name): value for name, value in more.items()}
        answer = self._post("inbound", {"from": sender, "to": to, "text": text, **fields})
        return [message["id"] for message in answer["messages"]]

    def posts(self, message_id: str | None = None) -> list[dict[str, Any]]:
        """Returns the requests made to callback URLs, for all messages or for one, newest last."""
        posts: list[dict[str, Any]] = self._get("posts", {"messageId": message_id} if message_id else {})
        return posts

    def expected(self, message_id: str | None = None) -> list[dict[str, Any]]:
        """Returns the status that your application should have for each delivery, of all messages or of one."""
        expected: list[dict[str, Any]] = self._get("expected", {"messageId": message_id} if message_id else {})
        return expected

    def sends(self) -> list[dict[str, Any]]:
        """Returns the messages that your application sent, as the API of Bandwidth shows them, oldest first."""
        sends: list[dict[str, Any]] = self._get("sends", {})
        return sends

    def register_sends(self, url: str, token: str) -> list[dict[str, Any]]:
        """Registers these messages with the receiver at `url`, and returns its result for each.

        `token` is an API token with the access `admin`. Raises ValueError if the receiver refuses the request.
        """
        results: list[dict[str, Any]] = []
        sends, headers = self.sends(), {"Authorization": f"Bearer {token}"}
        for begin in range(0, len(sends), _REGISTERED_AT_ONCE):
            answer = self._client.post(
                f"{url.rstrip('/')}/api/messages", json=sends[begin : begin + _REGISTERED_AT_ONCE], headers=headers
            )
            if answer.status_code != 200:
                raise ValueError(f"the receiver answered {answer.status_code}: {answer.text}")
            results += answer.json()
        return results

    def wait_until_idle(self, seconds: float = 10) -> None:
        """Waits until every callback is sent. Raises TimeoutError if callbacks are still due after `seconds`."""
        state = self._get("idle", {"wait": seconds}, timeout=seconds + _REQUEST_SECONDS)
        if not state["idle"]:
            raise TimeoutError(
                f"{state['waiting']} callbacks are still due and {state['underWay']} in flight after {seconds:g} s"
            )

    def set_rates(self, **rates: float) -> None:
        """Sets the rates of faults and failures, from 0 to 1, for messages from now on. Other rates do not change."""
        self._post("rates", {to_camel(name): rate for name, rate in rates.items()})

    def advance(self, seconds: float) -> None:
        """Moves the clock forward. Callbacks that are due then are sent at once."""
        self._post("clock", {"advance": seconds})

    def reset(self, seed: int | None = None) -> None:
        """Deletes every message. Rates and clock are as at the start."""
        self._post("reset", {} if seed is None else {"seed": seed})

    @staticmethod
    def number(code: int, api: str = "v2") -> str:
        """Returns the recipient whose messages end with a delivery code. Raises ValueError for an unknown code."""
        number = code_number(Api(api), code)
        if magic_number(Api(api), number) is None:
            raise ValueError(f"{api} has no delivery code {code}")
        return number

    @staticmethod
    def fault_number(fault: str) -> str:
        """Returns the recipient whose callbacks have a fault: `duplicate`, `reorder`, `missing`, …"""
        return fault_number(Fault(fault))

    def close(self) -> None:
        self._client.close()

    def _get(self, name: str, parameters: dict[str, Any], *, timeout: float = _REQUEST_SECONDS) -> Any:
        return _checked(self._client.get(name, params=parameters, timeout=timeout)).json()

    def _post(self, name: str, body: dict[str, Any]) -> Any:
        answer = _checked(self._client.post(name, json=body))
        return answer.json() if answer.content else None


def _checked(answer: httpx2.Response) -> httpx2.Response:
    """Returns the answer. Raises ValueError with the sandbox's error if it is one."""
    if answer.status_code >= 400:
        raise ValueError(answer.json()["error"])
    return answer


@contextmanager
def running_sandbox(**settings: Any) -> Iterator[Sandbox]:
    """Runs a sandbox while the block runs. `settings` are the fields of `SandboxSettings`.

    By default delays are a thousand times shorter, and v1 has no rate limit.
    """
    sandbox_settings = SandboxSettings(**{**_DEFAULTS, **settings})
    running = server(application(sandbox_settings), host=_HOST, port=0)
    thread = threading.Thread(target=_serve, args=[running], name="receiver-sandbox", daemon=True)
    thread.start()
    try:
        sandbox = Sandbox(f"http://{_HOST}:{_port(running, thread)}", _credentials(sandbox_settings))
        try:
            yield sandbox
        finally:
            sandbox.close()
    finally:
        running.should_exit = True
        thread.join(_STOP_SECONDS)
        if thread.is_alive():
            raise RuntimeError(f"the sandbox did not stop within {_STOP_SECONDS:g} s")


def _serve(running: uvicorn.Server) -> None:
    with asyncio.Runner() as runner:
        runner.run(running.serve())


def _port(running: uvicorn.Server, thread: threading.Thread) -> int:
    deadline = time.monotonic() + _START_SECONDS
    while not running.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise RuntimeError(f"the sandbox did not start within {_START_SECONDS:g} s")
        time.sleep(_POLL_SECONDS)
    return int(running.servers[0].sockets[0].getsockname()[1])


def _credentials(settings: SandboxSettings) -> str | None:
    """Returns the first accepted credentials, None if none are needed."""
    return settings.credentials[0].get_secret_value() if settings.credentials else None
