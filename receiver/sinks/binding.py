"""How a CloudEvent is put into a message of another system: whole in its body, or its attributes in the headers."""

from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import quote

import orjson

from receiver.domain.publication import Publication

Binding = Literal["structured", "binary"]

REPLAYED: Final = "receiver-replayed"
STRUCTURED_TYPE: Final = "application/cloudevents+json; charset=utf-8"

_ATTRIBUTES: Final = ("specversion", "id", "source", "type", "subject", "time")
# printable ASCII but for the quote and the percent sign, as the HTTP binding has it
_PLAIN: Final = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')


@dataclass(frozen=True, slots=True)
class Bound:
    """A message as another system takes it; the content type is not among the headers."""

    content_type: str
    headers: dict[str, str]
    body: bytes


def bind(publication: Publication, binding: Binding, *, prefix: str, quoted: bool = True) -> Bound:
    """Binds a publication; `prefix` is what the system's users expect before the names of attributes.

    `quoted` is for systems whose headers take only what HTTP's do.
    """
    marks = {REPLAYED: "true"} if publication.replayed else {}
    if binding == "structured":
        return Bound(STRUCTURED_TYPE, marks, publication.body)
    event = publication.event
    values = {name: str(event[name]) for name in _ATTRIBUTES}
    attributes = {f"{prefix}{name}": quote(value, safe=_PLAIN) if quoted else value for name, value in values.items()}
    return Bound(str(event["datacontenttype"]), attributes | marks, orjson.dumps(event["data"]))
