"""The routes that are the sandbox's own: make things happen, see what happened. They ask for no credentials."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Self, TypeVar

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from receiver.sandbox.asking import base_url, is_json, json_body, world
from receiver.sandbox.callback_sender import Call, State
from receiver.sandbox.expected import Truth
from receiver.sandbox.faults import Rates
from receiver.sandbox.messages import InboundRequest, instant
from receiver.sandbox.numbers import Magic, magic_numbers

PREFIX: Final = "/sandbox/"
LONGEST_WAIT: Final = 600.0

Handler = Callable[[Request], Awaitable[Response]]
Model = TypeVar("Model", bound=BaseModel)


def _with_zone(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=UTC)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Move(_Body):
    """Where to move the clock: so many seconds on, or to a time."""

    advance: Annotated[float, Field(ge=0, le=1e10, allow_inf_nan=False)] | None = None
    to: Annotated[datetime, AfterValidator(_with_zone)] | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.advance is None) == (self.to is None):
            raise ValueError("either advance or to")
        return self


class Restart(_Body):
    """The seed to begin again with; none: the one at the start."""

    seed: int | None = None


def _told(handle: Handler) -> Handler:
    """The handler, with what is wrong in the request told as 400."""

    async def told(request: Request) -> Response:
        try:
            return await handle(request)
        except ValidationError as error:
            return _json({"error": "; ".join(map(_words, error.errors()))}, 400)
        except (ValueError, OverflowError) as error:
            return _json({"error": str(error)}, 400)

    return told


def _words(error: Any) -> str:
    place = ".".join(map(str, error["loc"]))
    return f"{place}: {error['msg']}" if place else str(error["msg"])


def refuse(_: Request, error: HTTPException) -> Response:
    """What is wrong before a handler is reached: no such address, no such method."""
    return _json({"error": error.detail}, error.status_code, error.headers)


def _json(value: Any, status: int = 200, headers: Any = None) -> Response:
    return Response(orjson.dumps(value), status, headers, "application/json")


async def _given(request: Request) -> Any:
    """The body; an empty one says nothing. Its type must be told, which a page of another origin cannot do."""
    if not await request.body():
        return {}
    if not is_json(request):
        raise HTTPException(415, "The Content-Type must be application/json")
    return await json_body(request)


async def _read(request: Request, model: type[Model]) -> Model:
    return model.model_validate_json(orjson.dumps(await _given(request)))


async def receive(request: Request) -> Response:
    """Lets a message come in."""
    messages = world(request).receive(await _read(request, InboundRequest), base_url(request))
    return _json({"messages": [{"id": message.id, "to": message.owner} for message in messages]}, 202)


async def show_truth(request: Request) -> Response:
    return _json([_truth(truth) for truth in world(request).truth(request.query_params.get("messageId"))])


def _truth(truth: Truth) -> dict[str, Any]:
    return {
        "api": truth.api,
        "messageId": truth.message_id,
        "recipient": truth.recipient,
        "direction": truth.direction,
        "status": truth.status,
        "code": truth.code,
        "contradicted": truth.contradicted,
        "certain": truth.certain,
    }


async def show_clock(request: Request) -> Response:
    return _json({"now": instant(world(request).clock.now(), "microseconds")})


async def move_clock(request: Request) -> Response:
    """Moves the clock forward; what falls due is posted at once."""
    there, move = world(request), await _read(request, Move)
    by = timedelta(seconds=move.advance) if move.advance is not None else None
    there.clock.advance(by if by is not None else _with_zone(move.to or there.clock.now()) - there.clock.now())
    there.caller.wake()
    return await show_clock(request)


async def show_rates(request: Request) -> Response:
    return _json(_rates(world(request).rates))


async def change_rates(request: Request) -> Response:
    """Changes the rates that are named, for messages from now on."""
    changes = await _given(request)
    if not isinstance(changes, dict):
        raise ValueError("must be an object")
    return _json(_rates(world(request).change_rates(changes)))


def _rates(rates: Rates) -> dict[str, float]:
    return rates.model_dump(by_alias=True)


async def show_numbers(_: Request) -> Response:
    return _json([_magic(magic) for magic in magic_numbers()])


def _magic(magic: Magic) -> dict[str, Any]:
    return {
        "number": magic.number,
        "api": magic.api,
        "meaning": magic.meaning,
        "code": magic.outcome.code if magic.outcome else None,
        "misbehaviour": magic.misbehaviour,
    }


async def show_posts(request: Request) -> Response:
    """The requests that were made to callback URLs, the newest last."""
    message_id = request.query_params.get("messageId")
    calls = [call for call in world(request).caller.calls if message_id in (None, call.message_id)]
    limit = int(request.query_params.get("limit", len(calls)))
    return _json([_call(call) for call in calls[max(0, len(calls) - limit) :]])


def _call(call: Call) -> dict[str, Any]:
    return {
        "id": call.id,
        "api": call.api,
        "messageId": call.message_id,
        "route": call.route,
        "method": call.method,
        "url": call.url,
        "query": call.query or None,
        "attempt": call.attempt,
        "withCredentials": call.with_credentials,
        "status": call.status,
        "error": call.error,
        "startedTime": instant(call.started_at, "microseconds"),
        "seconds": round(call.seconds, 6),
        "body": orjson.Fragment(call.body) if call.body else None,
    }


async def show_idle(request: Request) -> Response:
    """Whether nothing is left to post; with `wait`, as soon as that is so or so many seconds have passed."""
    caller, seconds = world(request).caller, float(request.query_params.get("wait", 0))
    if not 0 <= seconds <= LONGEST_WAIT:
        raise ValueError(f"wait must be from 0 to {LONGEST_WAIT:g}")
    return _json(_state(await caller.settle(seconds) if seconds else caller.state()))


def _state(state: State) -> dict[str, Any]:
    return {
        "idle": state.idle,
        "waiting": state.waiting,
        "underWay": state.under_way,
        "nextTime": instant(state.next_at, "microseconds") if state.next_at else None,
    }


async def reset(request: Request) -> Response:
    """Forgets everything."""
    world(request).reset((await _read(request, Restart)).seed)
    return Response(status_code=204)


_HANDLERS: Final[tuple[tuple[str, str, Handler], ...]] = (
    ("POST", "inbound", receive),
    ("GET", "truth", show_truth),
    ("GET", "clock", show_clock),
    ("POST", "clock", move_clock),
    ("GET", "rates", show_rates),
    ("POST", "rates", change_rates),
    ("GET", "numbers", show_numbers),
    ("GET", "posts", show_posts),
    ("GET", "idle", show_idle),
    ("POST", "reset", reset),
)
ROUTES: Final = tuple(Route(f"{PREFIX}{name}", _told(handle), methods=[method]) for method, name, handle in _HANDLERS)
