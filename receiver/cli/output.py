"""Output of the commands: text that is safe for a terminal, tables, JSON; and what is shown of each noun."""

import errno
import os
import re
import select
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from receiver.domain.cloudevents import rfc3339
from receiver.domain.counts import count_text, count_texts

if TYPE_CHECKING:
    # A command imports the models of its own nouns alone.
    from receiver.models.alerts import AlertRead, NotificationRead
    from receiver.models.callbacks import CallbackSummaryRead
    from receiver.models.codes import DeliveryCodeRead
    from receiver.models.events import MessageEventRead
    from receiver.models.messages import MessageRead
    from receiver.models.sinks import AttemptRead, DeadLetterRead, ReplayRead, SinkRead
    from receiver.models.statistics import StatisticRead


View = TypeVar("View")

# Characters that control a terminal: control characters, line separators, and those that change the text direction.
_CONTROLS: Final = r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
_NOT_PLAIN: Final = re.compile(f"[{_CONTROLS}]|[\ud800-\udfff]")
_NOT_PLAIN_JSON: Final = re.compile(f"(?![\n])[{_CONTROLS}]")

_MOST_NUMBERS: Final = 2


class OutputClosed(Exception):
    """The other end of the pipe on standard output is closed."""


def plain(text: str) -> str:
    """Text on one line, with the characters that control a terminal escaped."""
    return _NOT_PLAIN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def write(content: bytes) -> None:
    """Writes all of the content to standard output, and flushes it."""
    buffered, rest = sys.stdout.buffer, memoryview(content)
    # Not through the text layer: with PYTHONUNBUFFERED it silently drops what a closing pipe did not accept. And not
    # through the buffer: what a closed pipe left in it would make Python end with exit code 120.
    stream = getattr(buffered, "raw", buffered)
    try:
        buffered.flush()
        while rest:
            written = stream.write(rest)
            if written is None:
                # The log may have made the terminal, which both share, non-blocking.
                select.select((), (stream,), ())
            else:
                rest = rest[written:]
    except BrokenPipeError:
        raise OutputClosed from None
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        # The caller has closed standard output (`>&-`).
        raise OutputClosed from None


def _write_text(text: str) -> None:
    """Writes text; characters that the encoding of standard output lacks are escaped."""
    write(text.encode(sys.stdout.encoding, "backslashreplace"))


def echo(*lines: str) -> None:
    """Writes lines of safe text."""
    _write_text("".join(f"{plain(line)}\n" for line in lines))


def echo_error(text: str) -> None:
    """Writes one line to standard error, after the name of the program."""
    sys.stderr.write(f"receiver: {plain(text)}\n")


@contextmanager
def written(output: Path | None) -> Iterator[Callable[[bytes], object]]:
    """Writes an export to a file with mode 0600, all of it or nothing, or to standard output."""
    if output is None:
        yield write
        return
    draft = output.with_name(f"{output.name}.new")
    draft.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            yield stream.write
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(output)
    finally:
        draft.unlink(missing_ok=True)


_PROGRESS_SECONDS: Final = 2.0


