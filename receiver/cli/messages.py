"""`receiver messages list`, `show`, `events` and `attempts`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from receiver.api.parameters import MessageParameters
from receiver.api.representations import Attempt, Message, MessageEvent, Recipient
from receiver.cli import options
from receiver.cli.context import with_database
from receiver.cli.explanation import ExplanationFields, echo_explanation
from receiver.cli.output import echo, echo_fields, echo_json, echo_page, echo_table
from receiver.clock import now
from receiver.domain.cloudevents import rfc3339
from receiver.domain.events import Api, Direction, Event
from receiver.domain.explanation import explain
from receiver.domain.queries import AttemptView, MessageView
from receiver.errors import ReceiverError
from receiver.providers import delivery_codes
from receiver.settings import Settings
from receiver.storage import messages, retries
from receiver.storage.database import Database
from receiver.storage.publications import publications_of_message


def list_messages(config: Path | None, parameters: Mapping[str, Any], *, json: bool) -> int:
    query = options.parse(MessageParameters, parameters).query()

    async def work(_: Settings, database: Database) -> int:
        page = await messages.find(database, query)
        echo_page(page, _HEADINGS, _row, model=Message, json=json, number=parameters["page"])
        return 0

    return with_database(config, work, reads_processed=True)


_HEADINGS = ("TIME", "API", "ID", "DIRECTION", "FROM", "TO", "STATUS", "CODE", "TAG")


def _row(view: MessageView) -> tuple[object, ...]:
    time = rfc3339(view.listed_at.replace(microsecond=0))
    return (
        time,
        view.api,
        view.id,
        view.direction,
        view.sender,
        view.numbers,
        view.status,
        view.delivery_code,
        view.tag,
    )


def show_message(
    config: Path | None, message_id: str, *, api: Api | None, direction: Direction | None, all_: bool, json: bool
) -> int:
    """Shows one message in words; with `all_` also every column."""

    async def work(settings: Settings, database: Database) -> int:
        view = _only(message_id, await messages.with_id(database, message_id, api, direction))
        events = await messages.events(database, view.key)
        explanation = explain(view, events, delivery_codes, now())
        message = Message.model_validate(view)
        if json:
            fields = message.model_dump(mode="json", by_alias=True)
            listed = [MessageEvent.model_validate(event) for event in events]
            echo_json({**fields, "events": listed, "explanation": ExplanationFields.model_validate(explanation)})
            return 0
        async with database.reading() as connection:
            publications = await publications_of_message(connection, view.key)
        echo_explanation(explanation, publications, {str(sink.get("name")) for sink in settings.sinks})
        if all_:
            echo("")
            _echo_columns(message, events)
        return 0

    return with_database(config, work, reads_processed=True)


def list_events(
    config: Path | None, message_id: str, *, api: Api | None, direction: Direction | None, json: bool
) -> int:
    async def work(_: Settings, database: Database) -> int:
        view = _only(message_id, await messages.with_id(database, message_id, api, direction))
        events = await messages.events(database, view.key)
        if json:
            echo_json([MessageEvent.model_validate(event) for event in events])
        else:
            echo_table(_EVENT_HEADINGS, [_event_row(event) for event in events])
        return 0

    return with_database(config, work, reads_processed=True)


def list_attempts(
    config: Path | None,
    message_id: str,
    *,
    api: Api | None,
    direction: Direction | None,
    sink: str | None,
    json: bool,
) -> int:
    async def work(_: Settings, database: Database) -> int:
        view = _only(message_id, await messages.with_id(database, message_id, api, direction))
        async with database.reading() as connection:
            found = await retries.attempts_of_message(connection, view.key, sink)
        if json:
            echo_json([Attempt.model_validate(attempt) for attempt in found])
        else:
            echo_table(_ATTEMPT_HEADINGS, [_attempt_row(attempt) for attempt in found])
        return 0

    return with_database(config, work, reads_processed=True)


_ATTEMPT_HEADINGS = ("STARTED", "SECONDS", "SINK", "STATUS", "OUTCOME", "CODE", "DECISION", "REASON", "RESPONSE")


def _attempt_row(view: AttemptView) -> tuple[object, ...]:
    return (
        rfc3339(view.started_at),
        f"{view.seconds:.3f}",
        view.sink,
        view.status,
        view.outcome,
        view.response_code,
        view.decision,
        view.reason,
        view.response,
    )


def _only(message_id: str, found: Sequence[MessageView]) -> MessageView:
    if not found:
        raise ReceiverError(f"there is no message {message_id}")
    if len(found) > 1:
        hints = []
        if len({view.api for view in found}) > 1:
            hints.append("--api")
        if len({view.direction for view in found}) > 1:
            hints.append("--direction")
        raise typer.BadParameter(f"{len(found)} messages have the id {message_id}", param_hint=hints)
    return found[0]


def _echo_columns(message: Message, events: Sequence[Event]) -> None:
    echo_fields(_fields(message.model_dump(mode="json", by_alias=True, exclude={"recipients"})))
    for recipient in message.recipients:
        echo("", f"to {recipient.to or 'an unknown number'}")
        echo_fields(_recipient_fields(recipient), indent="  ")
    echo("", "events, in order of arrival")
    echo_table(_EVENT_HEADINGS, [_event_row(event) for event in events])


_EVENT_HEADINGS = ("RECEIVED", "TYPE", "TIME", "RECIPIENT", "CODE", "DESCRIPTION")


def _fields(values: Mapping[str, Any]) -> list[tuple[str, object]]:
    return [(name, value) for name, value in values.items() if value is not False]


def _recipient_fields(recipient: Recipient) -> list[tuple[str, object]]:
    values = recipient.model_dump(mode="json", by_alias=True, exclude={"to"})
    reason = values.pop("reason")
    return [*_fields(values), ("meaning", f"{reason['name']}: {reason['description']}" if reason else None)]


def _event_row(event: Event) -> tuple[object, ...]:
    time = rfc3339(event.occurred_at) if event.occurred_at else None
    return rfc3339(event.received_at), event.type, time, event.recipient, event.code, event.description
