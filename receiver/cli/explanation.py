"""The explanation of a message: sentences, timeline and sinks on the terminal, a field in JSON."""

from collections.abc import Collection, Sequence
from pathlib import Path

from receiver.cli.calls import Operations, named, with_operations
from receiver.cli.output import TABLES, echo, echo_fields, echo_json, echo_table, set_fields
from receiver.clock import now
from receiver.explanation.message import Explanation, explain
from receiver.explanation.timeline import TimelineEntry, explain_publication
from receiver.explanation.words import time_text
from receiver.models.events import MessageEventRead
from receiver.models.messages import MessageRead
from receiver.models.queries import OneMessageQuery
from receiver.models.sinks import PublicationRead
from receiver.storage import messages
from receiver.storage.publications import publications_of_message


def explain_message(config: Path | None, message_id: str, query: OneMessageQuery, *, all_: bool, json: bool) -> int:
    """Shows one message in words; with `all_` also every column."""

    async def work(perform: Operations) -> int:
        message: MessageRead = await perform(named("messages.getMessage"), {"id": message_id}, query=query)
        events = await messages.events(perform.database, message.key)
        explanation = explain(message, events, now())
        listed = [MessageEventRead.model_validate(event) for event in events]
        if json:
            fields = message.model_dump(mode="json", by_alias=True)
            echo_json({**fields, "events": listed, "explanation": explanation})
            return 0
        async with perform.database.reading() as connection:
            publications = await publications_of_message(connection, message.key)
        echo_explanation(explanation, publications, {str(sink.get("name")) for sink in perform.settings.sinks})
        if all_:
            echo("")
            _echo_columns(message, listed)
        return 0

    return with_operations(config, work)


def _echo_columns(message: MessageRead, events: Sequence[MessageEventRead]) -> None:
    echo_fields(set_fields(message.model_dump(mode="json", by_alias=True, exclude={"recipients"})))
    for recipient in message.recipients:
        echo("", f"to {recipient.recipient or 'an unknown number'}")
        values = recipient.model_dump(mode="json", by_alias=True, exclude={"recipient"})
        reason = values.pop("reason")
        meaning = f"{reason['name']}: {reason['description']}" if reason else None
        echo_fields([*set_fields(values), ("meaning", meaning)], indent="  ")
    echo("", "events, in order of arrival")
    table = TABLES["MessageEventRead"]
    echo_table(table.headings, [table.row(event) for event in events])


def echo_explanation(
    explanation: Explanation, publications: Sequence[PublicationRead], configured: Collection[str]
) -> None:
    """Writes the status of a message, its timeline, and the state of its events at the sinks.

    `configured` are the names of the sinks in the settings.
    """
    echo(*explanation.lines)
    if len(explanation.recipients) > 1:
        echo("", "recipients", *(f"- {recipient.summary}" for recipient in explanation.recipients))
    if explanation.notes:
        echo("", "notes", *(f"- {note}" for note in explanation.notes))
    if explanation.timeline:
        echo("", "timeline")
        echo_table(_TIMELINE, [_timeline_row(entry) for entry in explanation.timeline])
    if publications:
        echo("", "sinks")
        echo_table(_SINKS, [_sink_row(publication, configured) for publication in publications])


_TIMELINE = ("BANDWIDTH'S TIME", "OUR TIME", "APART", "TYPE", "EVENT")


def _timeline_row(entry: TimelineEntry) -> tuple[object, ...]:
    times = (time_text(time) if time else None for time in (entry.occurred_at, entry.received_at))
    return *times, entry.clocks, entry.type, entry.sentence


_SINKS = ("SINK", "EVENT", "RECIPIENT", "STATE")


def _sink_row(publication: PublicationRead, configured: Collection[str]) -> tuple[object, ...]:
    state = explain_publication(publication, is_configured=publication.sink in configured)
    return publication.sink, f"message.{publication.status}", publication.recipient, state
