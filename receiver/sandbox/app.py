"""The sandbox as an ASGI application, and its own routes: they simulate events and show results; no credentials."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Self, TypeVar

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from receiver.domain.events import Api
from receiver.sandbox import routes, v1, v2
from receiver.sandbox.callback_sender import CallbackRecord, CallbackSender, Clock, QueueState
from receiver.sandbox.host_check import HostCheck
from receiver.sandbox.messages import ExpectedStatus, InboundRequest, timestamp
from receiver.sandbox.routes import Handler, base_url, is_json, json_body, json_line, sandbox_state
from receiver.sandbox.scenario_writer import MagicNumber, magic_numbers
from receiver.sandbox.settings import Rates, SandboxSettings
from receiver.sandbox.state import State

PREFIX: Final = "/sandbox/"
MAX_WAIT_SECONDS: Final = 600.0

Model = TypeVar("Model", bound=BaseModel)


def _with_zone(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=UTC)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class ClockChange(_Body):
    """Moves the clock: forward by `advance` seconds, or to a time."""

    advance: Annotated[float, Field(ge=0, le=1e10, allow_inf_nan=False)] | None = None
    to: Annotated[datetime, AfterValidator(_with_zone)] | None = None

    @model_validator(mode="after")
    def _has_one_field(self) -> Self:
        if (self.advance is None) == (self.to is None):
            raise ValueError("must have either advance or to")
        return self


class ResetRequest(_Body):
    """Resets the sandbox. `seed` is the new seed; without it, the seed of the settings."""

    seed: int | None = None


def _with_errors(handler: Handler) -> Handler:
    """Wraps a handler so that an invalid request is answered 400."""

    async def wrapped(request: Request) -> Response:
        try:
            return await handler(request)
        except ValidationError as error:
            return _json({"error": "; ".join(map(_error_text, error.errors()))}, 400)
        except (ValueError, OverflowError) as error:
            return _json({"error": str(error)}, 400)

    return wrapped


def _error_text(error: Any) -> str:
    location = ".".join(map(str, error["loc"]))
    return f"{location}: {error['msg']}" if location else str(error["msg"])


def _json(value: Any, status: int = 200, headers: Any = None) -> Response:
    return Response(json_line(value), status, headers, "application/json")


async def _body(request: Request) -> Any:
    """Returns the parsed body, {} if it is empty.

    The Content-Type must be JSON: a web page of another origin cannot send that without asking the browser (CORS).
    """
    if not await request.body():
        return {}
    if not is_json(request):
        raise HTTPException(415, "The Content-Type must be application/json")
    return await json_body(request)


async def _parse_body(request: Request, model: type[Model]) -> Model:
    return model.model_validate_json(orjson.dumps(await _body(request)))


async def simulate_inbound(request: Request) -> Response:
    inbound = await _parse_body(request, InboundRequest)
    messages = sandbox_state(request).receive(inbound, base_url(request))
    return _json({"messages": [{"id": message.id, "to": message.owner} for message in messages]}, 202)


async def show_sends(request: Request) -> Response:
    """The sent messages in the form in which a receiver registers them: `POST /api/messages`."""
    state = sandbox_state(request)
    now, speed = state.clock.now(), state.settings.speed
    return _json(
        [
            v1.representation(message, now, speed) if message.api is Api.V1 else v2.representation(message)
            for message in state.sent()
        ]
    )


async def show_expected(request: Request) -> Response:
    message_id = request.query_params.get("messageId")
    return _json([_expected(expected) for expected in sandbox_state(request).expected(message_id)])


def _expected(expected: ExpectedStatus) -> dict[str, Any]:
    return {
        "api": expected.api,
        "messageId": expected.message_id,
        "recipient": expected.recipient,
        "direction": expected.direction,
        "status": expected.status,
        "code": expected.code,
        "contradicted": expected.contradicted,
        "certain": expected.certain,
    }


async def show_clock(request: Request) -> Response:
    return _json({"now": timestamp(sandbox_state(request).clock.now(), "microseconds")})


async def move_clock(request: Request) -> Response:
    """Moves the clock forward. Callbacks that are due then are sent at once."""
    state, change = sandbox_state(request), await _parse_body(request, ClockChange)
    if change.to is not None:
        state.clock.advance(change.to - state.clock.now())
    else:
        state.clock.advance(timedelta(seconds=change.advance or 0.0))
    state.callback_sender.wake()
    return await show_clock(request)


async def show_rates(request: Request) -> Response:
    return _json(_rates(sandbox_state(request).rates))


async def change_rates(request: Request) -> Response:
    """Changes the rates in the body, for messages from now on."""
    changes = await _body(request)
    if not isinstance(changes, dict):
        raise ValueError("the body must be a JSON object of rates")
    return _json(_rates(sandbox_state(request).change_rates(changes)))


def _rates(rates: Rates) -> dict[str, float]:
    return rates.model_dump(by_alias=True)


async def show_numbers(_: Request) -> Response:
    return _json([_magic_number(magic) for magic in magic_numbers()])


def _magic_number(magic: MagicNumber) -> dict[str, Any]:
    return {
        "number": magic.number,
        "api": magic.api,
        "meaning": magic.meaning,
        "code": magic.final_status.code if magic.final_status else None,
        "fault": magic.fault,
    }


async def show_posts(request: Request) -> Response:
    """Lists the requests that were made to callback URLs, newest last."""
    message_id = request.query_params.get("messageId")
    all_records = sandbox_state(request).callback_sender.records
    records = [record for record in all_records if message_id in (None, record.message_id)]
    limit = int(request.query_params.get("limit", len(records)))
    return _json([_post(record) for record in records[max(0, len(records) - limit) :]])


def _post(record: CallbackRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "api": record.api,
        "messageId": record.message_id,
        "route": record.route,
        "method": record.method,
        "url": record.url,
        "query": record.query or None,
        "attempt": record.attempt,
        "withCredentials": record.with_credentials,
        "status": record.status,
        "error": record.error,
        "startedTime": timestamp(record.started_at, "microseconds"),
        "seconds": round(record.seconds, 6),
        "body": orjson.Fragment(record.body) if record.body else None,
    }


async def show_idle(request: Request) -> Response:
    """Shows whether callbacks are waiting or in flight. With `wait`, waits that many seconds until none are."""
    sender, seconds = sandbox_state(request).callback_sender, float(request.query_params.get("wait", 0))
    if not 0 <= seconds <= MAX_WAIT_SECONDS:
        raise ValueError(f"wait must be from 0 to {MAX_WAIT_SECONDS:g} seconds")
    return _json(_queue_state(await sender.wait_until_idle(seconds) if seconds else sender.queue_state()))


def _queue_state(state: QueueState) -> dict[str, Any]:
    return {
        "idle": state.is_idle,
        "waiting": state.waiting,
        "underWay": state.in_flight,
        "nextTime": timestamp(state.next_at, "microseconds") if state.next_at else None,
    }


async def reset(request: Request) -> Response:
    """Deletes every message; clock, rates and seed are as at the start."""
    sandbox_state(request).reset((await _parse_body(request, ResetRequest)).seed)
    return Response(status_code=204)


async def show_start(_: Request) -> Response:
    """What this server is, for somebody who opens its address."""
    return PlainTextResponse(
        "This is receiver's sandbox, a stand-in for Bandwidth: POST messages to /api/v2/users/u-1/messages or "
        "/v1/users/u-1/messages, GET /sandbox/posts and /sandbox/numbers.\n"
    )


_HANDLERS: Final[tuple[tuple[str, str, Handler], ...]] = (
    ("POST", "inbound", simulate_inbound),
    ("GET", "sends", show_sends),
    ("GET", "expected", show_expected),
    ("GET", "clock", show_clock),
    ("POST", "clock", move_clock),
    ("GET", "rates", show_rates),
    ("POST", "rates", change_rates),
    ("GET", "numbers", show_numbers),
    ("GET", "posts", show_posts),
    ("GET", "idle", show_idle),
    ("POST", "reset", reset),
)
ROUTES: Final = tuple(
    Route(f"{PREFIX}{name}", _with_errors(handler), methods=[method]) for method, name, handler in _HANDLERS
)

# Room for the 50 messages of a v1 request, however their texts are escaped.
MAX_BODY_BYTES: Final = 2 * 1024 * 1024


def application(settings: SandboxSettings | None = None) -> Starlette:
    """Builds a sandbox. Its lifespan sends the callbacks.

    Code in the same process reaches the messages as `state.sandbox` and the callbacks as `state.callback_sender`.
    """
    settings = settings or SandboxSettings()
    clock = Clock()
    callback_sender = CallbackSender(settings, clock)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with callback_sender.running():
            yield

    app = Starlette(
        routes=[Route("/", show_start), *routes.V1_ROUTES, *routes.V2_ROUTES, *ROUTES],
        middleware=[Middleware(HostCheck, public_url=settings.public_url, on_error=_error_response)],
        exception_handlers={HTTPException: _error_response, ClientDisconnect: _nobody_to_answer},
        lifespan=lifespan,
        max_body_size=MAX_BODY_BYTES,
    )
    app.router.redirect_slashes = False
    app.state.sandbox = State(settings, clock, callback_sender)
    app.state.callback_sender = callback_sender
    return app


async def _error_response(request: Request, error: Exception) -> Response:
    """Returns the error in the format of the API that the path belongs to."""
    assert isinstance(error, HTTPException)  # noqa: S101
    path = request.url.path
    if path.startswith(routes.V1_PREFIX):
        return routes.v1_error_response(request, error)
    if path.startswith(routes.V2_PREFIXES):
        return routes.v2_error_response(request, error)
    return _json({"error": error.detail}, error.status_code, error.headers)


async def _nobody_to_answer(_: Request, __: Exception) -> Response:
    """The client closed its connection within the body: no fault of the sandbox, and nobody reads the response."""
    return Response(status_code=400)
