"""The query API: all operations, their routes and the OpenAPI document."""

from collections.abc import Awaitable, Callable
from functools import cache
from importlib.metadata import version
from typing import Final

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from receiver.api import (
    callbacks,
    catapult,
    dead_letters,
    docs,
    events,
    messages,
    openapi,
    reference,
    sends,
    sinks,
    statistics,
    status,
)
from receiver.api.auth import BEARER
from receiver.api.operations import ApiContext
from receiver.api.routing import Group, json_answer, mount
from receiver.domain.cloudevents import SCHEMA_PATH

OWN: Final = Group(
    prefix="/api",
    scheme=BEARER,
    operations=(
        *messages.OPERATIONS,
        *sends.OPERATIONS,
        *statistics.OPERATIONS,
        *callbacks.OPERATIONS,
        *reference.OPERATIONS,
        *events.OPERATIONS,
        *sinks.OPERATIONS,
        *dead_letters.OPERATIONS,
        *status.OPERATIONS,
    ),
)
GROUPS: Final = (OWN, catapult.GROUP)


def routes(context: ApiContext) -> list[BaseRoute]:
    """The routes of the query API, and those of the OpenAPI document and the documentation, which need no token."""
    return [
        Route("/", _start(context.public_url), include_in_schema=False),
        Route("/openapi.json", _openapi, name="openapi"),
        Route(SCHEMA_PATH, _event_schema, name="eventSchema"),
        *docs.routes(_document),
        *(mount(group, context) for group in GROUPS),
    ]


def _start(public_url: str | None) -> Callable[[Request], Awaitable[Response]]:
    """What this server is, in a line with links, for somebody who opens its address."""

    async def start(request: Request) -> Response:
        url = (public_url or str(request.url.replace(query=""))).rstrip("/")
        line = f"This is receiver: documentation {url}/docs, API {url}/docs/openapi, health {url}/healthz\n"
        return PlainTextResponse(line, headers={"X-Content-Type-Options": "nosniff"})

    return start


async def _openapi(_: Request) -> Response:
    return json_answer(_document_as_json())


async def _event_schema(_: Request) -> Response:
    return json_answer(_event_schema_as_json(), media_type="application/schema+json")


@cache
def _event_schema_as_json() -> bytes:
    return to_json(openapi.event_schema())


@cache
def _document_as_json() -> bytes:
    # Made once: anybody may request it, without a token.
    return to_json(_document()) + b"\n"


@cache
def _document() -> openapi.Json:
    return openapi.document(GROUPS, version("bandwidth-receiver"))
