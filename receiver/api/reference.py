"""Operations on delivery codes, and the operation that signs a tag."""

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from receiver import tags
from receiver.api.operations import Call, Listed, Operation, by_number
from receiver.api.problems import ProblemError
from receiver.domain.events import Api
from receiver.errors import Ambiguous, Conflict, Unknown
from receiver.models.codes import DeliveryCodeRead
from receiver.models.columns import Read
from receiver.models.queries import CodeQuery, OneCodeQuery, Page, SortOrder
from receiver.providers import registry
from receiver.tags import TagError


class TagRequest(BaseModel):
    """The value of a tag to sign. With `from` or `to` the tag is valid only for a message with these numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: str = Field(max_length=1024)
    from_: str | None = Field(None, alias="from", min_length=1)
    to: str | Annotated[list[str], Field(min_length=1)] | None = None


class SignedTag(Read):
    """A signed tag, to be sent to Bandwidth with the message."""

    tag: str


async def list_codes(call: Call) -> Listed[DeliveryCodeRead]:
    query: CodeQuery = call.query
    codes = [code for code in _codes(query.api) if _has_words(code, query.search)]
    codes = codes[:: 1 if query.order is SortOrder.ASC else -1]
    end = query.skip + query.size
    return by_number(Page(items=codes[query.skip : end], more=end < len(codes)), query)


def _has_words(code: DeliveryCodeRead, search: str | None) -> bool:
    """Whether each word that is searched for is in the number or the texts of a code, in its earlier name too."""
    texts = (str(code.code), code.name, code.earlier_name, code.description, code.notes)
    text = " ".join(filter(None, texts)).casefold()
    return all(word in text for word in (search or "").casefold().split())


async def get_code(call: Call) -> DeliveryCodeRead:
    found = [entry for entry in _codes(call.query.api) if str(entry.code) == call.path["code"]]
    if not found:
        raise Unknown(f"Bandwidth's documents list no code {call.path['code']}")
    if len(found) > 1:
        raise Ambiguous("v1 and v2 both have this code", choices={"api": sorted(entry.api for entry in found)})
    return found[0]


def _codes(api: Api | None) -> list[DeliveryCodeRead]:
    entries = registry.catalogue()
    return [DeliveryCodeRead.model_validate(entry) for entry in entries if api in (None, entry.api)]


async def sign_tag(call: Call) -> SignedTag:
    if call.context.tag_key is None:
        raise Conflict("there is no key that signs tags: set RECEIVER_TAG_KEYS")
    kid, secret = call.context.tag_key
    body: TagRequest = call.body
    try:
        return SignedTag(tag=tags.sign(body.value, secret, kid=kid, sender=body.from_, recipients=body.to))
    except TagError as error:
        raise ProblemError(400, str(error)) from None


OPERATIONS: Final = (
    Operation(
        name="listCodes",
        path="/api/codes",
        summary="List the delivery codes that Bandwidth documents",
        handle=list_codes,
        query=CodeQuery,
        answer=list[DeliveryCodeRead],
        has_next=True,
    ),
    Operation(
        name="getCode",
        path="/api/codes/{code}",
        summary="Get one delivery code",
        handle=get_code,
        query=OneCodeQuery,
        answer=DeliveryCodeRead,
        problems=(404, 409),
        path_words={"code": "the delivery code, a number"},
    ),
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
