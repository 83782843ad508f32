"""Messages as a table, one row per recipient, that a spreadsheet may open without running what strangers wrote."""

import csv
import io
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from receiver.web.representations import Message

_OF_MESSAGE: Final = (
    "id",
    "api",
    "direction",
    "from",
    "owner",
    "applicationId",
    "text",
    "media",
    "tag",
    "tagVerdict",
    "segmentCount",
    "channel",
    "carrierName",
    "priority",
    "time",
    "firstReceivedTime",
    "awaitingReceipt",
)
_OF_RECIPIENT: Final = (
    "to",
    "status",
    "state",
    "deliveryState",
    "deliveryCode",
    "deliveryDescription",
    "sentTime",
    "deliveredTime",
    "failedTime",
    "readTime",
    "contradicted",
    "updatedTime",
)
_OF_REASON: Final = ("name", "description", "category", "retryable", "billable")

COLUMNS: Final = (
    *_OF_MESSAGE,
    "messageStatus",
    *_OF_RECIPIENT,
    *(f"reason{name.capitalize()}" for name in _OF_REASON),
)

# line breaks and other control characters, also those that only some programs take for line breaks
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
# what begins a formula, also in its full-width form and behind blanks or characters that nobody sees
_FORMULA: Final = re.compile(r"[\s\u200b-\u200f\u2060\ufeff]*[=+\-@\uff1d\uff0b\uff0d\uff20]")
# a number alone is no formula, and programs compare it as it is
_PHONE_NUMBER: Final = re.compile(r"\+[0-9]{1,15}", re.ASCII)


def table(messages: Iterable[Message]) -> str:
    """The messages as CSV (RFC 4180, with a header line, every cell in quotes)."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writeheader()
    for message in messages:
        writer.writerows({name: cell(value) for name, value in row.items()} for row in _rows(message))
    return text.getvalue()


def cell(value: Any) -> str:
    """A value as a cell: on one line, and an apostrophe before what a spreadsheet would take for a formula."""
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case list():
            return cell(" ".join(value))
    text = _CONTROLS.sub(" ", str(value))
    return f"'{text}" if _FORMULA.match(text) and not _PHONE_NUMBER.fullmatch(text) else text


def _rows(message: Message) -> Iterator[dict[str, Any]]:
    shown = message.model_dump(mode="json", by_alias=True)
    of_message = {name: shown[name] for name in _OF_MESSAGE} | {"messageStatus": shown["status"]}
    for recipient in shown["recipients"]:
        reason = recipient["reason"] or {}
        of_recipient = {name: recipient[name] for name in _OF_RECIPIENT}
        yield of_message | of_recipient | {f"reason{name.capitalize()}": reason.get(name) for name in _OF_REASON}
