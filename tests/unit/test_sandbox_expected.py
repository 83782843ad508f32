"""Expected statuses, compared with what the receiver derives from the same callbacks."""

import random
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.domain.events import Api, Callback, Direction, Event, Quarantine, number_key
from receiver.domain.message import fold
from receiver.providers import parse
from receiver.sandbox import v1, v2
from receiver.sandbox.messages import CallbackTarget, ExpectedStatus, SandboxMessage, expected_statuses
from receiver.sandbox.scenario import Kind, PlannedCallback, Receipts, Sending, Step
from receiver.sandbox.scenario_writer import code_number, fault_number, write_inbound_scenario, write_scenario
from receiver.sandbox.settings import Fault, Rates
from tests.factories import at
from tests.unit.test_sandbox_scenario_writer import rates, sendings

CREATED_AT = datetime(2026, 1, 1, tzinfo=UTC)
URI = "https://api.catapult.inetwork.com/v1/users/u-1/messages/m-1"


def message(sending: Sending, rates: Rates | None = None, *, ordinal: int = 1, **more: Any) -> SandboxMessage:
    fields: dict[str, Any] = {
        "api": sending.api,
        "id": "m-1",
        "ordinal": ordinal,
        "user": "u-1",
        "direction": Direction.OUT,
        "sender": "+19195551212",
        "recipients": sending.recipients,
        "owner": "+19195551212",
        "created_at": CREATED_AT,
        "scenario": write_scenario(sending, rates or Rates(), seed=1, ordinal=ordinal),
        "target": CallbackTarget(),
        "uri": URI,
        "text": "hello",
        "media": ("http://example.com/a.jpg",) if sending.is_mms else (),
        "receipts": sending.receipts,
    }
    return SandboxMessage(**{**fields, **more})


def request(sent: SandboxMessage, callback: PlannedCallback, number: int, *, by_get: bool = False) -> Callback:
    if sent.api is Api.V2:
        body: Any = [v2.event(sent, step, 1.0) for step in callback.steps]
    else:
        body = v1.event(sent, callback.steps[0], URI)
    return Callback(
        id=f"callback-{number}",
        received_at=at(number),
        api=sent.api,
        route="primary",
        method="GET" if by_get else "POST",
        query=v1.query(body) if by_get else "",
        body=b"" if by_get else orjson.dumps(body),
    )


def receive(
    sent: SandboxMessage, callbacks: list[PlannedCallback], *, by_get: bool = False
) -> tuple[list[Event], list[Quarantine]]:
    """Parses callbacks as the receiver does, and confirms them. Returns the events and the reasons of quarantine."""
    elements = [
        element
        for number, callback in enumerate(callbacks)
        for element in parse(request(sent, callback, number, by_get=by_get))
    ]
    for callback in callbacks:
        sent.confirmed.update(callback.steps)
    events = [element for element in elements if isinstance(element, Event)]
    return events, [element.reason for element in elements if not isinstance(element, Event)]


def assert_agreement(sent: SandboxMessage, events: list[Event]) -> None:
    """Fails unless the receiver's merge gives the expected statuses."""
    by_number = {number_key(expected.recipient): expected for expected in expected_statuses(sent)}
    if not events:
        assert all(expected.status is None for expected in by_number.values())
        return
    rows = {number_key(row.number): row.delivery for row in fold(events).recipients()}
    assert rows.keys() == by_number.keys()
    for key, expected in by_number.items():
        row = rows[key]
        assert (row.status, row.code, row.contradicted) == (expected.status, expected.code, expected.contradicted)


@given(sendings, rates, st.integers(1, 10**6), st.data())
def test_receiver_agrees_with_the_expected_status(sending: Sending, rates: Rates, ordinal: int, data: Any) -> None:
    sent = message(sending, rates, ordinal=ordinal)
    # Some callbacks are lost.
    callbacks = [callback for callback in sent.scenario.callbacks if data.draw(st.integers(0, 4))]
    by_get = sending.api is Api.V1 and data.draw(st.booleans())
    events, reasons = receive(sent, callbacks, by_get=by_get)
    assert reasons == [Quarantine.UNKNOWN_TYPE] * sum(
        step.kind is Kind.UNKNOWN_TYPE for callback in callbacks for step in callback.steps
    )
    assert_agreement(sent, events)


