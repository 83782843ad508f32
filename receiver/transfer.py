"""Copying the raw ledger: callbacks out as JSON lines, and in again through the intake, as if they came now.

Ids and times stay, so a callback that is there already only counts, and any number of copies may be taken in.
"""

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC
from typing import Annotated, Final, Literal

import orjson
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from receiver.domain.callbacks import Callback
from receiver.domain.cloudevents import rfc3339
from receiver.domain.events import Api
from receiver.errors import StorageUnavailable
from receiver.intake import Intake, Receipt
from receiver.storage import kept
from receiver.storage.database import Database
from receiver.storage.kept import Selection

_PAGE: Final = 100
# as many as intake commits at once, and no more than it lets wait
_IN_FLIGHT: Final = 512
_IN_FLIGHT_BYTES: Final = 16 * 1024 * 1024


class CallbackLine(BaseModel):
    """A callback as a line of JSON: the body is text, or base64 where the bytes are not UTF-8."""

    model_config = ConfigDict(frozen=True)

    # the form matters: ids are ordered, and pruned, by the time they begin with
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    receivedTime: AwareDatetime  # noqa: N815
    api: Api
    route: Literal["primary", "fallback"]
    method: Literal["GET", "POST"]
    remote: str | None = None
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
    """A line that is not a callback; says what is wrong without repeating what is in it."""


def to_line(callback: Callback) -> bytes:
    """A callback as a line of JSON, with its line feed."""
    body, encoding = _spelled(callback.body)
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


def from_line(line: bytes) -> Callback:
    """The callback in a line of JSON; fields that are not known are passed over. Raises BrokenLine."""
    try:
        told = CallbackLine.model_validate_json(line)
        body = told.raw
    except ValidationError as error:
        raise BrokenLine(_first_problem(error)) from None
    except (binascii.Error, UnicodeEncodeError):
        raise BrokenLine(f"body: is not {told.bodyEncoding}") from None
    return Callback(
        id=told.id,
        received_at=told.receivedTime.astimezone(UTC),
        api=told.api,
        route=told.route,
        method=told.method,
        remote=told.remote,
        query=told.query,
        headers=told.headers,
        body=body,
    )


def _spelled(body: bytes) -> tuple[str, str]:
    try:
        return body.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        return base64.b64encode(body).decode("ascii"), "base64"


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    return f"{place}: {problem['msg']}" if place else "is not a JSON object"


async def exported(database: Database, selection: Selection) -> AsyncIterator[bytes]:
    """The selected callbacks as lines of JSON, oldest first, a page of them at a time."""
    async for page in kept.pages(database, selection, size=_PAGE):
        yield b"".join(map(to_line, page))


@dataclass(frozen=True, slots=True)
class LineProblem:
    """Why a line was not taken in; `line` counts from 1."""

    line: int
    detail: str


@dataclass(slots=True, kw_only=True)
class Imported:
    """What an import did so far: callbacks taken in, by what came of them, and lines that were not."""

    callbacks: int = 0
    events: int = 0
    duplicates: int = 0
    quarantined: int = 0
    problems: list[LineProblem] = field(default_factory=list)

    def add(self, receipt: Receipt) -> None:
        self.callbacks += 1
        self.events += receipt.events
        self.duplicates += receipt.duplicates
        self.quarantined += bool(receipt.unread)


async def import_lines(intake: Intake, lines: Iterable[bytes]) -> Imported:
    """Takes in callbacks from lines of JSON, many at once; a line that is broken does not stop the rest.

    Raises StorageUnavailable where the database could not keep a single one of them.
    """
    done = Imported()
    for bite in _bites(lines):
        outcomes = await asyncio.gather(*(_take_in(intake, line) for line in bite.values()))
        _refuse_if_none_was_kept(bite, outcomes)
        for number, outcome in zip(bite, outcomes, strict=True):
            if isinstance(outcome, Receipt):
                done.add(outcome)
            else:
                done.problems.append(LineProblem(number, str(outcome)))
    return done


Outcome = Receipt | BrokenLine | StorageUnavailable


async def _take_in(intake: Intake, line: bytes) -> Outcome:
    """What came of a line: the receipt of its callback, or why there is none."""
    try:
        return await intake.accept(from_line(line))
    except (BrokenLine, StorageUnavailable) as error:
        return error


def _refuse_if_none_was_kept(bite: Mapping[int, bytes], outcomes: Sequence[Outcome]) -> None:
    refused = [outcome for outcome in outcomes if isinstance(outcome, StorageUnavailable)]
    if refused and not any(isinstance(outcome, Receipt) for outcome in outcomes):
        raise StorageUnavailable(f"stopped at line {min(bite)}, what came before is taken in: {refused[0]}")


def _bites(lines: Iterable[bytes]) -> Iterator[dict[int, bytes]]:
    """The lines by their numbers, as many at a time as may be on their way; blank ones are left out."""
    bite: dict[int, bytes] = {}
    size = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        bite[number] = line
        size += len(line)
        if len(bite) >= _IN_FLIGHT or size >= _IN_FLIGHT_BYTES:
            yield bite
            bite, size = {}, 0
    if bite:
        yield bite
