"""A sandbox behind a real server, and an application for it to call back."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from receiver.domain.callbacks import Callback
from receiver.domain.events import Api
from receiver.sandbox.app import application
from receiver.sandbox.settings import SandboxSettings
from receiver.sandbox.state import World
from tests.events import at
from tests.running import PATIENT
from tests.web import serving

V1 = "/v1/users/u-1/messages"
V2 = "/api/v2/users/u-1/messages"


@dataclass(frozen=True, slots=True)
class Heard:
    """One request that reached the application."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def pair(self) -> str | None:
        """The user:password it came with."""
        given = self.headers.get("authorization")
        return base64.b64decode(given.removeprefix("Basic ")).decode() if given else None

    def callback(self, number: int = 1) -> Callback:
        """The request as the receiver's providers take it."""
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
    """Takes callbacks: answers by path, in turn with what `answers` holds, then with 200.

    A number is a status, a text the `WWW-Authenticate` of a 401, an event silence until it is set.
    """

    url: str = ""
    heard: list[Heard] = field(default_factory=list)
    answers: dict[str, list[int | str | asyncio.Event]] = field(default_factory=dict)
    password: str | None = None
    silences: list[asyncio.Event] = field(default_factory=list)

    def on(self, path: str) -> list[Heard]:
        return [heard for heard in self.heard if heard.path == path]

    def events(self, path: str = "/v2") -> list[dict[str, Any]]:
        """The elements of all arrays that were answered 200 or not."""
        return [event for heard in self.on(path) for event in heard.json]

    async def answer(self, request: Request) -> Response:
        told = Heard(
            request.method,
            request.url.path,
            request.url.query,
            dict(request.headers),
            await request.body(),
        )
        self.heard.append(told)
        if self.password and told.pair != self.password:
            return Response(status_code=401, headers={"WWW-Authenticate": 'Basic realm="test"'})
        waiting = self.answers.get(told.path)
        answer = waiting.pop(0) if waiting else 200
        if isinstance(answer, str):
            return Response(status_code=401, headers={"WWW-Authenticate": answer} if answer else {})
        if isinstance(answer, asyncio.Event):
            self.silences.append(answer)
            await answer.wait()
            answer = 200
        return Response(status_code=answer, headers={"Location": "/elsewhere"} if 300 <= answer < 400 else {})

    def break_silence(self) -> None:
        for silence in self.silences:
            silence.set()

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/{path:path}", self.answer, methods=["GET", "POST", "PUT"])])


@dataclass
class Sandbox:
    """A running sandbox, and a client that may send."""

    world: World
    client: httpx2.AsyncClient
    application: Application

    async def send(self, path: str, body: Any, status: int) -> httpx2.Response:
        answer = await self.client.post(path, json=body)
        assert answer.status_code == status, answer.text
        return answer

    async def settle(self, seconds: float = 45) -> None:
        """Waits until everything is posted."""
        state = await self.world.caller.settle(seconds)
        assert state.idle, state

    async def truth(self, message_id: str) -> list[dict[str, Any]]:
        answer = await self.client.get("/sandbox/truth", params={"messageId": message_id})
        found: list[dict[str, Any]] = answer.json()
        return found


@asynccontextmanager
async def sandbox(**settings: Any) -> AsyncIterator[Sandbox]:
    """A sandbox whose v2 statuses go to `/v2` of an application, with delays compressed a thousandfold."""
    defaults: dict[str, Any] = {"speed": 1000, "messages_per_second": 0}
    async with AsyncExitStack() as stack:
        heard = Application()
        heard.url = await stack.enter_async_context(serving(heard.app()))
        stack.callback(heard.break_silence)
        urls = {"outbound_url": f"{heard.url}/v2", "v1_inbound_url": f"{heard.url}/v1"}
        app = application(SandboxSettings(**{**defaults, **urls, **_placed(settings, heard.url)}))
        url = await stack.enter_async_context(serving(app))
        client = httpx2.AsyncClient(base_url=url, auth=("token", "secret"), **PATIENT)
        yield Sandbox(app.state.world, await stack.enter_async_context(client), heard)


def _placed(settings: dict[str, Any], url: str) -> dict[str, Any]:
    """The settings, with functions of the application's URL called."""
    return {name: value(url) if isinstance(value, Callable) else value for name, value in settings.items()}


def v1_message(**more: Any) -> dict[str, Any]:
    return {"from": "+19195551212", "to": "+19195551213", "text": "hello", **more}


def v2_message(**more: Any) -> dict[str, Any]:
    return {"from": "+19195551212", "to": ["+19195551213"], "text": "hello", "applicationId": "app-1", **more}
