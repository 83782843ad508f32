"""JSON bodies of requests: small, of the right type, and read by a model."""

from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from receiver.web.answers import JSON
from receiver.web.parameters import blamed
from receiver.web.problems import ProblemError, bad_values

MAX_BODY_BYTES: Final = 65_536

Model = TypeVar("Model", bound=BaseModel)


async def read_body(request: Request, model: type[Model]) -> Model:
    """The body as a model; raises a problem that names every field that is wrong."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
        raise ProblemError(415, "The body must be application/json.")
    try:
        return model.model_validate_json(await _body(request))
    except ValidationError as error:
        raise bad_values(blamed(error)) from None


async def _body(request: Request) -> bytes:
    body = b""
    try:
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY_BYTES:
                raise ProblemError(413, headers={"Connection": "close"})
    except ClientDisconnect:
        raise ProblemError(400) from None
    return body