@given(st.sampled_from([Api.V1, Api.V2]), rates, st.integers(1, 10**6), st.integers(0, 3))
def test_receiver_agrees_about_inbound_messages(api: Api, rates: Rates, ordinal: int, others: int) -> None:
    owner, sender = "+19195551212", "+19195551213"
    more = tuple(f"+1919555{number:04}" for number in range(others)) if api is Api.V2 else ()
    inbound = message(
        Sending(api=api, recipients=(owner, *more)),
        direction=Direction.IN,
        sender=sender,
        scenario=write_inbound_scenario(api, owner, sender, rates, seed=1, ordinal=ordinal),
    )
    events, _ = receive(inbound, list(inbound.scenario.callbacks))
    assert_agreement(inbound, events)


def test_receiver_agrees_with_every_fault_in_one_group() -> None:
    group = (*(fault_number(each) for each in Fault if each is not Fault.SILENT), code_number(Api.V2, 4720))
    for ordinal in range(200):
        sent = message(Sending(api=Api.V2, recipients=group), ordinal=ordinal)
        callbacks = list(sent.scenario.callbacks)
        random.Random(ordinal).shuffle(callbacks)
        events, _ = receive(sent, callbacks)
        assert_agreement(sent, events)


def only_expected(sent: SandboxMessage) -> ExpectedStatus:
    (expected,) = expected_statuses(sent)
    return expected


def outcome(sent: SandboxMessage) -> tuple[str | None, int | None, bool]:
    expected = only_expected(sent)
    return expected.status, expected.code, expected.contradicted


def test_without_callbacks_the_expected_status_is_none() -> None:
    sent = message(Sending(api=Api.V2, recipients=("+1",)))
    assert (only_expected(sent).status, only_expected(sent).code, only_expected(sent).certain) == (None, None, True)


def test_unanswered_callback_is_uncertain_until_it_is_confirmed() -> None:
    sent = message(Sending(api=Api.V2, recipients=("+19195551213",)))
    sent.unanswered.update(sent.scenario.steps)
    assert only_expected(sent).status is None
    assert not only_expected(sent).certain
    sent.confirmed.update(sent.scenario.steps)
    assert only_expected(sent).status == "delivered"
    assert only_expected(sent).certain


def test_group_recipient_without_callback_is_unknown() -> None:
    sent = message(Sending(api=Api.V2, recipients=("+19195551213", "+19195551214")))
    sent.confirmed.add(Step(1.0, Kind.DELIVERED, "+19195551213"))
    assert [expected.status for expected in expected_statuses(sent)] == ["delivered", "unknown"]


@pytest.mark.parametrize(("api", "code"), [(Api.V1, 902), (Api.V1, 999), (Api.V2, 9902), (Api.V2, 9999)])
def test_codes_that_prove_nothing_are_unconfirmed(api: Api, code: int) -> None:
    sent = message(Sending(api=api, recipients=(code_number(api, code),), receipts=Receipts.ALL))
    sent.confirmed.update(sent.scenario.steps)
    assert (only_expected(sent).status, only_expected(sent).code) == ("unconfirmed", code)


def test_delivered_wins_over_unconfirmed_without_contradiction() -> None:
    sent = message(Sending(api=Api.V2, recipients=("+1",)))
    sent.confirmed = {Step(1, Kind.FAILED, "+1", 9902), Step(2, Kind.DELIVERED, "+1")}
    assert outcome(sent) == (
        "delivered",
        None,
        False,
    )


def test_failed_wins_over_delivered_and_read_wins_over_failed() -> None:
    sent = message(Sending(api=Api.V2, recipients=("+1",)))
    sent.confirmed = {Step(1, Kind.DELIVERED, "+1"), Step(2, Kind.FAILED, "+1", 4750)}
    assert outcome(sent) == (
        "failed",
        4750,
        True,
    )
    sent.confirmed.add(Step(3, Kind.READ, "+1"))
    assert outcome(sent) == (
        "read",
        None,
        True,
    )
