"""Exports callbacks of the journal as JSON lines, imports such lines into a journal, and processes callbacks again.

Lines keep the ids and times of their callbacks. An import skips ids that the journal has already, so an interrupted
import is completed by running it again.
"""

import asyncio
import base64
import binascii
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, Literal

import orjson
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from receiver.domain.cloudevents import rfc3339
from receiver.domain.delivery import FinalConflict
from receiver.domain.events import Api, Callback
from receiver.errors import StorageUnavailable
from receiver.intake.fold import Folder, Parsed, TagChecker, parse
from receiver.models.queries import CallbackQuery
from receiver.storage import callbacks, processor
from receiver.storage.bulk import Transaction
from receiver.storage.database import Database
from receiver.storage.journal import JournalWriter, first_id

_BATCH_LINES: Final = 250
_BATCH_BYTES: Final = 1024 * 1024
_RETRY_SECONDS: Final = 60.0
_FIRST_BACKOFF_SECONDS: Final = 0.1
_MAX_BACKOFF_SECONDS: Final = 5.0
_MAX_PAUSE_SECONDS: Final = 0.5
_EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)
# Clocks differ, and a journal may come from a machine in another time zone that uses local time as UTC.
_AHEAD: Final = timedelta(days=1)


# --- lines ---


class CallbackLine(BaseModel):
    """A callback as a line of JSON: the body is text, or base64 if its bytes are not UTF-8."""

    model_config = ConfigDict(frozen=True)

    # Listing and retention order callbacks by the time that begins an id.
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    receivedTime: AwareDatetime  # noqa: N815
    api: Api
    route: Literal["primary", "fallback", "registered", "reconciled"]
    method: Literal["GET", "POST"]
    remote: Annotated[str | None, Field(max_length=100)] = None
    query: str = ""
    headers: dict[str, str] = {}
    body: str = ""
    bodyEncoding: Literal["utf-8", "base64"] = "utf-8"  # noqa: N815

    @property
    def raw(self) -> bytes:
        if self.bodyEncoding == "base64":
            return base64.b64decode(self.body, validate=True)
        return self.body.encode("utf-8")


class BrokenLine(ValueError):
    """A line is not a callback; the text says what is wrong and does not repeat the content."""


def to_line(callback: Callback) -> bytes:
    """A callback as a line of JSON, with its line feed."""
    body, encoding = _encoded(callback.body)
    value = {
        "id": callback.id,
        "receivedTime": rfc3339(callback.received_at),
        "api": callback.api,
        "route": callback.route,
        "method": callback.method,
        "remote": callback.remote,
        "query": callback.query,
        "headers": callback.headers,
        "body": body,
        "bodyEncoding": encoding,
    }
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)


def _encoded(body: bytes) -> tuple[str, str]:
    try:
        return body.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        return base64.b64encode(body).decode("ascii"), "base64"


def from_line(line: bytes, *, now: datetime) -> Callback:
    """The callback in a line of JSON; unknown fields are ignored. Raises BrokenLine.

    It rejects a time of receipt before 1970 or more than a day after `now`, in the field and in the id: retention would
    remove such a callback at once, or never.
    """
    try:
        parsed = CallbackLine.model_validate_json(line)
        body = parsed.raw
    except ValidationError as error:
        raise BrokenLine(_first_problem(error)) from None
    except (binascii.Error, UnicodeEncodeError):
        raise BrokenLine(f"body: is not {parsed.bodyEncoding}") from None
    return Callback(
        id=_bounded_id(parsed.id, now),
        received_at=_bounded_time(parsed.receivedTime, now),
        api=parsed.api,
        route=parsed.route,
        method=parsed.method,
        remote=parsed.remote,
        query=parsed.query,
        headers=parsed.headers,
        body=body,
    )


def _bounded_time(moment: datetime, now: datetime) -> datetime:
    try:
        received_at = moment.astimezone(UTC)
    except OverflowError:
        received_at = None
    if received_at is None or not _EARLIEST <= received_at <= now + _AHEAD:
        raise BrokenLine("receivedTime: must be between 1970 and a day from now")
    return received_at


def _bounded_id(callback_id: str, now: datetime) -> str:
    if callback_id > first_id(now + _AHEAD):
        raise BrokenLine("id: begins with a time of receipt that is more than a day from now")
    return callback_id


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    return f"{place}: {problem['msg']}" if place else "is not a JSON object"


# --- export ---


async def exported(database: Database, query: CallbackQuery) -> AsyncIterator[bytes]:
    """The callbacks that match a query as lines of JSON, oldest first, one page at a time."""
    async for page in callbacks.pages(database, query):
        yield b"".join(map(to_line, page))


# --- import ---


@dataclass(slots=True, kw_only=True)
class Imported:
    """The counts of an import so far: lines read, callbacks appended, ids that the journal had, broken lines."""

    lines: int = 0
    callbacks: int = 0
    known: int = 0
    broken: int = 0


