"""What becomes of a message."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.domain.events import Api
from receiver.sandbox.faults import Fault, Rates
from receiver.sandbox.numbers import magic_numbers, of, of_code
from receiver.sandbox.scenario import write, write_inbound
from receiver.sandbox.timeline import FINAL, Kind, Outcome, Receipts, Script, Sending

ONE, TWO = "+19195551213", "+19195551214"
_GOOD = Rates()

shares = st.floats(0, 1)
rates = st.builds(
    Rates,
    failed=st.floats(0, 0.5),
    unconfirmed=st.floats(0, 0.5),
    **{each.value: shares for each in Fault},
)
numbers = st.sampled_from([ONE, TWO, "+19195551215", *(each.number for each in magic_numbers())])
v2_sendings = st.builds(
    Sending,
    api=st.just(Api.V2),
    recipients=st.lists(numbers, min_size=1, max_size=10, unique=True).map(tuple),
    is_mms=st.booleans(),
    mms_receipts=st.booleans(),
    sent_events=st.booleans(),
)
v1_sendings = st.builds(
    Sending,
    api=st.just(Api.V1),
    recipients=numbers.map(lambda number: (number,)),
    receipts=st.sampled_from(Receipts),
) | st.builds(Sending, api=st.just(Api.V1), recipients=numbers.map(lambda number: (number,)), is_mms=st.just(True))
sendings = v1_sendings | v2_sendings


def script(api: Api, *to: str, **more: Any) -> Script:
    return write(Sending(api=api, recipients=to, **more), _GOOD, seed=1, ordinal=1)


def told(script: Script, recipient: str | None = None) -> list[tuple[Kind, int | None]]:
    return [(step.kind, step.code) for step in script.steps if recipient in (None, step.recipient)]


def test_a_v1_message_without_receipts_is_sent() -> None:
    assert told(script(Api.V1, ONE)) == [(Kind.SENT, None)]


def test_a_v1_message_with_receipts_waits_then_is_delivered_with_code_0() -> None:
    assert told(script(Api.V1, ONE, receipts=Receipts.ALL)) == [(Kind.WAITING, None), (Kind.DELIVERED, 0)]


def test_error_receipts_tell_of_failures_alone() -> None:
    failing = of_code(Api.V1, 720)
    assert told(script(Api.V1, ONE, receipts=Receipts.ERROR)) == [(Kind.SENT, None)]
    assert told(script(Api.V1, failing, receipts=Receipts.ERROR)) == [(Kind.SENT, None), (Kind.FAILED, 720)]


def test_without_receipts_nobody_hears_of_a_failure_in_the_network() -> None:
    assert told(script(Api.V1, of_code(Api.V1, 720))) == [(Kind.SENT, None)]


def test_spam_is_told_even_without_receipts_but_not_its_code() -> None:
    spam = of_code(Api.V1, 188)
    assert told(script(Api.V1, spam)) == [(Kind.FAILED, None)]
    assert told(script(Api.V1, spam, receipts=Receipts.ALL)) == [(Kind.FAILED, 188)]


def test_a_v1_mms_has_no_receipts_but_its_error_tells_the_code() -> None:
    assert told(script(Api.V1, ONE, is_mms=True)) == [(Kind.SENT, None)]
    assert told(script(Api.V1, of_code(Api.V1, 751), is_mms=True)) == [(Kind.SENT, None), (Kind.FAILED, 751)]


def test_a_v2_sms_is_delivered_and_that_is_all() -> None:
    assert told(script(Api.V2, ONE)) == [(Kind.DELIVERED, None)]


def test_a_v2_mms_is_sending_then_delivered() -> None:
    assert told(script(Api.V2, ONE, is_mms=True)) == [(Kind.SENDING, None), (Kind.DELIVERED, None)]


def test_without_mms_receipts_an_mms_is_delivered_whatever_the_carrier_makes_of_it() -> None:
    assert told(script(Api.V2, ONE, is_mms=True, mms_receipts=False)) == [(Kind.DELIVERED, None)]
    failing = script(Api.V2, of_code(Api.V2, 4750), is_mms=True, mms_receipts=False)
    assert told(failing) == [(Kind.DELIVERED, None)]


def test_sent_events_come_before_the_final_one() -> None:
    assert told(script(Api.V2, ONE, sent_events=True)) == [(Kind.SENT, None), (Kind.DELIVERED, None)]


def test_what_is_refused_before_the_network_is_never_sending() -> None:
    refused = script(Api.V2, of_code(Api.V2, 4432), is_mms=True, sent_events=True)
    assert told(refused) == [(Kind.FAILED, 4432)]


def test_a_message_is_read_after_it_is_delivered() -> None:
    assert told(script(Api.V2, "+15552090100")) == [(Kind.DELIVERED, None), (Kind.READ, None)]


def test_a_group_has_one_final_event_for_each_recipient() -> None:
    group = script(Api.V2, ONE, TWO)
    assert told(group, ONE) == told(group, TWO) == [(Kind.SENDING, None), (Kind.DELIVERED, None)]


def test_a_group_with_an_invalid_number_is_told_as_failed_then_delivered_for_every_number() -> None:
    invalid = of_code(Api.V2, 4720)
    group = script(Api.V2, ONE, invalid, TWO)
    assert group.steps[0].recipient == invalid
    assert told(group, invalid) == [(Kind.FAILED, 4720), (Kind.DELIVERED, None)]
    delivered = [step.recipient for step in group.steps if step.kind is Kind.DELIVERED]
    assert sorted(delivered) == sorted([ONE, TWO, invalid])


def test_an_invalid_number_alone_fails_and_nothing_else() -> None:
    assert told(script(Api.V2, of_code(Api.V2, 4720))) == [(Kind.FAILED, 4720)]


def test_an_outcome_for_everybody_beats_magic() -> None:
    sending = Sending(api=Api.V2, recipients=(ONE, of_code(Api.V2, 4720)))
    forced = write(sending, _GOOD, seed=1, ordinal=1, outcome=Outcome(Kind.FAILED, 4405))
    assert {step.code for step in forced.steps} == {4405}


@pytest.mark.parametrize("entry", [each for each in magic_numbers() if each.outcome], ids=lambda each: each.number)
def test_every_code_comes_out_as_it_was_asked_for(entry: Any) -> None:
    sending = Sending(api=entry.api, recipients=(entry.number,), receipts=Receipts.ALL)
    steps = write(sending, _GOOD, seed=1, ordinal=1).steps
    assert steps[-1].kind is entry.outcome.kind
    assert steps[-1].code == entry.outcome.code


@given(sendings, rates, st.integers(), st.integers(min_value=1))
def test_the_same_seed_ordinal_and_rates_give_the_same_script(
    sending: Sending, rates: Rates, seed: int, ordinal: int
) -> None:
    assert write(sending, rates, seed=seed, ordinal=ordinal) == write(sending, rates, seed=seed, ordinal=ordinal)


def test_a_script_is_the_same_in_every_process() -> None:
    # written down once: what depended on a hash seed or on the clock would differ
    steps = script(Api.V2, ONE, TWO).steps
    assert [(round(step.after, 3), str(step.kind), step.recipient) for step in steps] == [
        (0.535, "sending", ONE),
        (0.936, "sending", TWO),
        (5.443, "delivered", TWO),
        (6.623, "delivered", ONE),
    ]


def test_other_seeds_and_ordinals_give_other_scripts() -> None:
    sending = Sending(api=Api.V2, recipients=(ONE,))
    scripts = [write(sending, _GOOD, seed=seed, ordinal=ordinal) for seed in range(5) for ordinal in range(5)]
    assert len({each.steps for each in scripts}) == len(scripts)


@given(sendings, rates, st.integers(0, 1000))
def test_posts_tell_nothing_before_it_happened_and_come_in_their_order(
    sending: Sending, rates: Rates, ordinal: int
) -> None:
    posts = write(sending, rates, seed=1, ordinal=ordinal).posts
    assert all(step.after <= post.after for post in posts for step in post.steps)
    assert [post.after for post in posts] == sorted(post.after for post in posts)
    assert all(post.steps for post in posts)
    assert sending.api is Api.V2 or all(len(post.steps) == 1 for post in posts)


@given(sendings, st.integers(0, 1000))
def test_without_misbehaviour_every_step_is_told_once_as_it_happens(sending: Sending, ordinal: int) -> None:
    plain = Sending(
        api=sending.api, recipients=(ONE,), is_mms=sending.is_mms, receipts=sending.receipts, sent_events=True
    )
    script = write(plain, _GOOD, seed=1, ordinal=ordinal)
    assert [(post.after, post.steps) for post in script.posts] == [(step.after, (step,)) for step in script.steps]


@given(sendings, st.floats(0, 1), st.integers(0, 1000))
def test_a_rate_does_not_move_what_it_is_not_about(sending: Sending, share: float, ordinal: int) -> None:
    quiet = write(sending, Rates(missing=0), seed=1, ordinal=ordinal)
    rated = write(sending, Rates(missing=share), seed=1, ordinal=ordinal)
    assert rated.steps == quiet.steps


def test_rates_come_true_in_the_long_run() -> None:
    sending = Sending(api=Api.V2, recipients=(ONE,))
    rates = Rates(failed=0.2, unconfirmed=0.1)
    last = [write(sending, rates, seed=1, ordinal=ordinal).steps[-1] for ordinal in range(3000)]
    unconfirmed = sum(step.code in (9902, 9999) for step in last)
    failed = sum(step.kind is Kind.FAILED for step in last) - unconfirmed
    assert 500 < failed < 700
    assert 220 < unconfirmed < 380
    assert len({step.code for step in last}) > 60


def test_an_inbound_message_is_received_once() -> None:
    script = write_inbound(Api.V2, ONE, TWO, _GOOD, seed=1, ordinal=1)
    assert [(post.after, post.steps[0].kind) for post in script.posts] == [(0.0, Kind.RECEIVED)]


@given(st.sampled_from(Api), rates, st.integers(0, 1000))
def test_an_inbound_message_has_no_receipts_whatever_the_rates(api: Api, rates: Rates, ordinal: int) -> None:
    script = write_inbound(api, ONE, TWO, rates, seed=1, ordinal=ordinal)
    kinds = {step.kind for post in script.posts for step in post.steps}
    assert kinds.isdisjoint(FINAL)


def test_a_senders_magic_number_misbehaves_too() -> None:
    script = write_inbound(Api.V2, ONE, of(Fault.DUPLICATE), _GOOD, seed=1, ordinal=1)
    assert len(script.posts) > 1
