"""What the other side must know, against what the receiver makes of the same callbacks."""

import random
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.domain.callbacks import Callback
from receiver.domain.delivery import fold
from receiver.domain.events import Api, Direction, Event, Quarantine, number_key
from receiver.providers.parser import read
from receiver.sandbox import v1, v2
from receiver.sandbox.expected import Truth, truths
from receiver.sandbox.faults import Fault, Rates
from receiver.sandbox.messages import Destination, Message
from receiver.sandbox.numbers import of, of_code
from receiver.sandbox.scenario import write, write_inbound
from receiver.sandbox.timeline import Kind, Post, Receipts, Sending, Step
from tests.events import at
from tests.unit.test_sandbox_scripts import rates, sendings

MADE = datetime(2026, 1, 1, tzinfo=UTC)
URI = "https://api.catapult.inetwork.com/v1/users/u-1/messages/m-1"


def message(sending: Sending, rates: Rates | None = None, *, ordinal: int = 1, **more: Any) -> Message:
    facts: dict[str, Any] = {
        "api": sending.api,
        "id": "m-1",
        "ordinal": ordinal,
        "user": "u-1",
        "direction": Direction.OUT,
        "sender": "+19195551212",
        "recipients": sending.recipients,
        "owner": "+19195551212",
        "created_at": MADE,
        "script": write(sending, rates or Rates(), seed=1, ordinal=ordinal),
        "destination": Destination(),
        "uri": URI,
        "text": "hello",
        "media": ("http://example.com/a.jpg",) if sending.is_mms else (),
        "receipts": sending.receipts,
    }
    return Message(**{**facts, **more})


def callback(sent: Message, post: Post, number: int, *, by_get: bool = False) -> Callback:
    if sent.api is Api.V2:
        body: Any = [v2.event(sent, step, 1.0) for step in post.steps]
    else:
        body = v1.event(sent, post.steps[0], URI)
    return Callback(
        id=f"callback-{number}",
        received_at=at(number),
        api=sent.api,
        route="primary",
        method="GET" if by_get else "POST",
        query=v1.query(body) if by_get else "",
        body=b"" if by_get else orjson.dumps(body),
    )


def receive(sent: Message, posts: list[Post], *, by_get: bool = False) -> tuple[list[Event], list[Quarantine]]:
    """What the receiver reads, and why it did not read the rest; what got through is confirmed."""
    elements = [
        element for number, post in enumerate(posts) for element in read(callback(sent, post, number, by_get=by_get))
    ]
    for post in posts:
        sent.confirmed.update(post.steps)
    events = [element for element in elements if isinstance(element, Event)]
    return events, [element.reason for element in elements if not isinstance(element, Event)]


def agreed(sent: Message, events: list[Event]) -> None:
    """Fails unless the receiver's merge gives what the sandbox says."""
    told = {number_key(truth.recipient): truth for truth in truths(sent)}
    if not events:
        assert all(truth.status is None for truth in told.values())
        return
    rows = {number_key(row.number): row.delivery for row in fold(events).recipients()}
    assert rows.keys() == told.keys()
    for key, truth in told.items():
        row = rows[key]
        assert (row.status, row.code, row.contradicted) == (truth.status, truth.code, truth.contradicted)


@given(sendings, rates, st.integers(1, 10**6), st.data())
def test_the_receiver_says_what_the_sandbox_knows(sending: Sending, rates: Rates, ordinal: int, data: Any) -> None:
    sent = message(sending, rates, ordinal=ordinal)
    # some callbacks are lost on the way
    posts = [post for post in sent.script.posts if data.draw(st.integers(0, 4))]
    by_get = sending.api is Api.V1 and data.draw(st.booleans())
    events, unread = receive(sent, posts, by_get=by_get)
    assert unread == [Quarantine.UNKNOWN_TYPE] * sum(
        step.kind is Kind.UNFAMILIAR for post in posts for step in post.steps
    )
    agreed(sent, events)


@given(st.sampled_from(Api), rates, st.integers(1, 10**6), st.integers(0, 3))
def test_the_receiver_takes_inbound_messages_for_what_they_are(
    api: Api, rates: Rates, ordinal: int, others: int
) -> None:
    owner, sender = "+19195551212", "+19195551213"
    more = tuple(f"+1919555{number:04}" for number in range(others)) if api is Api.V2 else ()
    inbound = message(
        Sending(api=api, recipients=(owner, *more)),
        direction=Direction.IN,
        sender=sender,
        script=write_inbound(api, owner, sender, rates, seed=1, ordinal=ordinal),
    )
    events, _ = receive(inbound, list(inbound.script.posts))
    agreed(inbound, events)


def test_every_misbehaviour_at_once_in_one_group_is_still_agreed_upon() -> None:
    group = (*(of(each) for each in Fault if each is not Fault.SILENT), of_code(Api.V2, 4720))
    for ordinal in range(200):
        sent = message(Sending(api=Api.V2, recipients=group), ordinal=ordinal)
        posts = list(sent.script.posts)
        random.Random(ordinal).shuffle(posts)
        events, _ = receive(sent, posts)
        agreed(sent, events)


def only(sent: Message) -> Truth:
    (truth,) = truths(sent)
    return truth


def test_nothing_is_known_of_what_was_never_told() -> None:
    sent = message(Sending(api=Api.V2, recipients=("+1",)))
    assert (only(sent).status, only(sent).code, only(sent).certain) == (None, None, True)


def test_what_ended_without_an_answer_is_not_certain_until_it_is_confirmed() -> None:
    sent = message(Sending(api=Api.V2, recipients=("+19195551213",)))
    sent.unsure.update(sent.script.steps)
    assert only(sent).status is None
    assert not only(sent).certain
    sent.confirmed.update(sent.script.steps)
    assert only(sent).status == "delivered"
    assert only(sent).certain


def test_what_is_not_known_of_one_recipient_of_a_group_is_unknown() -> None:
    sent = message(Sending(api=Api.V2, recipients=("+19195551213", "+19195551214")))
    sent.confirmed.add(Step(1.0, Kind.DELIVERED, "+19195551213"))
    assert [truth.status for truth in truths(sent)] == ["delivered", "unknown"]


@pytest.mark.parametrize(("api", "code"), [(Api.V1, 902), (Api.V1, 999), (Api.V2, 9902), (Api.V2, 9999)])
def test_codes_that_prove_nothing_are_unconfirmed(api: Api, code: int) -> None:
    sent = message(Sending(api=api, recipients=(of_code(api, code),), receipts=Receipts.ALL))
    sent.confirmed.update(sent.script.steps)
    assert (only(sent).status, only(sent).code) == ("unconfirmed", code)


def test_delivered_beats_a_doubt_and_contradicts_nothing() -> None:
    sent = message(Sending(api=Api.V2, recipients=("+1",)))
    sent.confirmed = {Step(1, Kind.FAILED, "+1", 9902), Step(2, Kind.DELIVERED, "+1")}
    assert (only(sent).status, only(sent).code, only(sent).contradicted) == ("delivered", None, False)


def test_a_failure_beats_delivered_and_is_beaten_by_read() -> None:
    sent = message(Sending(api=Api.V2, recipients=("+1",)))
    sent.confirmed = {Step(1, Kind.DELIVERED, "+1"), Step(2, Kind.FAILED, "+1", 4750)}
    assert (only(sent).status, only(sent).code, only(sent).contradicted) == ("failed", 4750, True)
    sent.confirmed.add(Step(3, Kind.READ, "+1"))
    assert (only(sent).status, only(sent).code, only(sent).contradicted) == ("read", None, True)
