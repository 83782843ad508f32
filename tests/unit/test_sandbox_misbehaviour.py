"""What goes wrong between an event and its callback."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from receiver.domain.events import Api
from receiver.sandbox.faults import Fault, Rates
from receiver.sandbox.numbers import of, of_code
from receiver.sandbox.scenario import write
from receiver.sandbox.timeline import FINAL, Kind, Receipts, Script, Sending, Step

HOUR = 3600
ORDINALS = range(1, 30)


def scripts(*to: str, api: Api = Api.V2, rates: Rates | None = None, **more: Any) -> list[Script]:
    """A number of scripts that differ in chance alone."""
    sending = Sending(api=api, recipients=to, **more)
    return [write(sending, rates or Rates(), seed=1, ordinal=ordinal) for ordinal in ORDINALS]


def events(script: Script) -> list[Step]:
    return [step for post in script.posts for step in post.steps]


def test_duplicates_come_twice_or_three_times() -> None:
    counts = {len(script.posts) for script in scripts(of(Fault.DUPLICATE))}
    assert counts == {2, 3}
    assert all(len(set(events(script))) == 1 for script in scripts(of(Fault.DUPLICATE)))


def test_reordered_callbacks_come_last_first() -> None:
    for script in scripts(of(Fault.REORDER)):
        assert [step.kind for step in events(script)] == [Kind.DELIVERED, Kind.SENT]


def test_reordered_receipts_of_v1_come_before_the_waiting() -> None:
    for script in scripts(of(Fault.REORDER), api=Api.V1, receipts=Receipts.ALL):
        assert [step.kind for step in events(script)] == [Kind.DELIVERED, Kind.WAITING]


def test_delayed_callbacks_come_up_to_two_minutes_late() -> None:
    lags = [post.after - post.steps[0].after for script in scripts(of(Fault.DELAY)) for post in script.posts]
    assert all(5 <= lag <= 120 for lag in lags)


def test_late_receipts_come_hours_late_and_nothing_else_does() -> None:
    for script in scripts(of(Fault.LATE), is_mms=True):
        sending, final = script.posts
        assert sending.after == sending.steps[0].after
        assert HOUR <= final.after - final.steps[0].after <= 20 * HOUR


def test_missing_receipts_never_come() -> None:
    for script in scripts(of(Fault.MISSING), is_mms=True):
        assert [step.kind for step in script.steps] == [Kind.SENDING, Kind.DELIVERED]
        assert [step.kind for step in events(script)] == [Kind.SENDING]


def test_silence_is_for_one_recipient_alone() -> None:
    for script in scripts(of(Fault.SILENT), "+19195551213"):
        assert {step.recipient for step in events(script)} == {"+19195551213"}


@pytest.mark.parametrize(
    ("api", "more", "code"), [(Api.V2, {}, 4750), (Api.V1, {"receipts": Receipts.ALL}, 750)], ids=str
)
def test_contradictions_tell_of_delivered_and_failed(api: Api, more: dict[str, Any], code: int) -> None:
    for script in scripts(of(Fault.CONTRADICT), api=api, **more):
        final = [(step.kind, step.code) for step in events(script) if step.kind in FINAL]
        assert sorted(final) == [(Kind.DELIVERED, 0 if api is Api.V1 else None), (Kind.FAILED, code)]


def test_a_contradicted_failure_keeps_its_code() -> None:
    for script in scripts(of_code(Api.V2, 4770), rates=Rates(contradict=1)):
        assert [step.code for step in events(script) if step.kind is Kind.FAILED] == [4770]


def test_a_contradicted_doubt_becomes_a_failure() -> None:
    for script in scripts(of_code(Api.V2, 9902), rates=Rates(contradict=1)):
        assert {step.code for step in events(script) if step.kind is Kind.FAILED} == {9902, 4750}


@pytest.mark.parametrize("receipts", [Receipts.NONE, Receipts.ERROR])
def test_nothing_contradicts_receipts_that_were_not_asked_for(receipts: Receipts) -> None:
    for script in scripts(of(Fault.CONTRADICT), api=Api.V1, receipts=receipts):
        assert [step.kind for step in events(script)] == [Kind.SENT]


@pytest.mark.parametrize("api", Api)
def test_unknown_types_come_beside_the_others(api: Api) -> None:
    for script in scripts(of(Fault.UNKNOWN_TYPE), api=api):
        kinds = [step.kind for step in events(script)]
        assert kinds.count(Kind.UNFAMILIAR) == 1
        assert len(kinds) == 2


def test_batches_hold_several_events_each_once() -> None:
    for script in scripts(of(Fault.BATCH), "+19195551213", "+19195551214"):
        assert max(len(post.steps) for post in script.posts) > 1
        assert sorted(step.after for step in events(script)) == [step.after for step in script.steps]


def test_a_batch_is_made_even_for_a_single_sms() -> None:
    for script in scripts(of(Fault.BATCH)):
        assert [[step.kind for step in post.steps] for post in script.posts] == [[Kind.SENT, Kind.DELIVERED]]


def test_a_batch_does_not_wait_for_a_late_receipt() -> None:
    for script in scripts(of(Fault.BATCH), of(Fault.LATE)):
        assert script.posts[0].after < 60


def test_v1_has_no_batches() -> None:
    for script in scripts(of(Fault.BATCH), api=Api.V1, receipts=Receipts.ALL):
        assert [len(post.steps) for post in script.posts] == [1, 1]


@pytest.mark.parametrize("misbehaviour", Fault)
def test_a_rate_of_one_is_always_and_of_nought_never(misbehaviour: Fault) -> None:
    plain = scripts("+19195551213", is_mms=True)
    always = scripts("+19195551213", is_mms=True, rates=Rates(**{misbehaviour: 1}))
    assert all(one.posts != other.posts for one, other in zip(plain, always, strict=True))
    never = scripts("+19195551213", is_mms=True, rates=Rates(**{misbehaviour: 0}))
    assert [script.posts for script in never] == [script.posts for script in plain]


@settings(max_examples=20)
@given(st.floats(0, 1))
def test_rates_are_shares_of_recipients(share: float) -> None:
    rates = Rates(silent=share)
    sending = Sending(api=Api.V2, recipients=("+19195551213",))
    silent = sum(not write(sending, rates, seed=1, ordinal=ordinal).posts for ordinal in range(400))
    assert share * 400 - 60 <= silent <= share * 400 + 60


@pytest.mark.parametrize("wrong", [{"failed": 1.1}, {"late": -0.1}, {"failed": 0.6, "unconfirmed": 0.5}, {"lates": 0}])
def test_impossible_rates_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Rates(**wrong)
