"""Operations on delivery codes, and the operation that signs a tag."""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from receiver import tags
from receiver.api.answers import json_answer, next_page, read_body
from receiver.api.operations import ApiContext, Operation, path_value
from receiver.api.parameters import CodeParameters, OneCodeParameters, Parameters
from receiver.api.problems import ProblemError
from receiver.api.representations import DeliveryCode, SignedTag, TagRequest
from receiver.domain.events import Api
from receiver.domain.queries import SortOrder
from receiver.providers import delivery_codes
from receiver.providers.delivery_codes import CodeEntry
from receiver.tags import TagError


async def list_codes(context: ApiContext, request: Request, parameters: CodeParameters) -> Response:
    entries = _sorted(parameters)
    listed = [
        DeliveryCode.model_validate(entry) for entry in entries[parameters.skip : parameters.skip + parameters.size]
    ]
    more = parameters.skip + parameters.size < len(entries)
    return json_answer(
        listed, link=next_page(request, context.public_url, page=str(parameters.page + 1)) if more else None
    )


async def get_code(context: ApiContext, request: Request, parameters: OneCodeParameters) -> Response:
    found = _entries(path_value(request, "code"), parameters.api)
    if not found:
        raise ProblemError(404, "Bandwidth's documents do not list this code.")
    if len(found) > 1:
        raise ProblemError(409, "v1 and v2 both have this code: add ?api=v1 or ?api=v2.")
    return json_answer(DeliveryCode.model_validate(found[0]))


def _sorted(parameters: CodeParameters) -> list[CodeEntry]:
    entries = [entry for entry in delivery_codes.catalogue() if parameters.api in (None, entry.api)]
    return entries if parameters.sort_order is SortOrder.ASC else entries[::-1]


def _entries(code: str, api: Api | None) -> list[CodeEntry]:
    return [entry for entry in delivery_codes.catalogue() if str(entry.code) == code and api in (None, entry.api)]


CODE_OPERATIONS: Final = (
    Operation(
        name="listCodes",
        path="/api/codes",
        summary="List the delivery codes that Bandwidth documents",
        handle=list_codes,
        parameters=CodeParameters,
        answer=list[DeliveryCode],
        has_next=True,
    ),
    Operation(
        name="getCode",
        path="/api/codes/{code}",
        summary="Get one delivery code",
        handle=get_code,
        parameters=OneCodeParameters,
        answer=DeliveryCode,
        problems=(404, 409),
        path_words={"code": "the delivery code, a number"},
    ),
)


async def sign_tag(context: ApiContext, request: Request, _: Parameters) -> Response:
    body = await read_body(request, TagRequest)
    if context.tag_key is None:
        raise ProblemError(409, "There is no key that signs tags: set RECEIVER_TAG_KEYS.")
    kid, secret = context.tag_key
    try:
        tag = tags.sign(body.value, secret, kid=kid, sender=body.from_, recipients=body.to)
    except TagError as error:
        raise ProblemError(400, str(error)) from None
    return json_answer(SignedTag(tag=tag))


SIGNING_OPERATIONS: Final = (
    Operation(
        name="signTag",
        method="POST",
        path="/api/tags",
        summary="Sign a tag with the first tag key",
        handle=sign_tag,
        body=TagRequest,
        answer=SignedTag,
        problems=(403, 409, 413, 415),
    ),
)
