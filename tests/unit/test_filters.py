"""Which events a sink is given."""

from datetime import UTC, datetime

import pytest
from msgspec.structs import replace

from receiver.domain.cloudevents import ALERT_EVENT_TYPES, EVENT_TYPES, MESSAGE_EVENT_TYPES, Filter
from receiver.domain.events import Direction, MessageFields, Status
from receiver.domain.publication import AlertEntry, AlertEvent, LogEntry, Snapshot
from tests.factories import make_event

AT = datetime(2026, 1, 1, tzinfo=UTC)
SNAPSHOT = Snapshot(
    status="delivered", state=None, delivery_state=None, code=None, description=None, contradicted=False
)


def entry(status: Status, *, changed: bool = True) -> LogEntry:
    event = make_event(status)
    return LogEntry(position=1, event=event, previous_status=None, changed=changed, delivery=SNAPSHOT, message={})


@pytest.mark.parametrize(
    ("chosen", "status", "changed", "passes"),
    [
        (Filter(), Status.SENT, False, True),
        (Filter(types=frozenset({"message.sent"})), Status.SENT, False, True),
        # what counts is what the event says, not what its delivery is
        (Filter(types=frozenset({"message.delivered"})), Status.SENT, True, False),
        (Filter(changes_only=True), Status.SENT, True, True),
        (Filter(changes_only=True), Status.SENT, False, False),
        (Filter(types=frozenset({"message.sent"}), changes_only=True), Status.SENT, False, False),
        (Filter(types=frozenset({"message.sent"}), changes_only=True), Status.FAILED, True, False),
    ],
)
def test_filter_passes_the_events_it_names(chosen: Filter, status: Status, changed: bool, passes: bool) -> None:
    assert chosen.passes(entry(status, changed=changed)) is passes


@pytest.mark.parametrize(
    ("chosen", "passes"),
    [
        (Filter(direction=Direction.OUT), True),
        (Filter(direction=Direction.IN), False),
        (Filter(applications=frozenset({"app-1", "app-2"})), True),
        (Filter(applications=frozenset({"app-2"})), False),
        (Filter(tag_prefixes=("invoice-", "order-")), True),
        (Filter(tag_prefixes=("rder-",)), False),
        (Filter(number_prefixes=("1919",)), True),
        (Filter(number_prefixes=("1425", "44")), True),
        (Filter(number_prefixes=("1503",)), False),
        # every part must be met
        (Filter(direction=Direction.OUT, tag_prefixes=("order-",), number_prefixes=("1503",)), False),
    ],
)
def test_filter_compares_the_event_s_field_else_its_message_s(chosen: Filter, passes: bool) -> None:
    message = {"sender": "+19195551234", "recipients": ["+15035550001"], "tag": "order-4711", "application_id": "app-1"}
    event = replace(make_event(Status.SENT, recipient="+14255550123"), fields=MessageFields())
    logged = LogEntry(position=1, event=event, previous_status=None, changed=True, delivery=SNAPSHOT, message=message)
    assert chosen.passes(logged) is passes


@pytest.mark.parametrize(("recipient", "passes"), [(None, True), ("+14255550123", False)])
def test_an_event_that_names_no_recipient_is_about_all_of_its_message(recipient: str | None, passes: bool) -> None:
    event = replace(make_event(Status.SENT, recipient=recipient), fields=MessageFields())
    message = {"sender": None, "recipients": ["+14255550123", "15035550001"]}
    logged = LogEntry(position=1, event=event, previous_status=None, changed=True, delivery=SNAPSHOT, message=message)
    assert Filter(number_prefixes=("1503",)).passes(logged) is passes


def test_event_without_tag_or_application_fails_filters_on_them() -> None:
    event = replace(make_event(Status.SENT), fields=MessageFields())
    logged = LogEntry(position=1, event=event, previous_status=None, changed=True, delivery=SNAPSHOT, message={})
    assert not Filter(tag_prefixes=("a",)).passes(logged)
    assert not Filter(applications=frozenset({"a"})).passes(logged)
    assert not Filter(number_prefixes=("1555999",)).passes(logged)


def test_the_event_types_are_those_of_the_interface() -> None:
    messages = "received queued sending sent unconfirmed delivered failed read"
    assert {f"message.{word}" for word in messages.split()} == MESSAGE_EVENT_TYPES
    assert {"alert.fired", "alert.resolved"} == ALERT_EVENT_TYPES
    assert EVENT_TYPES == MESSAGE_EVENT_TYPES | ALERT_EVENT_TYPES


FIRED = frozenset({"alert.fired"})


@pytest.mark.parametrize(
    ("chosen", "named", "passes"),
    [
        # without types there are no alerts
        (Filter(sink="crm"), None, False),
        (Filter(sink="crm", types=frozenset({"message.failed"})), None, False),
        (Filter(sink="crm", types=FIRED), None, True),
        (Filter(sink="crm", types=frozenset({"alert.resolved"})), None, False),
        # what is said about messages says nothing about alerts
        (Filter(sink="crm", types=FIRED, changes_only=True, direction=Direction.IN, tag_prefixes=("a",)), None, True),
        (Filter(sink="crm", types=FIRED, applications=frozenset({"a"}), number_prefixes=("1",)), None, True),
        # the rule names sinks: these alone
        (Filter(sink="crm"), {"crm"}, True),
        (Filter(sink="crm", types=FIRED), {"ops"}, False),
        (Filter(sink="crm", types=FIRED), set(), False),
        # a consumer that is no sink
        (Filter(types=FIRED), {"ops"}, True),
        (Filter(), {"ops"}, False),
    ],
)
def test_alert_event_passes_where_its_type_is_named_or_its_rule_names_the_sink(
    chosen: Filter, named: set[str] | None, passes: bool
) -> None:
    sinks = frozenset(named) if named is not None else None
    event = AlertEvent(
        id="e", alert_id="a", transition="fired", occurred_at=AT, received_at=AT, alert={"id": "a"}, sinks=sinks
    )
    assert chosen.passes(AlertEntry(position=1, event=event)) is passes


def test_filter_that_names_alerts_alone_passes_no_event_of_a_message() -> None:
    assert not Filter(sink="crm", types=FIRED).passes(entry(Status.FAILED))
