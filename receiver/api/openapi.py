"""The OpenAPI 3.1 document of the HTTP API, made from the table of operations and their models.

The same document is also a Markdown topic, the API reference, which is read and searched like the other topics.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, Literal

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from receiver.api.auth import BASIC, BEARER
from receiver.api.operations import JSON, Operation
from receiver.api.routing import CSV, PENDING_HEADER, Group
from receiver.documents import Anchors
from receiver.models.alerts import AlertRead
from receiver.models.published import AlertCloudEvent, CloudEvent, MessageEventData

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


def document(groups: Sequence[Group], version: str) -> Json:
    """The OpenAPI document. Nothing in it depends on the installation."""
    schemas, components = _schemas(groups)
    paths: Json = {}
    for group, operation in _operations(groups):
        parameters = components[operation.query.__name__]
        described = {
            **_summary(operation, group),
            "parameters": [
                *_path_parameters(operation),
                *_query_parameters(parameters, operation.query.repeatable),
                *_header_parameters(operation),
            ],
            **_body(operation, schemas),
            "responses": _responses(operation, group, schemas),
        }
        paths.setdefault(operation.path, {})[operation.method.lower()] = described
    # The models of query parameters are in the document as parameters, not as schemas.
    for name in {operation.query.__name__ for _, operation in _operations(groups)}:
        del components[name]
    for name, schema in components.items():
        # Some generators call their classes by the title.
        schema["title"] = name
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "receiver",
            "version": version,
            "summary": "The status of messages that were sent and received through Bandwidth.",
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "webhooks": {
            "messageEvent": {"post": _webhook(CloudEvent, "An event of a message, as a webhook of yours gets it")},
            "alertEvent": {
                "post": _webhook(AlertCloudEvent, "An alert, as a webhook of yours gets it that asks for it")
            },
        },
        "components": {"schemas": components, "securitySchemes": _SECURITY_SCHEMES},
    }


# What a sink of the type `webhook` posts, in the form `structured`.
def _webhook(event: type[BaseModel], summary: str) -> Json:
    return {
        "summary": summary,
        "requestBody": {
            "required": True,
            "content": {"application/cloudevents+json": {"schema": {"$ref": f"{_COMPONENT}{event.__name__}"}}},
        },
        "responses": {"2XX": {"description": "The event was taken. Any other answer: see the page about webhooks."}},
    }


def event_schema() -> Json:
    """The JSON Schema of the `data` of an event of a message."""
    return _schema_of(MessageEventData, "MessageEventData")


def alert_schema() -> Json:
    """The JSON Schema of an alert, the `data` of an alert event."""
    return _schema_of(AlertRead, "Alert")


def _schema_of(model: type[BaseModel], title: str) -> Json:
    schema = model.model_json_schema(schema_generator=_Schemas, mode="serialization")
    return {"$schema": GenerateJsonSchema.schema_dialect, "title": title, **schema}


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


def _query_parameters(described: Json, repeatable: Collection[str]) -> Iterator[Json]:
    required = described.get("required", ())
    for name, schema in described.get("properties", {}).items():
        description = {"description": schema["description"]} if "description" in schema else {}
        parameter = {"name": name, "in": "query", "required": name in required, **description}
        # A list is one parameter, with commas, unless the parameter may be repeated.
        listed = {"style": "form", "explode": False} if schema.get("type") == "array" and name not in repeatable else {}
        yield {**parameter, **listed, "schema": _not_null(schema)}


def _header_parameters(operation: Operation) -> Iterator[Json]:
    for name, description in operation.headers.items():
        yield {"name": name, "in": "header", "description": description, "schema": {"type": "string"}}


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


def api_reference(document: Json) -> str:
    """Every operation with its parameters, body and responses, then every schema."""
    return "\n".join(
        [*_introduction(document), *_operation_lines(document["paths"]), *_schema_lines(document["components"])]
    )


def _introduction(document: Json) -> Iterator[str]:
    yield from ("# API reference", "")
    yield from ("Every operation of the query API with its parameters, responses and schemas.", "")
    yield "Programs read the same as an OpenAPI document: [openapi.json](/openapi.json)."
    yield from ("Every operation needs a token, presented in one of these ways:", "")
    for scheme in document["components"]["securitySchemes"].values():
        yield f"* `Authorization: {scheme['scheme'].capitalize()}`: {scheme['description']}"
    yield ""


def _operation_lines(paths: Json) -> Iterator[str]:
    for path, methods in paths.items():
        for method, operation in methods.items():
            yield from (f"## {method.upper()} {path}", "", f"{operation['summary']}.", "")
            if "description" in operation:
                yield from (operation["description"], "")
            yield from table(
                ("Parameter", "In", "Type", "Description"), map(_parameter, operation.get("parameters", ()))
            )
            if "requestBody" in operation:
                yield from (f"Body: {_content(operation['requestBody'])}", "")
            yield from table(("Status", "Response", "Headers"), map(_response, operation["responses"].items()))


def _parameter(parameter: Json) -> tuple[str, str, str, str]:
    schema = parameter["schema"]
    default = f"Default: `{schema['default']}`." if schema.get("default") is not None else ""
    examples = f"Example: `{schema['examples'][0]}`." if schema.get("examples") else ""
    description = _sentence(parameter.get("description", ""))
    return f"`{parameter['name']}`", parameter["in"], type_words(schema), f"{description} {default} {examples}"


def _response(response: tuple[str, Json]) -> tuple[str, str, str]:
    status, described = response
    headers = (f"`{name}`: {header['description']}" for name, header in described.get("headers", {}).items())
    return f"{status} {described['description']}", _content(described), "; ".join(headers)


def _content(described: Json) -> str:
    return "; ".join(f"{type_words(body['schema'])} as `{form}`" for form, body in described.get("content", {}).items())


def _schema_lines(components: Json) -> Iterator[str]:
    yield from ("## Schemas", "")
    for name, schema in sorted(components["schemas"].items()):
        yield from (f"### {name}", "")
        if "description" in schema:
            yield from (schema["description"], "")
        if "properties" not in schema:
            yield from (f"One of: {type_words(schema)}" if "enum" in schema else type_words(schema), "")
        required = schema.get("required", ())
        yield from table(
            ("Field", "Type", "Description"),
            (
                (
                    f"`{field}`" if field in required else f"`{field}` (optional)",
                    type_words(described),
                    _sentence(described.get("description", "")),
                )
                for field, described in schema.get("properties", {}).items()
            ),
        )


def _sentence(text: str) -> str:
    """A description as a sentence. Those of parameters and fields begin in lower case and have no full stop."""
    if not text:
        return ""
    return f"{text[0].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


_FORMATS: Final = {"password": "secret string", "ipvanynetwork": "network", "path": "path"}
_BOUNDS: Final = (
    ("minimum", "at least {}"),
    ("maximum", "at most {}"),
    ("minItems", "at least {} items"),
    ("maxItems", "at most {} items"),
    ("maxLength", "at most {} characters"),
)


def type_words(schema: Json) -> str:
    """The type of a JSON Schema as Markdown text: `string or null`, `list of [Recipient](#recipient)`."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{Anchors().add(name)})"
    if "anyOf" in schema:
        return " or ".join(map(type_words, schema["anyOf"]))
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        *others, last = (f"`{value}`" for value in schema["enum"])
        return f"{', '.join(others)} or {last}" if others else last
    return ", ".join([_base_type(schema), *(words.format(schema[key]) for key, words in _BOUNDS if key in schema)])


def _base_type(schema: Json) -> str:
    kind: str = schema.get("type", "any value")
    if kind == "array":
        return f"list of {type_words(schema.get('items', {}))}"
    if isinstance(schema.get("additionalProperties"), Mapping):
        return f"object, each value {type_words(schema['additionalProperties'])}"
    form = schema.get("format")
    return _FORMATS.get(form, f"{kind} ({form})") if form else kind


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a Markdown table and an empty line; no lines if there are no rows."""
    lines = [_row(row) for row in rows]
    if lines:
        yield from (_row(headings), _row(["---"] * len(headings)), *lines, "")


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |"
