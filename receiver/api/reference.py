"""Tags: signing one for a message that is about to be sent."""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from receiver import tags
from receiver.api.answers import json_answer, next_page, read_body
from receiver.api.operations import Api, Operation, path_value
from receiver.api.parameters import CodeParameters, OneCodeParameters, Parameters
from receiver.api.problems import ProblemError
from receiver.api.representations import Code, SignedTag, TagRequest
from receiver.domain.events import Api as ApiVersion
from receiver.domain.queries import SortOrder
from receiver.providers import bandwidth_codes
from receiver.providers.bandwidth_codes import CodeEntry
from receiver.tags import TagError


async def list_codes(api: Api, request: Request, asked: CodeParameters) -> Response:
    entries = _sorted(asked)
    shown = [Code.model_validate(entry) for entry in entries[asked.skip : asked.skip + asked.size]]
    more = asked.skip + asked.size < len(entries)
    return json_answer(shown, link=next_page(request, api.public_url, page=str(asked.page + 1)) if more else None)


async def get_code(api: Api, request: Request, asked: OneCodeParameters) -> Response:
    found = _entries(path_value(request, "code"), asked.api)
    if not found:
        raise ProblemError(404, "Bandwidth's documents list no such code.")
    if len(found) > 1:
        raise ProblemError(409, "Both generations have this code: add ?api=v1 or ?api=v2.")
    return json_answer(Code.model_validate(found[0]))


def _sorted(asked: CodeParameters) -> list[CodeEntry]:
    entries = [entry for entry in bandwidth_codes.catalogue() if asked.api in (None, entry.api)]
    return entries if asked.sort_order is SortOrder.ASC else entries[::-1]


def _entries(code: str, api: ApiVersion | None) -> list[CodeEntry]:
    return [entry for entry in bandwidth_codes.catalogue() if str(entry.code) == code and api in (None, entry.api)]


CODE_OPERATIONS: Final = (
    Operation(
        name="listCodes",
        path="/api/codes",
        summary="The delivery codes that Bandwidth's documents list",
        handle=list_codes,
        parameters=CodeParameters,
        answer=list[Code],
        has_next=True,
    ),
    Operation(
        name="getCode",
        path="/api/codes/{code}",
        summary="One delivery code",
        handle=get_code,
        parameters=OneCodeParameters,
        answer=Code,
        problems=(404, 409),
        path_words={"code": "the number"},
    ),
)


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


SIGNING_OPERATIONS: Final = (
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
