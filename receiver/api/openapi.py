"""The OpenAPI 3.1 document of the HTTP API, made from the table of operations and their models."""

import re
from collections.abc import Iterable, Iterator, Sequence
from http import HTTPStatus
from typing import Any, Final, Literal

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from receiver.api.answers import CSV
from receiver.api.auth import BASIC, BEARER
from receiver.api.operations import JSON, Operation
from receiver.api.routing import PENDING_HEADER, Group

Json = dict[str, Any]
Part = tuple[str, str]

_COMPONENT: Final = "#/components/schemas/"
_SECURITY: Final = {BEARER: "token", BASIC: "tokenAsPassword"}
_SECURITY_SCHEMES: Final = {
    "token": {"type": "http", "scheme": "bearer", "description": "one of `RECEIVER_API_TOKENS`"},
    "tokenAsPassword": {
        "type": "http",
        "scheme": "basic",
        "description": "any user name, and one of `RECEIVER_API_TOKENS` as the password",
    },
}
# The error statuses of every operation.
_ALWAYS: Final = (400, 401, 405, 500, 503)
_HEADERS_OF: Final = {
    401: ("WWW-Authenticate", "how to present a token"),
    405: ("Allow", "the allowed methods"),
    503: ("Retry-After", "seconds to wait"),
}
_LINK: Final = ("Link", 'the address of the next page, with `rel="next"`')
_PENDING_DESCRIPTION: Final = (
    "the number of callbacks that were accepted before this request and are not processed yet, so that the response "
    "does not contain them; absent where there are none, which the request waits for up to a second"
)
_PENDING: Final = (PENDING_HEADER, _PENDING_DESCRIPTION)


# What a short name of the code says only there.
_WORDS: Final = {
    "Api": "ApiVersion",
    "Outcome": "AttemptOutcome",
    "Quarantine": "QuarantineReason",
    "Status": "DeliveryStatus",
}


class _Schemas(GenerateJsonSchema):
    """JSON Schema without titles, which repeat the names; a noun is called by its name."""

    def normalize_name(self, name: str) -> str:
        plain = super().normalize_name(name).removesuffix("Read")
        return _WORDS.get(plain, plain)

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def document(groups: Sequence[Group], version: str) -> Json:
    """The OpenAPI document. Nothing in it depends on the installation."""
    schemas, components = _schemas(groups)
    paths: Json = {}
    for group, operation in _operations(groups):
        parameters = components[operation.query.__name__]
        described = {
            **_summary(operation, group),
            "parameters": [*_path_parameters(operation), *_query_parameters(parameters)],
            **_body(operation, schemas),
            "responses": _responses(operation, group, schemas),
        }
        paths.setdefault(operation.path, {})[operation.method.lower()] = described
    # The models of query parameters are in the document as parameters, not as schemas.
    for name in {operation.query.__name__ for _, operation in _operations(groups)}:
        del components[name]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "receiver",
            "version": version,
            "summary": "The status of messages that were sent and received through Bandwidth.",
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": _SECURITY_SCHEMES},
    }


def _operations(groups: Iterable[Group]) -> Iterator[tuple[Group, Operation]]:
    for group in groups:
        for operation in group.operations:
            yield group, operation


def _schemas(groups: Sequence[Group]) -> tuple[dict[Part, Json], Json]:
    """The schema of every body by operation and part, and the named schemas."""
    schemas, named = TypeAdapter.json_schemas(
        _types(groups), ref_template=f"{_COMPONENT}{{model}}", schema_generator=_Schemas
    )
    return {part: schema for (part, _), schema in schemas.items()}, named["$defs"]


def _types(groups: Sequence[Group]) -> Iterator[tuple[Part, Literal["validation", "serialization"], TypeAdapter[Any]]]:
    for group, operation in _operations(groups):
        yield (operation.name, "parameters"), "validation", TypeAdapter(operation.query)
        yield (operation.name, "answer"), "serialization", TypeAdapter(operation.answer)
        yield (operation.name, "error"), "serialization", TypeAdapter(group.error)
        if operation.body is not None:
            yield (operation.name, "body"), "validation", TypeAdapter(operation.body)


def _summary(operation: Operation, group: Group) -> Json:
    tag = "catapult" if group.scheme is BASIC else operation.path.split("/")[2]
    summary: Json = {"operationId": operation.name, "summary": operation.summary, "tags": [tag]}
    if operation.description:
        summary["description"] = operation.description
    return {**summary, "security": [{_SECURITY[group.scheme]: []}]}


def _path_parameters(operation: Operation) -> Iterator[Json]:
    for name in re.findall(r"\{(\w+)\}", operation.path):
        yield {
            "name": name,
            "in": "path",
            "required": True,
            "description": operation.path_words[name],
            "schema": {"type": "string", "minLength": 1},
        }


def _query_parameters(described: Json) -> Iterator[Json]:
    required = described.get("required", ())
    for name, schema in described.get("properties", {}).items():
        description = {"description": schema["description"]} if "description" in schema else {}
        yield {"name": name, "in": "query", "required": name in required, **description, "schema": _not_null(schema)}


def _not_null(schema: Json) -> Json:
    """The schema of a parameter without null, which stands for an absent parameter and cannot be sent."""
    common = {key: value for key, value in schema.items() if key not in ("anyOf", "description") and value is not None}
    choices = [choice for choice in schema.get("anyOf", ()) if choice != {"type": "null"}]
    return {**common, **choices[0]} if choices else common


def _body(operation: Operation, schemas: dict[Part, Json]) -> Json:
    if operation.body is None:
        return {}
    return {"requestBody": {"required": True, "content": {JSON: {"schema": schemas[operation.name, "body"]}}}}


def _responses(operation: Operation, group: Group, schemas: dict[Part, Json]) -> Json:
    content = {operation.media_type: {"schema": schemas[operation.name, "answer"]}}
    if operation.csv is not None:
        content[CSV] = {"schema": {"type": "string"}}
    pending = _PENDING if operation.reads_processed or operation.settles_itself else None
    headers = _headers(_LINK if operation.has_next else None, pending)
    error = {group.error_media_type: {"schema": schemas[operation.name, "error"]}}
    success = {"200": {"description": HTTPStatus.OK.phrase, **headers, "content": content}}
    return success | {
        str(status): {
            "description": HTTPStatus(status).phrase,
            **_headers(_HEADERS_OF.get(status), pending if status == 404 else None),
            "content": error,
        }
        for status in sorted({*_ALWAYS, *operation.problems})
    }


def _headers(*headers: tuple[str, str] | None) -> Json:
    described = {name: {"description": text, "schema": {"type": "string"}} for name, text in filter(None, headers)}
    return {"headers": described} if described else {}
