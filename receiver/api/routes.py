"""The query API: all operations, their routes and the OpenAPI document."""

from functools import cache
from importlib.metadata import version
from typing import Final

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from receiver.api import (
    alerts,
    callbacks,
    catapult,
    dead_letters,
    docs,
    events,
    messages,
    notifications,
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
from receiver.domain.cloudevents import ALERT_SCHEMA_PATH, SCHEMA_PATH

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
        # Before the alerts: what is fixed in a path comes before an id.
        *notifications.OPERATIONS,
        *alerts.OPERATIONS,
        *status.OPERATIONS,
    ),
)
GROUPS: Final = (OWN, catapult.GROUP)


def routes(context: ApiContext) -> list[BaseRoute]:
    """The routes of the query API, and those of the OpenAPI document and the documentation, which need no token."""
    return [
        Route("/openapi.json", _openapi, name="openapi"),
        Route(SCHEMA_PATH, _event_schema, name="eventSchema"),
        Route(ALERT_SCHEMA_PATH, _alert_schema, name="alertSchema"),
        *docs.routes(_document),
        *(mount(group, context) for group in GROUPS),
    ]


async def _openapi(_: Request) -> Response:
    return json_answer(_document_as_json())


async def _event_schema(_: Request) -> Response:
    return json_answer(_event_schema_as_json(), media_type="application/schema+json")


async def _alert_schema(_: Request) -> Response:
    return json_answer(_alert_schema_as_json(), media_type="application/schema+json")


@cache
def _event_schema_as_json() -> bytes:
    return to_json(openapi.event_schema())


@cache
def _alert_schema_as_json() -> bytes:
    return to_json(openapi.alert_schema())


@cache
def _document_as_json() -> bytes:
    # Made once: anybody may request it, without a token.
    return to_json(_document()) + b"\n"


@cache
def _document() -> openapi.Json:
    return openapi.document(GROUPS, version("bandwidth-receiver"))