class ImportStopped(StorageUnavailable):
    """The journal could not be written for `retry_seconds`; `done` counts the import before `line`."""

    def __init__(self, line: int, done: Imported, error: StorageUnavailable) -> None:
        super().__init__(
            f"stopped at line {line}: the lines before it are imported, it and the lines after it are not; "
            f"run the same import again ({error})"
        )
        self.line, self.done = line, done


def _ignore(*_: object) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Importing:
    """The parameters of an import.

    `on_broken` gets the number of a line, from 1, and its error; `on_progress` is called after each batch. A failed
    append is retried for `retry_seconds`.
    """

    clock: Callable[[], datetime]
    on_broken: Callable[[int, str], None] = _ignore
    on_progress: Callable[[Imported], None] = _ignore
    retry_seconds: float = _RETRY_SECONDS
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


async def import_lines(writer: JournalWriter, lines: Iterable[bytes], how: Importing) -> Imported:
    """Appends the callbacks in lines of JSON to the journal; a broken line does not stop the others.

    Raises ImportStopped if the journal cannot be written.
    """
    done = Imported()
    for batch in _batches(lines):
        callbacks = _parsed(batch, done, how)
        began_at = how.monotonic()
        try:
            new = await _append(writer, list(callbacks.values()), how)
        except StorageUnavailable as error:
            raise ImportStopped(min(callbacks), done, error) from error
        done.lines = max(batch)
        done.callbacks += new
        done.known += len(callbacks) - new
        how.on_progress(done)
        # On SQLite the callbacks of a running server wait for the same lock: the pause leaves them half of the time.
        await how.sleep(min(how.monotonic() - began_at, _MAX_PAUSE_SECONDS))
    return done


def _batches(lines: Iterable[bytes]) -> Iterator[dict[int, bytes]]:
    """The non-blank lines by their numbers, one batch at a time; a batch is appended in one transaction."""
    batch: dict[int, bytes] = {}
    size = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        batch[number] = line
        size += len(line)
        if len(batch) >= _BATCH_LINES or size >= _BATCH_BYTES:
            yield batch
            batch, size = {}, 0
    if batch:
        yield batch


def _parsed(batch: Mapping[int, bytes], done: Imported, how: Importing) -> dict[int, Callback]:
    now = how.clock()
    callbacks: dict[int, Callback] = {}
    for number, line in batch.items():
        try:
            callbacks[number] = from_line(line, now=now)
        except BrokenLine as error:
            done.broken += 1
            how.on_broken(number, str(error))
    return callbacks


async def _append(writer: JournalWriter, callbacks: list[Callback], how: Importing) -> int:
    """Appends, and retries for `retry_seconds` of errors in a row; returns how many callbacks are new."""
    if not callbacks:
        return 0
    give_up_at = how.monotonic() + how.retry_seconds
    backoff = _FIRST_BACKOFF_SECONDS
    while True:
        try:
            return await writer.append(callbacks)
        except StorageUnavailable:
            if how.monotonic() + backoff > give_up_at:
                raise
        await how.sleep(backoff)
        backoff = min(2 * backoff, _MAX_BACKOFF_SECONDS)


# --- reprocessing ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Reprocessed:
    """The result of reprocessing: callbacks processed, new events, and callbacks that stay in quarantine."""

    callbacks: int = 0
    events: int = 0
    quarantined: int = 0

    def __add__(self, other: "Reprocessed") -> "Reprocessed":
        return Reprocessed(
            callbacks=self.callbacks + other.callbacks,
            events=self.events + other.events,
            quarantined=self.quarantined + other.quarantined,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reprocessing:
    """Processes callbacks of the journal again with today's code and keys; a worker may run at the same time."""

    database: Database
    checker: TagChecker
    conflict: FinalConflict
    clock: Callable[[], datetime]

    async def ids(self, ids: Sequence[str]) -> Reprocessed:
        """Reprocesses the callbacks with these ids, oldest first; an id that the journal does not have is skipped."""
        return await self._all(callbacks.pages_with_ids(self.database, ids))

    async def query(self, query: CallbackQuery) -> Reprocessed:
        """Reprocesses all callbacks that match a query, oldest first."""
        return await self._all(callbacks.pages(self.database, query))

    async def _all(self, pages: AsyncIterator[list[Callback]]) -> Reprocessed:
        folder, total = Folder(self.database, self.conflict), Reprocessed()
        async for page in pages:
            total += await self._page(folder, page)
        return total

    async def _page(self, folder: Folder, page: Sequence[Callback]) -> Reprocessed:
        total = Reprocessed()
        batch = [await parse(callback, self.checker) for callback in page]

        async def finish(transaction: Transaction, folded: Sequence[Parsed]) -> None:
            now = transaction.spelling.time(self.clock())
            rows = [row for parsed in folded for row in parsed.quarantine_rows(now)]
            ids = [parsed.callback.id for parsed in folded]
            await transaction.run([processor.take_from_quarantine(ids), processor.add_to_quarantine(rows)])

        while batch:
            folded = await folder.fold(batch, finish)
            total += Reprocessed(
                callbacks=len(folded),
                events=sum(len(parsed.new) for parsed in folded),
                quarantined=sum(parsed.is_quarantined for parsed in folded),
            )
            batch = batch[len(folded) :]
        return total