class Progress:
    """Reports progress on standard error every few seconds."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._shown_at = time.monotonic()

    def show(self, number: int) -> None:
        if time.monotonic() - self._shown_at >= _PROGRESS_SECONDS:
            self._shown_at = time.monotonic()
            echo_error(f"{number:,} {self._label}")


def echo_json(value: Any) -> None:
    """Writes models, dataclasses or plain values as JSON."""
    from pydantic_core import to_json

    text = to_json(value, by_alias=True, indent=2).decode()
    _write_text(_NOT_PLAIN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")


def echo_json_line(value: Any) -> None:
    """Writes a plain value as JSON on one line."""
    from pydantic_core import to_json

    _write_text(_NOT_PLAIN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", to_json(value).decode()) + "\n")


def echo_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes rows under headings, in columns of the necessary width."""
    cells = [list(headings), *([cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    echo(*(line.rstrip() for line in padded))


def echo_fields(fields: Iterable[tuple[str, object]], *, indent: str = "") -> None:
    """Writes one name and value per line; empty values are left out."""
    present = [(name, cell(value)) for name, value in fields if value not in (None, "", [])]
    width = max((len(name) for name, _ in present), default=0)
    echo(*(f"{indent}{name.ljust(width)}  {value}" for name, value in present))


def cell(value: object) -> str:
    """A value as text for people."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case list() | tuple():
            return ", ".join(map(str, value)) or "-"
        case _:
            return plain(str(value)) or "-"


@dataclass(frozen=True, slots=True)
class Table:
    """The headings of a table, and the cells of an item under them."""

    headings: tuple[str, ...]
    row: Callable[[Any], tuple[object, ...]]


def _message(message: "MessageRead") -> tuple[object, ...]:
    return (
        time_text(message.listed_at),
        message.api,
        message.id,
        message.direction,
        message.sender,
        _few(message.numbers),
        message.status,
        message.delivery_code,
        message.tag,
    )


def _few(numbers: Sequence[str]) -> str:
    """The numbers of a message. Of many only the first: one message to 40 would make every line 600 characters long."""
    if len(numbers) <= _MOST_NUMBERS:
        return cell(list(numbers))
    return f"{plain(numbers[0])} and {len(numbers) - 1} more"


def _event(event: "MessageEventRead") -> tuple[object, ...]:
    time = rfc3339(event.occurred_at) if event.occurred_at else None
    return rfc3339(event.received_at), event.type, time, event.recipient, event.code, event.description


def _attempt(attempt: "AttemptRead") -> tuple[object, ...]:
    return (
        rfc3339(attempt.started_at),
        f"{attempt.seconds:.3f}",
        attempt.sink,
        attempt.status,
        attempt.outcome,
        attempt.response_code,
        attempt.decision,
        attempt.reason,
        attempt.response,
    )


def _callback(callback: "CallbackSummaryRead") -> tuple[object, ...]:
    time = rfc3339(callback.received_at)
    return callback.id, time, callback.api, callback.route, callback.outcome, callback.reason


def _sink(sink: "SinkRead") -> tuple[object, ...]:
    waiting, dead = (count_text(sum(counts.values())) for counts in (sink.retries, sink.dead_letters))
    oldest, success = _age(sink.oldest_seconds), time_text(sink.last_success_at)
    return sink.name, sink.type, sink.state, sink.lag, oldest, waiting, dead, success, sink.last_error


def _replay(replay: "ReplayRead") -> tuple[object, ...]:
    requested, ended = time_text(replay.requested_at), time_text(replay.ended_at)
    return replay.id, requested, replay.state, f"{replay.progress:.0%}", replay.published, replay.dead_letters, ended


def _dead_letter(letter: "DeadLetterRead") -> tuple[object, ...]:
    return (
        letter.id,
        letter.sink,
        time_text(letter.died_at),
        letter.message_id,
        letter.status,
        letter.reason,
        letter.attempts,
        letter.detail,
    )


def _alert(alert: "AlertRead") -> tuple[object, ...]:
    status = [alert.status, *_decisions(alert)]
    time = time_text(alert.fired_at)
    return alert.id, time, ", ".join(status), alert.severity, alert.name, alert.group_value, alert.summary


def _notification(one: "NotificationRead") -> tuple[object, ...]:
    times = time_text(one.sent_at), time_text(one.next_at)
    return one.target, one.transition, one.state, one.attempts, *times, one.error


def _decisions(alert: "AlertRead") -> list[str]:
    """What people have decided about an alert."""
    acknowledged = ["acknowledged"] if alert.acknowledged_at is not None else []
    return [*acknowledged, *([f"muted until {time_text(alert.muted_until)}"] if alert.muted_until is not None else [])]


def alert_fields(alert: "AlertRead") -> list[tuple[str, object]]:
    """The lines of one alert."""
    evidence = alert.evidence
    return [
        ("alert", alert.id),
        ("summary", alert.summary),
        ("status", alert.status),
        ("severity", alert.severity),
        ("rule", alert.name if alert.name == alert.rule else f"{alert.name} ({alert.rule})"),
        ("group", alert.group_value),
        ("value", f"{evidence.value:g}, threshold {evidence.threshold:g}"),
        ("before", f"{evidence.before:g}" if evidence.before is not None else None),
        ("volume", f"{evidence.volume:,}" if evidence.volume is not None else None),
        ("fired", time_text(alert.fired_at)),
        ("resolved", time_text(alert.resolved_at)),
        ("acknowledged", time_text(alert.acknowledged_at)),
        ("muted until", time_text(alert.muted_until)),
        ("messages", list(alert.messages)),
        ("link", alert.link),
        ("what to do", alert.runbook),
    ]


def _code(code: "DeliveryCodeRead") -> tuple[object, ...]:
    return code.api, code.code, code.name, code.category, code.outcome, code.retryable, code.billable


# By the name of what an operation returns: the models themselves are imported by the commands that need them.
TABLES: Final[Mapping[str, Table]] = {
    "MessageRead": Table(("TIME", "API", "ID", "DIRECTION", "FROM", "TO", "STATUS", "CODE", "TAG"), _message),
    "MessageEventRead": Table(("RECEIVED", "TYPE", "TIME", "RECIPIENT", "CODE", "DESCRIPTION"), _event),
    "AttemptRead": Table(
        ("STARTED", "SECONDS", "SINK", "STATUS", "OUTCOME", "CODE", "DECISION", "REASON", "RESPONSE"), _attempt
    ),
    "CallbackSummaryRead": Table(("ID", "RECEIVED", "API", "ROUTE", "OUTCOME", "REASON"), _callback),
    "SinkRead": Table(
        ("NAME", "TYPE", "STATE", "LAG", "OLDEST", "RETRIES", "DEAD LETTERS", "LAST SUCCESS", "LAST ERROR"), _sink
    ),
    "ReplayRead": Table(("ID", "REQUESTED", "STATE", "DONE", "PUBLISHED", "DEAD LETTERS", "ENDED"), _replay),
    "DeadLetterRead": Table(("ID", "SINK", "DIED", "MESSAGE", "STATUS", "REASON", "ATTEMPTS", "DETAIL"), _dead_letter),
    "AlertRead": Table(("ID", "FIRED", "STATUS", "SEVERITY", "RULE", "GROUP", "SUMMARY"), _alert),
    "NotificationRead": Table(("TARGET", "ABOUT", "STATE", "ATTEMPTS", "SENT", "NEXT", "ERROR"), _notification),
    "DeliveryCodeRead": Table(("API", "CODE", "NAME", "CATEGORY", "OUTCOME", "RETRYABLE", "BILLABLE"), _code),
}


STATISTICS_HEADINGS: Final = ("DELIVERIES", "DELIVERED", "FAILED", "UNCONFIRMED", "AWAITING", "SUCCESS", "P50", "P95")


def statistic_cells(row: "StatisticRead", dimensions: Iterable[str]) -> tuple[object, ...]:
    """The cells of a row of statistics: its dimensions, then the counts."""
    values = (getattr(row, name) for name in dimensions)
    times = (f"{time:g} s" if time is not None else None for time in (row.p50_seconds, row.p95_seconds))
    return (
        *(time_text(value) if isinstance(value, datetime) else value for value in values),
        row.deliveries,
        row.delivered,
        row.failed,
        row.unconfirmed,
        row.awaiting_receipt,
        f"{row.success_rate:.1%}" if row.success_rate is not None else None,
        *times,
    )


def sink_fields(sink: "SinkRead") -> list[tuple[str, object]]:
    """The lines of one sink."""
    replay = sink.replay
    return [
        ("name", sink.name),
        ("type", sink.type),
        ("state", sink.state),
        ("cursor", sink.cursor),
        ("lag", f"{sink.lag} events"),
        ("oldest", _age(sink.oldest_seconds)),
        ("retries", _counts(sink.retries)),
        ("dead letters", _counts(sink.dead_letters)),
        ("failures in a row", sink.failures),
        ("down since", time_text(sink.down_since_at)),
        ("last success", time_text(sink.last_success_at)),
        ("last error", sink.last_error),
        ("lease until", time_text(sink.lease_until)),
        ("replay", f"{replay.id}, {replay.state}, {replay.progress:.0%} done" if replay is not None else None),
    ]


def code_fields(code: "DeliveryCodeRead") -> list[tuple[str, object]]:
    """The lines of one delivery code."""
    return [
        ("code", f"{code.code} ({code.api})"),
        ("name", code.name),
        ("earlier name", code.earlier_name),
        ("meaning", code.description),
        ("category", code.category),
        ("outcome", code.outcome),
        ("retryable", code.retryable),
        ("retry limit", code.retry_limit),
        ("billable", code.billable),
        ("in v2", code.v2_analogue),
        ("notes", code.notes),
    ]


def set_fields(values: Mapping[str, Any]) -> Iterable[tuple[str, object]]:
    """Values of JSON as lines; a flag that is not set says nothing."""
    return [(name, value) for name, value in values.items() if value is not False]


def time_text(moment: datetime | None) -> str | None:
    """A time to the second."""
    return rfc3339(moment.replace(microsecond=0)) if moment is not None else None


def _age(seconds: float | None) -> str | None:
    return str(timedelta(seconds=round(seconds))) if seconds is not None else None


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in sorted(count_texts(counts).items())) or "none"
