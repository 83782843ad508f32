"""Which events a sink is given."""

import pytest

from receiver.domain.events import Status
from receiver.domain.filters import EVENT_TYPES, Filter
from receiver.domain.log import LogEntry, Snapshot
from tests.events import make_event

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
def test_a_filter_lets_through_what_it_names(chosen: Filter, status: Status, changed: bool, passes: bool) -> None:
    assert chosen.passes(entry(status, changed=changed)) is passes


def test_the_event_types_are_those_of_the_interface() -> None:
    messages = "received queued sending sent unconfirmed delivered failed read"
    assert {f"message.{word}" for word in messages.split()} | {"alert.fired", "alert.resolved"} == EVENT_TYPES
