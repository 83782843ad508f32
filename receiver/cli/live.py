"""Follows the event log: `receiver events tail` prints events, `receiver listen` posts them to a program here."""

import asyncio
import secrets
import select
import sys
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import httpx2
import orjson
import typer

from receiver import credentials
from receiver.api.events import HEARTBEAT_SECONDS, published, refuse_gap
from receiver.api.operations import ApiContext
from receiver.cli.context import read_settings, refuse_absent
from receiver.cli.options import http_url
from receiver.cli.output import OutputClosed, echo, echo_error, echo_json_line
from receiver.cli.serve import stop_signal
from receiver.clock import now
from receiver.domain.cloudevents import ALERT_EVENT_TYPES
from receiver.domain.publication import Publication, Result
from receiver.errors import Expired, ReceiverError, SettingsError
from receiver.models.queries import StreamQuery
from receiver.settings import Settings, bare_token
from receiver.sinks.base import Sink, resolved
from receiver.sinks.registry import configure
from receiver.storage import event_log, schema
from receiver.storage.database import Database

Events = AsyncIterator[dict[str, Any]]

_POLL_SECONDS: Final = 0.3
_AT_ONCE: Final = 200


def tail(
    config: Path | None, query: StreamQuery, *, url: str | None, token: str | None, count: int | None, json: bool
) -> int:
    """Prints events until Ctrl-C: from a server if a URL is given, else from the database of the settings."""

    async def work() -> None:
        if url is not None:
            await _print(_from_server(url, _given(token), query), count, json=json)
            return
        settings = read_settings(config)
        refuse_absent(settings)
        database = Database(settings.database)
        try:
            await schema.check(database)
            await _print(_from_database(settings, database, query), count, json=json)
        finally:
            await database.close()

    if token is not None and url is None:
        raise typer.BadParameter("--token is for --url")
    return _until_stopped(work)


def listen(
    config: Path | None,
    query: StreamQuery,
    *,
    forward: str,
    url: str | None,
    token: str | None,
    secret: str | None,
    count: int | None,
) -> int:
    """Posts events of a server to a URL that this machine can reach, until Ctrl-C."""

    async def work() -> None:
        key = _given(secret) or f"whsec_{b64encode(secrets.token_bytes(24)).decode()}"
        sink = _webhook(forward, key)
        server, bearer = (url, _given(token)) if url is not None else _own_server(config, token)
        echo(f"events of {server} are posted to {forward}", *([f"signed with {key}"] if secret is None else []))
        await sink.start()
        try:
            await _forward(_from_server(server, bearer, query), sink, count)
        finally:
            await sink.stop()

    return _until_stopped(work)


def _given(secret: str | None) -> str | None:
    """A secret of the command line, which may be `env:NAME` or `file:PATH`, so that no list of processes shows it."""
    try:
        return str(resolved(secret)) if secret is not None else None
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _own_server(config: Path | None, token: str | None) -> tuple[str, str | None]:
    """The address and a token of the server that has these settings."""
    settings = read_settings(config)
    if settings.api_auth == "none" or token is not None:
        return settings.listen_url, _given(token)
    if not settings.api_tokens and (settings.data_dir / credentials.FILE).exists():
        settings = credentials.secure(settings).settings
    if not settings.api_tokens:
        raise SettingsError("there is no server with these settings here: give --url and --token", topic="webhook")
    return settings.listen_url, bare_token(settings.api_tokens[0].get_secret_value())


def _until_stopped(work: Callable[[], Awaitable[None]]) -> int:
    """Runs `work` to its end, or until SIGINT or SIGTERM, or until nobody reads the output any more."""

    async def run() -> int:
        working = asyncio.ensure_future(work())
        stopping, unread = asyncio.ensure_future(stop_signal().wait()), asyncio.ensure_future(_output_closed())
        ended, others = await asyncio.wait([working, stopping, unread], return_when=asyncio.FIRST_COMPLETED)
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if working in ended and (error := working.exception()) is not None:
            raise error
        if unread in ended:
            raise OutputClosed
        return 0

    return asyncio.run(run())


async def _output_closed() -> None:
    """Waits until the reader of a pipe on standard output has gone: without an event no write would fail."""
    output = select.poll()
    # A closed reader is always reported.
    output.register(sys.stdout, 0)
    while not any(found & (select.POLLERR | select.POLLHUP) for _, found in output.poll(0)):
        await asyncio.sleep(_POLL_SECONDS)


# --- where events come from


async def _from_database(settings: Settings, database: Database, query: StreamQuery) -> Events:
    context = ApiContext(
        database=database,
        reprocess=_nothing,
        tokens=None,
        clock=now,
        public_url=settings.public_url,
        source=settings.source,
    )
    position = query.after
    if position is None and query.since is not None:
        position = await event_log.position_before(database, query.since)
    if position is None:
        position = (await event_log.log_bounds(database)).last
    passes = query.filter.passes
    while True:
        pulled = await event_log.pull(database, position, _AT_ONCE)
        refuse_gap(position, pulled.log)
        position = pulled.read_to
        for entry in pulled.entries:
            if passes(entry):
                yield published(entry, context)
        if len(pulled.entries) < _AT_ONCE:
            await asyncio.sleep(_POLL_SECONDS)


async def _nothing(_: object) -> None: ...


_STREAM: Final = "/api/events/stream"
# Three heartbeats: the connection is dead.
_SILENT_SECONDS: Final = 3 * HEARTBEAT_SECONDS
_FIRST_PAUSE_SECONDS: Final = 0.5
_MAX_PAUSE_SECONDS: Final = 15.0
# The server or what is in front of it may take the next request.
_PASSING: Final = frozenset({429, 500, 502, 503, 504})


