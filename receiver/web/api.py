"""The query API: all its operations, their routes, and their description."""

from functools import cache
from importlib.metadata import version
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from receiver.web import callbacks, codes, compat, dead_letters, event_pull, messages, openapi, signing, sinks, status
from receiver.web.answers import json_answer
from receiver.web.auth import BEARER
from receiver.web.operations import Api, Group, mount

OWN: Final = Group(
    prefix="/api",
    scheme=BEARER,
    operations=(
        *messages.OPERATIONS,
        *callbacks.OPERATIONS,
        *codes.OPERATIONS,
        *signing.OPERATIONS,
        *event_pull.OPERATIONS,
        *sinks.OPERATIONS,
        *dead_letters.OPERATIONS,
        *status.OPERATIONS,
    ),
)
GROUPS: Final = (OWN, compat.GROUP)


def routes(api: Api) -> list[BaseRoute]:
    """The routes of the query API, and the description of them, which is no secret and needs no token."""
    return [Route("/openapi.json", _openapi, name="openapi"), *(mount(group, api) for group in GROUPS)]


async def _openapi(_: Request) -> Response:
    return json_answer(_description())


@cache
def _description() -> openapi.Json:
    return openapi.description(GROUPS, version("bandwidth-receiver"))
