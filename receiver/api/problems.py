"""Errors as RFC 9457 problem details: every one of them, none with anything in it that the caller did not know."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from pydantic import BaseModel, Field
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from receiver.errors import Conflict, Expired, JournalFull, StorageUnavailable, Unknown

MEDIA_TYPE: Final = "application/problem+json"
RETRY_AFTER_SECONDS: Final = 2

# what a caller may be told of an error that is not its own
_UNAVAILABLE: Final = "The database could not be used just now; the same request may work in a moment."
_UNEXPECTED: Final = "Something went wrong here that should not have; the log of the receiver has more."


class BadValue(BaseModel):
    """One parameter, or one field of a body, that could not be used."""

    parameter: str
    detail: str


class Problem(BaseModel):
    """Problem details, RFC 9457. `errors` is there where parameters or fields are to blame, each by its name."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str | None = None
    errors: list[BadValue] | None = Field(default=None)


class ProblemError(Exception):
    """An answer that is a problem: a status, a sentence for people, and what was wrong by name."""

    def __init__(
        self,
        status: int,
        detail: str | None = None,
        *,
        errors: Sequence[BadValue] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, detail)
        self.status, self.detail, self.errors, self.headers = status, detail, list(errors), headers


def bad_values(errors: Sequence[BadValue]) -> ProblemError:
    """400, naming what was wrong."""
    return ProblemError(400, "; ".join(f"{one.parameter}: {one.detail}" for one in errors), errors=errors)


def as_problem(error: Exception) -> ProblemError:
    """Any error as what the caller may know of it."""
    match error:
        case ProblemError():
            return error
        case HTTPException():
            detail = error.detail if error.detail != _title(error.status_code) else None
            return ProblemError(error.status_code, detail, headers=error.headers)
        case StorageUnavailable() | JournalFull():
            return ProblemError(503, _UNAVAILABLE, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})
        case Unknown():
            return ProblemError(404, _sentence(error))
        case Conflict():
            return ProblemError(409, _sentence(error))
        case Expired():
            return ProblemError(410, _sentence(error))
        case _:
            return ProblemError(500, _UNEXPECTED)


def _sentence(error: Exception) -> str:
    line = str(error)
    return f"{line[:1].upper()}{line[1:]}."


async def answer(_: Request, error: Exception) -> Response:
    """The problem details of an error; an exception handler for Starlette."""
    problem = as_problem(error)
    body = Problem(
        title=_title(problem.status),
        status=problem.status,
        detail=problem.detail,
        errors=problem.errors or None,
    )
    headers = {"Cache-Control": "no-store", **(problem.headers or {})}
    return Response(to_json(body, exclude_none=True), problem.status, headers, MEDIA_TYPE)


def _title(status: int) -> str:
    return HTTPStatus(status).phrase


Handler = Callable[[Request, Exception], Awaitable[Response]]


def handlers(answer: Handler = answer) -> dict[Any, Handler]:
    """Who answers which expected error, for `ExceptionMiddleware`; what nobody expected is left to the application."""
    expected = (ProblemError, HTTPException, StorageUnavailable, JournalFull, Unknown, Conflict, Expired)
    return dict.fromkeys(expected, answer)


# for the application as a whole: also addresses that are nobody's, and what nobody expected
APPLICATION_HANDLERS: Final = {**handlers(), Exception: answer}
