"""`receiver messages register`: registers sends from lines of JSON."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from receiver.cli.callback_transfer import opened
from receiver.cli.calls import Operations, named
from receiver.cli.context import STALLED_SECONDS, process_pending, with_database
from receiver.cli.output import Progress, echo_error, echo_fields, echo_json
from receiver.models.sends import MAX_SENDS
from receiver.providers.sends import SendError, expanded
from receiver.settings import Settings
from receiver.storage.database import Database


def register_sends(config: Path | None, file: str, *, json: bool) -> int:
    """Registers the sends of a file and processes them; names every line that cannot be used. Exit code 1 if any."""

    async def work(settings: Settings, database: Database) -> int:
        perform, operation = Operations(settings, database), named("sends.registerSends")
        registered = refused = 0
        with opened(file) as lines:
            sends = _sends(lines)
            while batch := list(islice(sends, MAX_SENDS)):
                usable = [(number, send) for number, send in batch if not isinstance(send, SendError)]
                problems = [(number, str(send)) for number, send in batch if isinstance(send, SendError)]
                for (number, _), result in zip(usable, await perform(operation, body=_bodies(usable)), strict=True):
                    if result.result == "refused":
                        problems.append((number, f"{result.parameter}: {result.detail}"))
                for number, detail in sorted(problems):
                    echo_error(f"line {number}: {detail}")
                refused += len(problems)
                registered += len(batch) - len(problems)
        progress = Progress("processed")
        pending = await process_pending(settings, database, on_progress=progress.show, stalled_seconds=STALLED_SECONDS)
        if pending:
            echo_error(
                f"{pending:,} callbacks are in the journal and not processed yet; `receiver status` has the reason"
            )
        counts = {"registered": registered, "refused": refused, "pending": pending}
        if json:
            echo_json(counts)
        else:
            echo_fields(counts.items())
        return 1 if refused or pending else 0

    return with_database(config, work)


def _bodies(sends: Iterable[tuple[int, Any]]) -> list[Any]:
    return [send for _, send in sends]


def _sends(lines: Iterable[bytes]) -> Iterator[tuple[int, Any]]:
    """Every send with the number of its line, from 1, or the error about a line in its place."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            given = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            yield number, SendError("line", f"is not JSON: {error}")
            continue
        for one in given if isinstance(given, list) else [given]:
            try:
                yield from ((number, send) for send in expanded(one))
            except SendError as error:
                yield number, error
