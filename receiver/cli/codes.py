"""`receiver codes`."""

from receiver.api.representations import DeliveryCode
from receiver.cli.output import echo_fields, echo_json, echo_table
from receiver.domain.events import Api
from receiver.errors import ReceiverError
from receiver.providers import delivery_codes
from receiver.providers.delivery_codes import CodeEntry


def codes(code: int | None, *, api: Api | None, json: bool) -> int:
    found = [entry for entry in delivery_codes.catalogue() if code in (None, entry.code) and api in (None, entry.api)]
    if not found:
        raise ReceiverError(f"Bandwidth's documents list no code {code}")
    if json:
        echo_json([DeliveryCode.model_validate(entry) for entry in found])
    elif code is None:
        echo_table(_HEADINGS, [_row(entry) for entry in found])
    else:
        for entry in found:
            echo_fields(_fields(entry))
    return 0


_HEADINGS = ("API", "CODE", "NAME", "CATEGORY", "OUTCOME", "RETRYABLE", "BILLABLE")


def _row(entry: CodeEntry) -> tuple[object, ...]:
    return entry.api, entry.code, entry.name, entry.category, entry.outcome, entry.retryable, entry.billable


def _fields(entry: CodeEntry) -> list[tuple[str, object]]:
    return [
        ("code", f"{entry.code} ({entry.api})"),
        ("name", entry.name),
        ("meaning", entry.description),
        ("category", entry.category),
        ("outcome", entry.outcome),
        ("retryable", entry.retryable),
        ("retry limit", entry.retry_limit),
        ("billable", entry.billable),
        ("in v2", entry.v2_analogue),
        ("notes", entry.notes),
    ]
