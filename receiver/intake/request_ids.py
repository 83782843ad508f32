"""Request ids: what a proxy or a client calls a request, in the log lines of the request and in its answer."""

import re
from typing import Final
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, reset_contextvars

HEADER: Final = "X-Request-ID"
REQUEST_ID: Final = "receiver.request_id"
"""The key in a request's scope for its id."""
# A stranger chooses it, and it becomes a header and a part of log lines.
_ACCEPTABLE: Final = re.compile(rb"[\x21-\x7e]{1,128}")


def request_id(scope: Scope, name: bytes) -> bytes:
    """The id in the header with this lower-case name; a new one if there is none, several, or one that is too odd."""
    given = [value for header, value in scope["headers"] if header == name]
    return given[0] if len(given) == 1 and _ACCEPTABLE.fullmatch(given[0]) else uuid4().hex.encode()


class RequestIds:
    """An application whose requests have ids: in their scope, in each of their log lines, and in their answers."""

    def __init__(self, app: ASGIApp, header: str = HEADER) -> None:
        self._app = app
        self._name = header.lower().encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        found = request_id(scope, self._name)
        scope[REQUEST_ID] = found.decode()

        async def answering(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (self._name, found)]
            await send(message)

        tokens = bind_contextvars(request_id=scope[REQUEST_ID])
        await self._app(scope, receive, answering)
        # Not after an error: the server logs its traceback, which belongs to this request too.
        reset_contextvars(**tokens)
