"""Tags: signing one for a message that is about to be sent."""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from receiver import tags
from receiver.tags import TagError
from receiver.web.answers import json_answer
from receiver.web.bodies import read_body
from receiver.web.operations import Api, Operation
from receiver.web.parameters import Parameters
from receiver.web.problems import ProblemError
from receiver.web.representations import SignedTag, TagRequest


async def sign_tag(api: Api, request: Request, _: Parameters) -> Response:
    wanted = await read_body(request, TagRequest)
    if api.tag_key is None:
        raise ProblemError(409, "There is no key to sign with: set RECEIVER_TAG_KEYS.")
    kid, secret = api.tag_key
    try:
        tag = tags.sign(wanted.value, secret, kid=kid, sender=wanted.from_, recipients=wanted.to)
    except TagError as error:
        raise ProblemError(400, str(error)) from None
    return json_answer(SignedTag(tag=tag))


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
