"""Faults between an event and its callback."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from receiver.domain.events import Api
from receiver.sandbox.scenario import FINAL, Kind, Receipts, Scenario, Sending, Step
from receiver.sandbox.scenario_writer import code_number, fault_number, write_scenario
from receiver.sandbox.settings import Fault, Rates

HOUR = 3600
ORDINALS = range(1, 30)


def scenarios(*to: str, api: Api = Api.V2, rates: Rates | None = None, **more: Any) -> list[Scenario]:
    """Scenarios that differ only in their random numbers."""
    sending = Sending(api=api, recipients=to, **more)
    return [write_scenario(sending, rates or Rates(), seed=1, ordinal=ordinal) for ordinal in ORDINALS]


def events(scenario: Scenario) -> list[Step]:
    return [step for callback in scenario.callbacks for step in callback.steps]


def test_duplicate_sends_every_callback_two_or_three_times() -> None:
    counts = {len(scenario.callbacks) for scenario in scenarios(fault_number(Fault.DUPLICATE))}
    assert counts == {2, 3}
    assert all(len(set(events(scenario))) == 1 for scenario in scenarios(fault_number(Fault.DUPLICATE)))


def test_reorder_reverses_the_callbacks() -> None:
    for scenario in scenarios(fault_number(Fault.REORDER)):
        assert [step.kind for step in events(scenario)] == [Kind.DELIVERED, Kind.SENT]


def test_reorder_sends_v1_delivered_before_waiting() -> None:
    for scenario in scenarios(fault_number(Fault.REORDER), api=Api.V1, receipts=Receipts.ALL):
        assert [step.kind for step in events(scenario)] == [Kind.DELIVERED, Kind.WAITING]


def test_delay_is_5_to_120_seconds() -> None:
    for scenario in scenarios(fault_number(Fault.DELAY)):
        assert all(5 <= callback.after - callback.steps[0].after <= 120 for callback in scenario.callbacks)


def test_late_delays_only_the_final_receipt_by_hours() -> None:
    for scenario in scenarios(fault_number(Fault.LATE), is_mms=True):
        sending, final = scenario.callbacks
        assert sending.after == sending.steps[0].after
        assert HOUR <= final.after - final.steps[0].after <= 20 * HOUR


def test_missing_drops_the_final_receipt() -> None:
    for scenario in scenarios(fault_number(Fault.MISSING), is_mms=True):
        assert [step.kind for step in scenario.steps] == [Kind.SENDING, Kind.DELIVERED]
        assert [step.kind for step in events(scenario)] == [Kind.SENDING]


def test_silent_concerns_one_recipient_only() -> None:
    for scenario in scenarios(fault_number(Fault.SILENT), "+19195551213"):
        assert {step.recipient for step in events(scenario)} == {"+19195551213"}


@pytest.mark.parametrize(
    ("api", "more", "code"), [(Api.V2, {}, 4750), (Api.V1, {"receipts": Receipts.ALL}, 750)], ids=str
)
def test_contradict_sends_delivered_and_failed(api: Api, more: dict[str, Any], code: int) -> None:
    for scenario in scenarios(fault_number(Fault.CONTRADICT), api=api, **more):
        final = [(step.kind, step.code) for step in events(scenario) if step.kind in FINAL]
        assert sorted(final) == [(Kind.DELIVERED, 0 if api is Api.V1 else None), (Kind.FAILED, code)]


def test_contradict_keeps_the_code_of_a_failure() -> None:
    for scenario in scenarios(code_number(Api.V2, 4770), rates=Rates(contradict=1)):
        assert [step.code for step in events(scenario) if step.kind is Kind.FAILED] == [4770]


def test_contradict_adds_a_definite_failure_to_an_unconfirmed_code() -> None:
    for scenario in scenarios(code_number(Api.V2, 9902), rates=Rates(contradict=1)):
        assert {step.code for step in events(scenario) if step.kind is Kind.FAILED} == {9902, 4750}


@pytest.mark.parametrize("receipts", [Receipts.NONE, Receipts.ERROR])
def test_contradict_needs_requested_receipts(receipts: Receipts) -> None:
    for scenario in scenarios(fault_number(Fault.CONTRADICT), api=Api.V1, receipts=receipts):
        assert [step.kind for step in events(scenario)] == [Kind.SENT]


@pytest.mark.parametrize("api", [Api.V1, Api.V2])
def test_unknown_type_adds_an_event(api: Api) -> None:
    for scenario in scenarios(fault_number(Fault.UNKNOWN_TYPE), api=api):
        kinds = [step.kind for step in events(scenario)]
        assert kinds.count(Kind.UNKNOWN_TYPE) == 1
        assert len(kinds) == 2


def test_batch_has_several_events_each_once() -> None:
    for scenario in scenarios(fault_number(Fault.BATCH), "+19195551213", "+19195551214"):
        assert max(len(callback.steps) for callback in scenario.callbacks) > 1
        assert sorted(step.after for step in events(scenario)) == [step.after for step in scenario.steps]


def test_batch_of_a_single_sms_has_sent_and_delivered() -> None:
    for scenario in scenarios(fault_number(Fault.BATCH)):
        assert [[step.kind for step in callback.steps] for callback in scenario.callbacks] == [
            [Kind.SENT, Kind.DELIVERED]
        ]


def test_batch_does_not_wait_for_a_late_receipt() -> None:
    for scenario in scenarios(fault_number(Fault.BATCH), fault_number(Fault.LATE)):
        assert scenario.callbacks[0].after < 60


def test_v1_has_no_batch() -> None:
    for scenario in scenarios(fault_number(Fault.BATCH), api=Api.V1, receipts=Receipts.ALL):
        assert [len(callback.steps) for callback in scenario.callbacks] == [1, 1]


@pytest.mark.parametrize("fault", Fault)
def test_rate_of_1_always_applies_and_rate_of_0_never(fault: Fault) -> None:
    plain = scenarios("+19195551213", is_mms=True)
    always = scenarios("+19195551213", is_mms=True, rates=Rates(**{fault: 1}))
    assert all(scenario.callbacks != faulty.callbacks for scenario, faulty in zip(plain, always, strict=True))
    never = scenarios("+19195551213", is_mms=True, rates=Rates(**{fault: 0}))
    assert [scenario.callbacks for scenario in never] == [scenario.callbacks for scenario in plain]


@settings(max_examples=20)
@given(st.floats(0, 1))
def test_rates_are_shares_of_recipients(share: float) -> None:
    rates = Rates(silent=share)
    sending = Sending(api=Api.V2, recipients=("+19195551213",))
    silent = sum(not write_scenario(sending, rates, seed=1, ordinal=ordinal).callbacks for ordinal in range(400))
    assert share * 400 - 60 <= silent <= share * 400 + 60


@pytest.mark.parametrize("wrong", [{"failed": 1.1}, {"late": -0.1}, {"failed": 0.6, "unconfirmed": 0.5}, {"lates": 0}])
def test_invalid_rates_are_rejected(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Rates(**wrong)
