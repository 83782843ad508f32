"""Tags: signing one for a message that is about to be sent."""

from typing import Final

from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from receiver import tags
from receiver.tags import TagError
from receiver.web.answers import JSON, json_answer
from receiver.web.operations import Api, Operation
from receiver.web.parameters import Parameters, blamed
from receiver.web.problems import ProblemError, bad_values
from receiver.web.representations import SignedTag, TagRequest

MAX_BODY_BYTES: Final = 65_536


async def sign_tag(api: Api, request: Request, _: Parameters) -> Response:
    wanted = await _wanted(request)
    if api.tag_key is None:
        raise ProblemError(409, "There is no key to sign with: set RECEIVER_TAG_KEYS.")
    kid, secret = api.tag_key
    try:
        tag = tags.sign(wanted.value, secret, kid=kid, sender=wanted.from_, recipients=wanted.to)
    except TagError as error:
        raise ProblemError(400, str(error)) from None
    return json_answer(SignedTag(tag=tag))


async def _wanted(request: Request) -> TagRequest:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
        raise ProblemError(415, "The body must be application/json.")
    try:
        return TagRequest.model_validate_json(await _body(request))
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


OPERATIONS: Final = (
    Operation(
        name="signTag",
        method="POST",
        path="/api/tags",
        summary="Signs a tag with the first of the tag keys",
        handle=sign_tag,
        body=TagRequest,
        answer=SignedTag,
        problems=(403, 409, 413, 415),
    ),
)
