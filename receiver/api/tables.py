"""Tables as CSV: one line per row, and no cell that a spreadsheet takes for a formula."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

# Control characters and line breaks, including those that only some programs treat as line breaks.
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
# The beginning of a formula, also in its full-width form and after blanks or invisible characters.
_FORMULA: Final = re.compile(r"[\s\u200b-\u200f\u2060\ufeff]*[=+\-@\uff1d\uff0b\uff0d\uff20]")
# A telephone number alone is not a formula. It stays as it is, because programs compare it.
_PHONE_NUMBER: Final = re.compile(r"\+[0-9]{1,15}", re.ASCII)


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], *, header: bool = True) -> str:
    """Rows as CSV (RFC 4180, by default with a header line, every cell in quotes)."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    if header:
        writer.writeheader()
    writer.writerows({name: cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def cell(value: Any) -> str:
    """A value as a cell: on one line, with an apostrophe in front where a spreadsheet would see a formula."""
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case list():
            return cell(" ".join(value))
    text = _CONTROLS.sub(" ", str(value))
    return f"'{text}" if _FORMULA.match(text) and not _PHONE_NUMBER.fullmatch(text) else text
