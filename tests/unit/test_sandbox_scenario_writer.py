"""Scenarios of messages."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.domain.events import Api
from receiver.sandbox.scenario import FINAL, FinalStatus, Kind, PlannedCallback, Receipts, Scenario, Sending
from receiver.sandbox.scenario_writer import (
    code_number,
    fault_number,
    magic_numbers,
    write_inbound_scenario,
    write_scenario,
)
from receiver.sandbox.settings import Fault, Rates

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


def scenario(api: Api, *to: str, **more: Any) -> Scenario:
    return write_scenario(Sending(api=api, recipients=to, **more), _GOOD, seed=1, ordinal=1)


def outcomes(scenario: Scenario, recipient: str | None = None) -> list[tuple[Kind, int | None]]:
    return [(step.kind, step.code) for step in scenario.steps if recipient in (None, step.recipient)]


def test_v1_without_receipts_ends_with_sent() -> None:
    assert outcomes(scenario(Api.V1, ONE)) == [(Kind.SENT, None)]


def test_v1_with_all_receipts_is_waiting_then_delivered_with_code_0() -> None:
    assert outcomes(scenario(Api.V1, ONE, receipts=Receipts.ALL)) == [(Kind.WAITING, None), (Kind.DELIVERED, 0)]


def test_v1_error_receipts_report_only_failures() -> None:
    failing = code_number(Api.V1, 720)
    assert outcomes(scenario(Api.V1, ONE, receipts=Receipts.ERROR)) == [(Kind.SENT, None)]
    assert outcomes(scenario(Api.V1, failing, receipts=Receipts.ERROR)) == [(Kind.SENT, None), (Kind.FAILED, 720)]


def test_v1_without_receipts_does_not_report_a_network_failure() -> None:
    assert outcomes(scenario(Api.V1, code_number(Api.V1, 720))) == [(Kind.SENT, None)]


def test_v1_spam_without_receipts_is_reported_without_its_code() -> None:
    spam = code_number(Api.V1, 188)
    assert outcomes(scenario(Api.V1, spam)) == [(Kind.FAILED, None)]
    assert outcomes(scenario(Api.V1, spam, receipts=Receipts.ALL)) == [(Kind.FAILED, 188)]


def test_v1_mms_has_no_receipts_but_its_error_has_the_code() -> None:
    assert outcomes(scenario(Api.V1, ONE, is_mms=True)) == [(Kind.SENT, None)]
    assert outcomes(scenario(Api.V1, code_number(Api.V1, 751), is_mms=True)) == [(Kind.SENT, None), (Kind.FAILED, 751)]


def test_v2_sms_is_delivered() -> None:
    assert outcomes(scenario(Api.V2, ONE)) == [(Kind.DELIVERED, None)]


def test_v2_mms_is_sending_then_delivered() -> None:
    assert outcomes(scenario(Api.V2, ONE, is_mms=True)) == [(Kind.SENDING, None), (Kind.DELIVERED, None)]


def test_v2_mms_without_mms_receipts_is_delivered_even_if_the_carrier_fails() -> None:
    assert outcomes(scenario(Api.V2, ONE, is_mms=True, mms_receipts=False)) == [(Kind.DELIVERED, None)]
    failing = scenario(Api.V2, code_number(Api.V2, 4750), is_mms=True, mms_receipts=False)
    assert outcomes(failing) == [(Kind.DELIVERED, None)]


def test_sent_events_come_before_the_final_event() -> None:
    assert outcomes(scenario(Api.V2, ONE, sent_events=True)) == [(Kind.SENT, None), (Kind.DELIVERED, None)]


def test_failure_before_the_network_has_no_sending_event() -> None:
    refused = scenario(Api.V2, code_number(Api.V2, 4432), is_mms=True, sent_events=True)
    assert outcomes(refused) == [(Kind.FAILED, 4432)]


def test_read_comes_after_delivered() -> None:
    assert outcomes(scenario(Api.V2, "+15552090100")) == [(Kind.DELIVERED, None), (Kind.READ, None)]


def test_group_has_a_final_event_for_each_recipient() -> None:
    group = scenario(Api.V2, ONE, TWO)
    assert outcomes(group, ONE) == outcomes(group, TWO) == [(Kind.SENDING, None), (Kind.DELIVERED, None)]


def test_group_with_invalid_number_is_failed_then_delivered_for_every_number() -> None:
    invalid = code_number(Api.V2, 4720)
    group = scenario(Api.V2, ONE, invalid, TWO)
    assert group.steps[0].recipient == invalid
    assert outcomes(group, invalid) == [(Kind.FAILED, 4720), (Kind.DELIVERED, None)]
    delivered = [step.recipient for step in group.steps if step.kind is Kind.DELIVERED]
    assert sorted(delivered) == sorted([ONE, TWO, invalid])


def test_single_invalid_number_only_fails() -> None:
    assert outcomes(scenario(Api.V2, code_number(Api.V2, 4720))) == [(Kind.FAILED, 4720)]


def test_given_final_status_wins_over_magic_numbers() -> None:
    sending = Sending(api=Api.V2, recipients=(ONE, code_number(Api.V2, 4720)))
    forced = write_scenario(sending, _GOOD, seed=1, ordinal=1, final_status=FinalStatus(Kind.FAILED, 4405))
    assert {step.code for step in forced.steps} == {4405}


@pytest.mark.parametrize("entry", [each for each in magic_numbers() if each.final_status], ids=lambda each: each.number)
def test_every_code_number_ends_with_its_code(entry: Any) -> None:
    sending = Sending(api=entry.api, recipients=(entry.number,), receipts=Receipts.ALL)
    steps = write_scenario(sending, _GOOD, seed=1, ordinal=1).steps
    assert steps[-1].kind is entry.final_status.kind
    assert steps[-1].code == entry.final_status.code


@given(sendings, rates, st.integers(), st.integers(min_value=1))
def test_same_seed_ordinal_and_rates_give_the_same_scenario(
    sending: Sending, rates: Rates, seed: int, ordinal: int
) -> None:
    first, second = (write_scenario(sending, rates, seed=seed, ordinal=ordinal) for _ in range(2))
    assert first == second


def test_scenario_is_the_same_in_every_process() -> None:
    # written down once: what depended on a hash seed or on the clock would differ
    steps = scenario(Api.V2, ONE, TWO).steps
    assert [(round(step.after, 3), str(step.kind), step.recipient) for step in steps] == [
        (0.535, "sending", ONE),
        (0.936, "sending", TWO),
        (5.443, "delivered", TWO),
        (6.623, "delivered", ONE),
    ]


def test_other_seeds_and_ordinals_give_other_scenarios() -> None:
    sending = Sending(api=Api.V2, recipients=(ONE,))
    keys = itertools.product(range(5), range(5))
    scenarios = [write_scenario(sending, _GOOD, seed=seed, ordinal=ordinal) for seed, ordinal in keys]
    assert len({each.steps for each in scenarios}) == len(scenarios)


@given(sendings, rates, st.integers(0, 1000))
def test_callbacks_come_after_their_events_and_by_due_time(sending: Sending, rates: Rates, ordinal: int) -> None:
    callbacks = write_scenario(sending, rates, seed=1, ordinal=ordinal).callbacks
    assert all(step.after <= callback.after for callback in callbacks for step in callback.steps)
    assert [callback.after for callback in callbacks] == sorted(callback.after for callback in callbacks)
    assert all(callback.steps for callback in callbacks)
    assert sending.api is Api.V2 or all(len(callback.steps) == 1 for callback in callbacks)


@given(sendings, st.integers(0, 1000))
def test_without_faults_every_step_has_one_callback_at_once(sending: Sending, ordinal: int) -> None:
    plain = Sending(
        api=sending.api, recipients=(ONE,), is_mms=sending.is_mms, receipts=sending.receipts, sent_events=True
    )
    scenario = write_scenario(plain, _GOOD, seed=1, ordinal=ordinal)
    assert list(scenario.callbacks) == [PlannedCallback(step.after, (step,)) for step in scenario.steps]


@given(sendings, st.floats(0, 1), st.integers(0, 1000))
def test_fault_rate_does_not_change_the_steps(sending: Sending, share: float, ordinal: int) -> None:
    quiet = write_scenario(sending, Rates(missing=0), seed=1, ordinal=ordinal)
    rated = write_scenario(sending, Rates(missing=share), seed=1, ordinal=ordinal)
    assert rated.steps == quiet.steps


def test_shares_of_failed_and_unconfirmed_approach_the_rates() -> None:
    sending = Sending(api=Api.V2, recipients=(ONE,))
    rates = Rates(failed=0.2, unconfirmed=0.1)
    last = [write_scenario(sending, rates, seed=1, ordinal=ordinal).steps[-1] for ordinal in range(3000)]
    unconfirmed = sum(step.code in (9902, 9999) for step in last)
    failed = sum(step.kind is Kind.FAILED for step in last) - unconfirmed
    assert 500 < failed < 700
    assert 220 < unconfirmed < 380
    assert len({step.code for step in last}) > 60


def test_inbound_message_has_one_received_event() -> None:
    scenario = write_inbound_scenario(Api.V2, ONE, TWO, _GOOD, seed=1, ordinal=1)
    assert [(callback.after, callback.steps[0].kind) for callback in scenario.callbacks] == [(0.0, Kind.RECEIVED)]


@given(st.sampled_from([Api.V1, Api.V2]), rates, st.integers(0, 1000))
def test_inbound_message_has_no_receipts_whatever_the_rates(api: Api, rates: Rates, ordinal: int) -> None:
    scenario = write_inbound_scenario(api, ONE, TWO, rates, seed=1, ordinal=ordinal)
    kinds = {step.kind for callback in scenario.callbacks for step in callback.steps}
    assert kinds.isdisjoint(FINAL)


def test_fault_number_as_inbound_sender_has_its_fault() -> None:
    scenario = write_inbound_scenario(Api.V2, ONE, fault_number(Fault.DUPLICATE), _GOOD, seed=1, ordinal=1)
    assert len(scenario.callbacks) > 1
