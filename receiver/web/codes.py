"""The code catalogue: a page of it, one code."""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from receiver.domain.events import Api as Generation
from receiver.domain.queries import SortOrder
from receiver.providers import bandwidth_codes
from receiver.providers.bandwidth_codes import CodeEntry
from receiver.web.answers import json_answer, next_page
from receiver.web.operations import Api, Operation, path_value
from receiver.web.parameters import CodeParameters, OneCodeParameters
from receiver.web.problems import ProblemError
from receiver.web.representations import Code


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


def _entries(code: str, api: Generation | None) -> list[CodeEntry]:
    return [entry for entry in bandwidth_codes.catalogue() if str(entry.code) == code and api in (None, entry.api)]


OPERATIONS: Final = (
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
