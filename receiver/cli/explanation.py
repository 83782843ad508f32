"""The explanation of a message: sentences, timeline and sinks on the terminal, a field in JSON."""

from collections.abc import Collection, Sequence

from pydantic import Field

from receiver.api.representations import Representation, Time
from receiver.cli.output import echo, echo_table
from receiver.domain.queries import PublicationView
from receiver.explanation.message import Explanation
from receiver.explanation.recipient import Charged
from receiver.explanation.timeline import TimelineEntry, explain_publication
from receiver.explanation.words import time_text


class RecipientFields(Representation):
    """The status of a message to one number, in words."""

    to: str | None = Field(validation_alias="recipient")
    status: str
    headline: str
    why: str | None
    advice: str | None
    charged: Charged
    charge: str


class TimelineFields(Representation):
    """One event in words, with the times of both clocks. The creation of the message has no `eventId`."""

    event_id: str | None
    type: str | None
    time: Time | None = Field(validation_alias="occurred_at")
    received_time: Time | None = Field(validation_alias="received_at")
    sentence: str
    clocks: str


class ExplanationFields(Representation):
    """A message in words. A field is null where its recipients differ."""

    headline: str
    origin: str | None
    why: str | None
    advice: str | None
    charged: Charged | None
    charge: str | None
    recipients: list[RecipientFields]
    timeline: list[TimelineFields]
    notes: list[str]


def echo_explanation(
    explanation: Explanation, publications: Sequence[PublicationView], configured: Collection[str]
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


def _sink_row(publication: PublicationView, configured: Collection[str]) -> tuple[object, ...]:
    state = explain_publication(publication, is_configured=publication.sink in configured)
    return publication.sink, f"message.{publication.status}", publication.recipient, state
