"""The API reference: the OpenAPI document as a Markdown topic, to be read and searched like the other topics."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from receiver.documents import Anchors

Json = Mapping[str, Any]

_FORMATS: Final = {"password": "secret string", "ipvanynetwork": "network", "path": "path"}
_BOUNDS: Final = (
    ("minimum", "at least {}"),
    ("maximum", "at most {}"),
    ("minItems", "at least {} items"),
    ("maxItems", "at most {} items"),
    ("maxLength", "at most {} characters"),
)


def api_reference(document: Json) -> str:
    """Every operation with its parameters, body and responses, then every schema."""
    return "\n".join([*_introduction(document), *_operations(document["paths"]), *_schemas(document["components"])])


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


def _introduction(document: Json) -> Iterator[str]:
    yield from ("# API reference", "")
    yield from ("Every operation of the query API with its parameters, responses and schemas.", "")
    yield "Programs read the same as an OpenAPI document: [openapi.json](/openapi.json)."
    yield from ("Every operation needs a token, presented in one of these ways:", "")
    for scheme in document["components"]["securitySchemes"].values():
        yield f"* `Authorization: {scheme['scheme'].capitalize()}`: {scheme['description']}"
    yield ""


def _operations(paths: Json) -> Iterator[str]:
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


def _schemas(components: Json) -> Iterator[str]:
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