async def _from_server(url: str, token: str | None, query: StreamQuery) -> Events:
    """The events of a server. After a lost connection it connects again, where it was, as often as necessary."""
    headers = {"Accept": "text/event-stream", **({"Authorization": f"Bearer {token}"} if token else {})}
    parameters = query.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    parameters = {name: ",".join(value) if isinstance(value, list) else value for name, value in parameters.items()}
    timeout, pause = httpx2.Timeout(10, read=_SILENT_SECONDS), _FIRST_PAUSE_SECONDS
    async with httpx2.AsyncClient(headers=headers, timeout=timeout) as client:
        place = ""
        while True:
            try:
                sent = {"Last-Event-ID": place} if place else {}
                async with client.stream("GET", _address(url), params=parameters, headers=sent) as response:
                    await _refuse_error(response, url)
                    lost = f"{url} ended the connection"
                    async with aclosing(_blocks(response)) as blocks:  # type: ignore[type-var]
                        async for block in blocks:
                            place, pause = block.get("id", place), _FIRST_PAUSE_SECONDS
                            if block.get("event") == "gap":
                                raise Expired(block["data"])
                            if "data" in block:
                                yield orjson.loads(block["data"])
            except _Passing as error:
                lost = str(error)
            except httpx2.TransportError as error:
                lost = f"{url} cannot be reached ({type(error).__name__})"
            echo_error(f"{lost}; connecting again")
            await asyncio.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE_SECONDS)


class _Passing(Exception):
    """The server cannot answer now."""


def _address(url: str) -> str:
    http_url(url, "--url")
    return url.rstrip("/") + _STREAM


async def _refuse_error(response: httpx2.Response, url: str) -> None:
    """Raises for an answer that is not a stream: _Passing if another try may help."""
    if response.status_code == 200 and response.headers.get("content-type", "").startswith("text/event-stream"):
        return
    body = await response.aread()
    try:
        detail = f": {orjson.loads(body)['detail']}"
    except (ValueError, KeyError, TypeError):
        detail = " and is no receiver" if response.status_code == 200 else ""
    line = f"{url} answered {response.status_code}{detail}"
    raise _Passing(line) if response.status_code in _PASSING else ReceiverError(line)


async def _blocks(response: httpx2.Response) -> AsyncIterator[dict[str, str]]:
    """The blocks of server-sent events, each as its fields."""
    block: dict[str, str] = {}
    async for line in _lines(response):
        name, _, value = line.partition(":")
        if name:
            block[name] = value.removeprefix(" ")
        elif not line and block:
            yield block
            block = {}


async def _lines(response: httpx2.Response) -> AsyncIterator[str]:
    """The lines. Only a line feed ends one: the text of a message may have what Python takes for other line ends."""
    rest = b""
    async for received in response.aiter_bytes():
        *lines, rest = (rest + received).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r").decode()


# --- what becomes of them


async def _print(events: Events, count: int | None, *, json: bool) -> None:
    printed = 0
    async with aclosing(events) as following:  # type: ignore[type-var]
        async for event in following:
            if json:
                echo_json_line(event)
            else:
                echo(_line(event))
            printed += 1
            if printed == count:
                return


def _line(event: dict[str, Any]) -> str:
    data = event["data"]
    if event["type"] in ALERT_EVENT_TYPES:
        return f"{event['time'][:19]}Z  {event['type']:<24} {data['severity']}  {event['subject']}  {data['summary']}"
    code = f" {data['deliveryCode']}" if data["deliveryCode"] is not None else ""
    status = "" if event["type"] == f"message.{data['status']}" else f" (is {data['status']})"
    return f"{event['time'][:19]}Z  {event['type'] + code:<24} {data['recipient'] or '-'}  {event['subject']}{status}"


def _webhook(forward: str, secret: str) -> Sink:
    """The sink that posts to `forward`, also where no sink of the settings may: it is the user's own machine."""
    table = {
        "name": "listen",
        "type": "webhook",
        "url": forward,
        "secrets": [secret],
        "egress_allow": ["0.0.0.0/0", "::/0"],
        "timeout": "18s",
    }
    try:
        [configured] = configure([table])
    except SettingsError as error:
        hint = "--secret" if ": secrets" in str(error) else "--forward"
        raise typer.BadParameter(str(error).rpartition(": ")[2], param_hint=hint) from None
    return configured.sink


async def _forward(events: Events, sink: Sink, count: int | None) -> None:
    """Posts each event once: a developer who needs an event again replays it."""
    posted = 0
    async with aclosing(events) as following:  # type: ignore[type-var]
        async for event in following:
            begun = time.monotonic()
            [result] = await sink.publish([_publication(event)])
            echo(f"{_line(event)}  {_answer(result)} ({time.monotonic() - begun:.2f} s)")
            posted += 1
            if posted == count:
                return


def _publication(event: dict[str, Any]) -> Publication:
    return Publication(
        id=event["id"],
        # An alert has neither: the stream gives its events in the order of the log all the same.
        position=event["data"].get("sequence", 0),
        ordering_key=event["subject"],
        type=event["type"],
        received_at=datetime.fromisoformat(event["data"].get("receivedTime", event["time"])),
        event=event,
        body=orjson.dumps(event),
    )


def _answer(result: Result) -> str:
    code = getattr(result, "response_code", None)
    return str(code) if code is not None else str(getattr(result, "reason", "published"))
