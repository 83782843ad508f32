"""Errors as RFC 9457 problem details. None of them reveals anything that the caller does not know."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from pydantic import BaseModel, Field
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from receiver.errors import (
    Ambiguous,
    Busy,
    Conflict,
    Expired,
    JournalFull,
    StorageUnavailable,
    TooMuch,
    TooSlow,
    Unknown,
)
from receiver.intake.request_ids import REQUEST_ID

MEDIA_TYPE: Final = "application/problem+json"
RETRY_AFTER_SECONDS: Final = 2
# A search that was too slow most likely is so again.
_SEARCH_AGAIN_SECONDS: Final = 30

# The details of errors that are not the fault of the caller.
_UNAVAILABLE: Final = "The database cannot be used now. Send the same request again after the seconds in Retry-After."
_UNEXPECTED: Final = "An unexpected error; the log of the receiver has its traceback."


class InvalidValue(BaseModel):
    """One invalid parameter, or one invalid field of a body."""

    parameter: str
    detail: str


BEARER_CHALLENGE: Final = 'Bearer realm="receiver"'


class Problem(BaseModel):
    """Problem details, RFC 9457.

    `errors` lists invalid parameters or fields, each by its name. `requestId` is in the log lines of the request too.
    """

    type: str = "about:blank"
    title: str
    status: int
    detail: str | None = None
    errors: list[InvalidValue] | None = Field(default=None)
    request_id: str | None = Field(default=None, alias="requestId")


class ProblemError(Exception):
    """An error with a status, a sentence for people, and the invalid parameters or fields."""

    def __init__(
        self,
        status: int,
        detail: str | None = None,
        *,
        errors: Sequence[InvalidValue] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, detail)
        self.status, self.detail, self.errors, self.headers = status, detail, list(errors), headers


def invalid_values_problem(errors: Sequence[InvalidValue]) -> ProblemError:
    """A 400 that names every invalid value."""
    return ProblemError(400, "; ".join(f"{error.parameter}: {error.detail}" for error in errors), errors=errors)


def as_problem(error: Exception) -> ProblemError:
    """Any error as a problem, with only what the caller may know."""
    match error:
        case ProblemError():
            return error
        case HTTPException():
            detail = error.detail if error.detail != _title(error.status_code) else None
            return ProblemError(error.status_code, detail, headers=error.headers)
        case TooSlow():
            return ProblemError(503, _sentence(error), headers={"Retry-After": str(_SEARCH_AGAIN_SECONDS)})
        case Busy():
            return ProblemError(503, _sentence(error), headers={"Retry-After": str(RETRY_AFTER_SECONDS)})
        case StorageUnavailable() | JournalFull():
            return ProblemError(503, _UNAVAILABLE, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})
        case Unknown():
            return ProblemError(404, _sentence(error))
        case Ambiguous():
            values = (" or ".join(f"?{name}={value}" for value in values) for name, values in error.choices.items())
            return ProblemError(409, f"{_sentence(error).rstrip('.')}: add {', and '.join(values)}.")
        case Conflict():
            return ProblemError(409, _sentence(error))
        case Expired():
            return ProblemError(410, _sentence(error))
        case TooMuch():
            return ProblemError(400, _sentence(error))
        case _:
            return ProblemError(500, _UNEXPECTED)


def _sentence(error: Exception) -> str:
    line = str(error)
    return f"{line[:1].upper()}{line[1:]}."


async def answer(request: Request, error: Exception) -> Response:
    """The problem details of an error; an exception handler for Starlette."""
    problem = as_problem(error)
    body = Problem(
        title=_title(problem.status),
        status=problem.status,
        detail=problem.detail,
        errors=problem.errors or None,
        requestId=request.scope.get(REQUEST_ID),
    )
    headers = {"Cache-Control": "no-store", **(problem.headers or {})}
    return Response(to_json(body, exclude_none=True, by_alias=True) + b"\n", problem.status, headers, MEDIA_TYPE)


def _title(status: int) -> str:
    return HTTPStatus(status).phrase


Handler = Callable[[Request, Exception], Awaitable[Response]]


def handlers(answer: Handler = answer) -> dict[Any, Handler]:
    """The handlers of expected errors, for `ExceptionMiddleware`. Other errors are left to the application."""
    expected = (ProblemError, HTTPException, StorageUnavailable, JournalFull, Busy, Unknown, Conflict, Expired)
    return dict.fromkeys(expected, answer)


# For the whole application, including unknown addresses and unexpected errors.
APPLICATION_HANDLERS: Final = {**handlers(), Exception: answer}
