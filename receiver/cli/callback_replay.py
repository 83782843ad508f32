"""`receiver callbacks replay`: sends callbacks of the journal to a program again, as they came."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import httpx2

from receiver.cli.context import with_database
from receiver.cli.options import http_url
from receiver.cli.output import echo, echo_json
from receiver.domain.events import RECONCILED, REGISTERED
from receiver.errors import Unknown
from receiver.models.callbacks import CallbackRead
from receiver.settings import Settings
from receiver.storage import callbacks
from receiver.storage.database import Database

# What belongs to the connection on which the callback came. The others are sent as they were.
_OF_THE_CONNECTION: Final = frozenset(
    {"connection", "content-length", "expect", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
)
_REPLAY_SECONDS: Final = 30.0


def replay_callbacks(config: Path | None, ids: Sequence[str], *, to: str, json: bool) -> int:
    """Sends callbacks to a URL as they came: method, query, headers without secrets, body byte for byte."""
    target = http_url(to, "--to")

    async def work(_: Settings, database: Database) -> int:
        found = [await callbacks.with_id(database, callback_id) for callback_id in ids]
        for callback_id, callback in zip(ids, found, strict=True):
            if callback is None:
                raise Unknown(f"there is no callback {callback_id} in the journal")
            if callback.route == REGISTERED:
                raise Unknown(f"{callback_id} is a registered send, which Bandwidth never posted")
            if callback.route == RECONCILED:
                raise Unknown(f"{callback_id} is an answer to reconciliation, which Bandwidth never posted")
        answers = []
        async with httpx2.AsyncClient(timeout=_REPLAY_SECONDS, follow_redirects=False) as client:
            for callback in filter(None, found):
                answer = await _send(client, target, callback)
                answers.append(answer)
                if not json:
                    result = answer["status"] if answer["error"] is None else answer["error"]
                    echo(f"{callback.id}  {callback.method}  {result} ({answer['seconds']:.2f} s)")
        if json:
            echo_json(answers)
        return 0 if all(200 <= (answer["status"] or 0) < 300 for answer in answers) else 1

    return with_database(config, work)


async def _send(client: httpx2.AsyncClient, target: httpx2.URL, callback: CallbackRead) -> dict[str, Any]:
    query = b"&".join(part for part in (target.query, callback.query.encode()) if part)
    headers = [
        (name.encode("latin-1"), value.encode("latin-1"))
        for name, value in callback.headers.items()
        if name not in _OF_THE_CONNECTION
    ]
    # Not made by the client, which would add headers of its own.
    url = target.copy_with(query=query or None)
    content = callback.raw if callback.method == "POST" else None
    request = httpx2.Request(callback.method, url, headers=headers, content=content)
    begun, status, error = time.monotonic(), None, None
    try:
        status = (await client.send(request)).status_code
    except httpx2.TransportError as failure:
        error = str(failure) or type(failure).__name__
    return {"id": callback.id, "status": status, "error": error, "seconds": round(time.monotonic() - begun, 3)}
