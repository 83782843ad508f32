"""Maps a CloudEvent to a message of another system: structured (all in the body) or binary (attributes in headers)."""

import re
from dataclasses import dataclass
from string import Formatter
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote

import orjson
from pydantic import AfterValidator

from receiver.domain.publication import Publication

_MAX_VALUE_LENGTH: Final = 64
_NOT_SAFE: Final = re.compile(r"[^A-Za-z0-9_-]")

# The values of `type` and `status` are ours and may contain a dot; all other values come from outside.
_TYPE: Final = "type"
_DATA: Final = {
    "api": "api",
    "direction": "direction",
    "message_id": "messageId",
    "recipient": "recipient",
    "sender": "from",
    "application_id": "applicationId",
    "tag": "tag",
    "channel": "channel",
}
FIELDS: Final = frozenset({_TYPE, "status", *_DATA})


def _checked(template: str) -> str:
    try:
        parts = list(Formatter().parse(template))
    except ValueError:
        raise ValueError("has a brace too many or too few") from None
    for _, field, form, conversion in parts:
        if field is not None and (field not in FIELDS or form or conversion):
            raise ValueError(f"{{{field}}} is not a field; there are {', '.join(sorted(FIELDS))}")
    return template


Template = Annotated[str, AfterValidator(_checked)]
"""A name that may contain fields, such as "sms.{direction}.{type}"."""


def render(template: str, publication: Publication) -> str:
    """Fills a template with the fields of an event.

    Values from outside cannot add a level or a wildcard: characters other than letters, digits, `_` and `-` become `_`,
    an absent value becomes `-`, and each value is cut at 64 characters. Phone numbers lose their plus.
    """
    if "{" not in template and "}" not in template:
        return template
    data = publication.event["data"]
    values = {name: _safe(data.get(key)) for name, key in _DATA.items()}
    # Of the fields of messages an alert has none but the subject.
    values["message_id"] = _safe(publication.event["subject"])
    return template.format_map(values | {_TYPE: publication.type, "status": publication.type.rpartition(".")[2]})


def _safe(value: Any) -> str:
    text = str(value or "").removeprefix("+")
    return _NOT_SAFE.sub("_", text)[:_MAX_VALUE_LENGTH] or "-"


Binding = Literal["structured", "binary"]

TRACE_HEADERS: Final = ("traceparent", "tracestate")
"""The headers of W3C Trace Context, and the attributes of the CloudEvents extension for distributed tracing."""
REPLAYED: Final = "receiver-replayed"
STRUCTURED_TYPE: Final = "application/cloudevents+json; charset=utf-8"

# Both have places of their own. Every other member of a CloudEvent is an attribute.
_NO_ATTRIBUTES: Final = frozenset({"data", "datacontenttype"})
# Printable ASCII except for the quote and the percent sign, as the HTTP binding of CloudEvents requires.
_PLAIN: Final = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')


@dataclass(frozen=True, slots=True)
class Bound:
    """A message for another system. `headers` does not include the content type."""

    content_type: str
    headers: dict[str, str]
    body: bytes


def marks_of(publication: Publication) -> dict[str, str]:
    """What a message says beside the event: that it is replayed, and the span of its attempt."""
    marks = {REPLAYED: "true"} if publication.replayed else {}
    return marks | _trace_of(publication)


def _trace_of(publication: Publication) -> dict[str, str]:
    values = (publication.traceparent, publication.tracestate)
    return {name: value for name, value in zip(TRACE_HEADERS, values, strict=True) if value is not None}


def traced_body(publication: Publication) -> bytes:
    """The body with the span of the attempt as attributes of the event: for places that have nothing but a body."""
    if publication.traceparent is None:
        return publication.body
    return publication.body[:-1] + b"," + orjson.dumps(_trace_of(publication))[1:]


def bind(publication: Publication, binding: Binding, *, prefix: str, quoted: bool = True) -> Bound:
    """Makes the message of a publication.

    `prefix` goes before the names of attributes in headers, by the convention of the system. `quoted` percent-encodes
    the values, for systems whose headers take only the characters of HTTP headers.
    """
    marks = marks_of(publication)
    if binding == "structured":
        return Bound(STRUCTURED_TYPE, marks, publication.body)
    event = publication.event
    values = {name: str(value) for name, value in event.items() if name not in _NO_ATTRIBUTES}
    attributes = {f"{prefix}{name}": quote(value, safe=_PLAIN) if quoted else value for name, value in values.items()}
    return Bound(str(event["datacontenttype"]), attributes | marks, orjson.dumps(event["data"]))
