"""`receiver events`: a sample of an event, for a test of the program that receives it, and the log as it grows."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import orjson
import typer

from receiver.cli.options import Config, group, with_query
from receiver.models.queries import StreamQuery

app = group("Print a sample of a published event; follow the event log.")

_TYPES: Final = {
    "message.received": ("message-received", None),
    "message.queued": ("message-queued", None),
    "message.sending": ("message-sending", None),
    "message.sent": ("message-sent", None),
    "message.unconfirmed": ("message-failed", 9902),
    "message.delivered": ("message-delivered", None),
    "message.failed": ("message-failed", 4720),
    "message.read": ("message-read", None),
}
"""By the type of a published event of a message what Bandwidth calls it, and the code that comes with it."""
_ALERT_TYPES: Final = ("alert.fired", "alert.resolved")
_RECEIVED_AT: Final = datetime(2026, 1, 1, 12, 0, 5, 500_000, tzinfo=UTC)
_US: Final = "+19195551234"
_THEM: Final = "+19195554321"


@app.command("sample")
def sample(
    type_: Annotated[
        str,
        typer.Option("--type", metavar="TYPE", help=f"The type of the event: {', '.join((*_TYPES, *_ALERT_TYPES))}."),
    ] = "message.delivered",
) -> int:
    """Print an event as sinks get it: of an alert, or of a callback as Bandwidth documents it. Needs no database."""
    from receiver.cli.output import echo_json

    if type_ not in (*_TYPES, *_ALERT_TYPES):
        raise typer.BadParameter(f"must be one of {', '.join((*_TYPES, *_ALERT_TYPES))}", param_hint="--type")
    echo_json(sample_event(type_) if type_ in _TYPES else sample_alert_event(type_))
    return 0


Url = Annotated[str | None, typer.Option("--url", metavar="URL", help="The address of a receiver elsewhere.")]
Token = Annotated[
    str | None, typer.Option("--token", metavar="TOKEN", help="Its API token; also env:NAME or file:PATH.")
]
Count = Annotated[int | None, typer.Option("--count", min=1, help="Stop after this number of events.")]
After = Annotated[
    int | None, typer.Option("--after", min=0, metavar="POSITION", help="Begin after this position of the log.")
]


@app.command("tail")
@with_query(StreamQuery)
def tail(
    query: StreamQuery,
    after: After = None,
    url: Url = None,
    token: Token = None,
    count: Count = None,
    config: Config = None,
    json: Annotated[bool, typer.Option("--json", help="Print each event as a line of JSON, as sinks get it.")] = False,
) -> int:
    """Print events as they are appended to the log, until Ctrl-C: from the database, or with --url from a server."""
    from receiver.cli.live import tail

    return tail(config, query.model_copy(update={"after": after}), url=url, token=token, count=count, json=json)


def sample_event(type_: str) -> dict[str, Any]:
    """The event that a callback of this kind becomes, as the first of its message."""
    from receiver.domain.delivery import EMPTY_DELIVERY, Change, merge
    from receiver.domain.events import Api, Callback, Event
    from receiver.domain.publication import Appended, LogEntry
    from receiver.intake.fold import TagChecker
    from receiver.providers import registry, states
    from receiver.providers.published import published

    callback = Callback(
        id="0" * 32,
        received_at=_RECEIVED_AT,
        api=Api.V2,
        route="primary",
        method="POST",
        remote=None,
        query="",
        headers={},
        body=orjson.dumps([_payload(*_TYPES[type_])]),
    )
    [parsed] = registry.parse(callback)
    assert type(parsed) is Event  # noqa: S101
    event = TagChecker().check(parsed, 0)
    assert type(event) is Event  # noqa: S101
    appended = Appended.of(event, Change(None, merge(EMPTY_DELIVERY, event), True), states)
    entry = LogEntry(
        position=1,
        event=event,
        previous_status=None,
        changed=True,
        delivery=appended.delivery,
        message={"text": event.fields.text, "media": event.fields.media},
    )
    return published(entry)


def sample_alert_event(type_: str) -> dict[str, Any]:
    """The event of an alert that fires, or is resolved twenty minutes later."""
    from receiver.domain.alerts import Alert, AlertStatus, Evidence, RuleType, Severity
    from receiver.domain.publication import AlertEntry, AlertEvent
    from receiver.models.alerts import alert_read
    from receiver.providers.published import published

    is_resolved = type_ == "alert.resolved"
    at = _RECEIVED_AT + timedelta(minutes=20) if is_resolved else _RECEIVED_AT
    share, failed = (0.04, 3) if is_resolved else (0.31, 25)
    alert = Alert(
        id="6f1f6a3c1d0c4f6d9a70c2b6b8f5f0a1",
        rule=RuleType.FAILURE_RATE,
        name="failure-rate",
        severity=Severity.WARNING,
        status=AlertStatus.RESOLVED if is_resolved else AlertStatus.FIRING,
        group="T-Mobile",
        summary=f"T-Mobile: {failed} of 80 deliveries failed within 15 minutes ({share:.0%}).",
        evidence=Evidence(value=share, threshold=0.2, volume=80, before=0.02),
        messages=("16613658148593u7gx2aqjgrbkwn",),
        began_at=_RECEIVED_AT,
        fired_at=_RECEIVED_AT,
        updated_at=at,
        resolved_at=at if is_resolved else None,
    )
    event = AlertEvent(
        id="a3f0c5d2e1b4978685746352413f2e1d" if is_resolved else "0d9e8f7a6b5c4d3e2f1a0b9c8d7e6f5a",
        alert_id=alert.id,
        transition="resolved" if is_resolved else "fired",
        occurred_at=at,
        received_at=at,
        alert=alert_read(alert, "https://sms.example.com").model_dump(mode="json", by_alias=True),
    )
    return published(AlertEntry(position=1, event=event))


def _payload(type_: str, code: int | None) -> dict[str, Any]:
    is_inbound = type_ == "message-received"
    sender, recipient = (_THEM, _US) if is_inbound else (_US, _THEM)
    message = {
        "id": "16613658148593u7gx2aqjgrbkwn",
        "owner": _US,
        "applicationId": "93de2206-9669-4e07-948d-329f4b722ee2",
        "time": "2026-01-01T12:00:00.000Z",
        "segmentCount": 1,
        "direction": "in" if is_inbound else "out",
        "from": sender,
        "to": [recipient],
        "text": "Your order is on its way",
        **({} if is_inbound else {"tag": "order 4711"}),
    }
    failure = {"errorCode": code} if code is not None else {}
    return {"type": type_, "time": "2026-01-01T12:00:05.123Z", "description": "", "to": recipient, **failure} | {
        "message": message
    }
