"""A sandbox behind a real server, and what it calls back: an application of the test, or a real `receiver serve`."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from receiver.domain.events import Api, Callback
from receiver.sandbox.app import application
from receiver.sandbox.settings import SandboxSettings
from receiver.sandbox.state import State
from tests.factories import at
from tests.processes import PATIENT, Server, serving
from tests.web import serving as serving_here

V1 = "/v1/users/u-1/messages"
V2 = "/api/v2/users/u-1/messages"


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """One request that the application received."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def credentials(self) -> str | None:
        """The user:password of the request."""
        header = self.headers.get("authorization")
        return base64.b64decode(header.removeprefix("Basic ")).decode() if header else None

    def callback(self, number: int = 1) -> Callback:
        """The request as input of the receiver's parsers."""
        return Callback(
            id=f"callback-{number}",
            received_at=at(0),
            api=Api.V2 if self.path.endswith("v2") else Api.V1,
            route="primary",
            method=self.method,
            query=self.query,
            body=self.body,
        )


@dataclass
class Application:
    """Answers callbacks with the `answers` of their path, one after the other, then with 200.

    An answer is a status, the `WWW-Authenticate` header of a 401, or an event: the answer waits until it is set.
    """

    url: str = ""
    requests: list[ReceivedRequest] = field(default_factory=list)
    answers: dict[str, list[int | str | asyncio.Event]] = field(default_factory=dict)
    password: str | None = None
    delayed: list[asyncio.Event] = field(default_factory=list)

    def on(self, path: str) -> list[ReceivedRequest]:
        return [request for request in self.requests if request.path == path]

    def events(self, path: str = "/v2") -> list[dict[str, Any]]:
        """The events of all v2 callbacks to a path, whatever the answer."""
        return [event for request in self.on(path) for event in request.json]

    async def answer(self, request: Request) -> Response:
        received = ReceivedRequest(
            request.method,
            request.url.path,
            request.url.query,
            dict(request.headers),
            await request.body(),
        )
        self.requests.append(received)
        if self.password and received.credentials != self.password:
            return Response(status_code=401, headers={"WWW-Authenticate": 'Basic realm="test"'})
        answers = self.answers.get(received.path)
        answer = answers.pop(0) if answers else 200
        if isinstance(answer, str):
            return Response(status_code=401, headers={"WWW-Authenticate": answer} if answer else {})
        if isinstance(answer, asyncio.Event):
            self.delayed.append(answer)
            await answer.wait()
            answer = 200
        return Response(status_code=answer, headers={"Location": "/elsewhere"} if 300 <= answer < 400 else {})

    def end_delays(self) -> None:
        for event in self.delayed:
            event.set()

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/{path:path}", self.answer, methods=["GET", "POST", "PUT"])])


@dataclass
class Sandbox:
    """A running sandbox, and a client that may send."""

    state: State
    client: httpx2.AsyncClient
    application: Application

    async def send(self, path: str, body: Any, status: int) -> httpx2.Response:
        answer = await self.client.post(path, json=body)
        assert answer.status_code == status, answer.text
        return answer

    async def wait_until_idle(self, seconds: float = 45) -> None:
        """Waits until every callback is sent."""
        queue = await self.state.callback_sender.wait_until_idle(seconds)
        assert queue.is_idle, queue

    async def expected(self, message_id: str) -> list[dict[str, Any]]:
        answer = await self.client.get("/sandbox/expected", params={"messageId": message_id})
        expected: list[dict[str, Any]] = answer.json()
        return expected


@asynccontextmanager
async def sandbox(**settings: Any) -> AsyncIterator[Sandbox]:
    """A sandbox with an application that handles v2 callbacks at `/v2`. Delays are a thousand times shorter."""
    defaults: dict[str, Any] = {"speed": 1000, "messages_per_second": 0}
    async with AsyncExitStack() as stack:
        receiver = Application()
        receiver.url = await stack.enter_async_context(serving_here(receiver.app()))
        stack.callback(receiver.end_delays)
        urls = {"outbound_url": f"{receiver.url}/v2", "v1_inbound_url": f"{receiver.url}/v1"}
        app = application(SandboxSettings(**{**defaults, **urls, **_resolved(settings, receiver.url)}))
        url = await stack.enter_async_context(serving_here(app))
        client = httpx2.AsyncClient(base_url=url, auth=("token", "secret"), **PATIENT)
        yield Sandbox(app.state.sandbox, await stack.enter_async_context(client), receiver)


def _resolved(settings: dict[str, Any], url: str) -> dict[str, Any]:
    """The settings, in which functions of the application's URL are replaced by their results."""
    return {name: value(url) if isinstance(value, Callable) else value for name, value in settings.items()}


def v1_message(**more: Any) -> dict[str, Any]:
    return {"from": "+19195551212", "to": "+19195551213", "text": "hello", **more}


def v2_message(**more: Any) -> dict[str, Any]:
    return {"from": "+19195551212", "to": ["+19195551213"], "text": "hello", "applicationId": "app-1", **more}


USER = "u-1"
TOKEN, SECRET = "token", "secret"
PAIR = "callbacks:pass-77d"
API_TOKEN = "admin-token-f00"


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """A receiver as a process, a sandbox in this one, and a client for each."""

    server: Server
    sandbox_url: str
    sandbox: httpx2.AsyncClient
    receiver: httpx2.AsyncClient

    def v1_callback_url(self, path: str = "/callbacks/bandwidth/v1") -> str:
        """What a v1 client gives as `callbackUrl`: v1 knows credentials in the URL alone."""
        return f"http://{PAIR}@{urlsplit(self.server.url).netloc}{path}"

    async def settle(self, seconds: float = 45) -> None:
        """Waits until the sandbox has nothing left to post."""
        answer = await self.sandbox.get("/sandbox/idle", params={"wait": seconds}, timeout=seconds + 60)
        assert answer.json()["idle"], answer.text


@asynccontextmanager
async def round_trip(
    folder: Path, *, receiver: Mapping[str, str] | None = None, **sandbox: Any
) -> AsyncIterator[RoundTrip]:
    """Both, wired: v2 with a challenge, v1 with credentials in the URL; delays are compressed a thousandfold."""
    settings = {"CALLBACK_CREDENTIALS": json.dumps([PAIR]), "API_TOKENS": json.dumps([API_TOKEN])}
    async with AsyncExitStack() as stack:
        server = stack.enter_context(serving(folder, settings={**settings, **(receiver or {})}))
        callbacks = f"{server.url}/callbacks/bandwidth"
        defaults = {
            "speed": 1000,
            "messages_per_second": 0,
            "outbound_url": f"{callbacks}/v2",
            "callback_credentials": PAIR,
            "v1_inbound_url": f"{callbacks}/v1".replace("://", f"://{PAIR}@"),
        }
        url = await stack.enter_async_context(serving_here(application(SandboxSettings(**{**defaults, **sandbox}))))
        there = httpx2.AsyncClient(base_url=url, auth=(TOKEN, SECRET), **PATIENT)
        here = httpx2.AsyncClient(base_url=server.url, headers={"Authorization": f"Bearer {API_TOKEN}"}, **PATIENT)
        yield RoundTrip(server, url, await stack.enter_async_context(there), await stack.enter_async_context(here))
