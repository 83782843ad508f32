"""Names made from an event: subjects, topics, routing keys, streams."""

import re
from string import Formatter
from typing import Annotated, Any, Final

from pydantic import AfterValidator

from receiver.domain.publication import Publication

_LONGEST_VALUE: Final = 64
_NOT_SAFE: Final = re.compile(r"[^A-Za-z0-9_-]")

# our own words, which may hold a dot; all else came from outside
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
"""A name with fields in it, such as "sms.{direction}.{type}"."""


def render(template: str, publication: Publication) -> str:
    """The name that a template gives an event.

    What came from outside cannot add a level or a wildcard: characters other than letters, digits, `_` and `-` become
    `_`, a value that is absent becomes `-`, and none is longer than 64 characters. Numbers are written without plus.
    """
    if "{" not in template and "}" not in template:
        return template
    data = publication.event["data"]
    values = {name: _safe(data.get(told)) for name, told in _DATA.items()}
    return template.format_map(values | {_TYPE: publication.type, "status": publication.type.rpartition(".")[2]})


def _safe(value: Any) -> str:
    text = str(value or "").removeprefix("+")
    return _NOT_SAFE.sub("_", text)[:_LONGEST_VALUE] or "-"
