"""Magic numbers."""

import json
import re
from importlib.resources import files

import pytest

from receiver.domain.events import Api
from receiver.sandbox.faults import Fault
from receiver.sandbox.numbers import magic, magic_numbers, of, of_code
from receiver.sandbox.timeline import Kind, Outcome

_CODES = [
    (Api(each["api"]), each["code"], each["outcome"])
    for each in json.loads((files("receiver.providers") / "codes.json").read_bytes())
]


@pytest.mark.parametrize(("api", "code", "outcome"), _CODES)
def test_every_code_of_both_generations_has_a_number(api: Api, code: int, outcome: str) -> None:
    found = magic(api, of_code(api, code))
    assert found is not None
    assert found.outcome == Outcome(Kind.DELIVERED if outcome == "delivered" else Kind.FAILED, code)
    assert outcome in found.meaning


def test_the_scheme_is_the_documented_one() -> None:
    assert of_code(Api.V1, 720) == "+15552010720"
    assert of_code(Api.V2, 4720) == "+15552024720"
    assert of(Fault.DUPLICATE) == "+15552090001"
    assert of(Fault.BATCH) == "+15552090009"


@pytest.mark.parametrize("api", Api)
@pytest.mark.parametrize("misbehaviour", Fault)
def test_every_misbehaviour_has_a_number_in_both_generations(api: Api, misbehaviour: Fault) -> None:
    found = magic(api, of(misbehaviour))
    assert found is not None
    assert found.misbehaviour is misbehaviour


def test_a_number_means_nothing_in_the_other_generation() -> None:
    assert magic(Api.V2, of_code(Api.V1, 720)) is None
    assert magic(Api.V1, of_code(Api.V2, 4720)) is None
    assert magic(Api.V1, "+15552090100") is None


def test_a_number_of_v2_is_read() -> None:
    found = magic(Api.V2, "+15552090100")
    assert found is not None
    assert found.outcome == Outcome(Kind.READ)


def test_any_other_number_means_nothing() -> None:
    assert magic(Api.V2, "+19195551212") is None


def test_all_numbers_are_e164_and_different() -> None:
    numbers = [each.number for each in magic_numbers()]
    assert len(set(numbers)) == len(numbers) == len(_CODES) + len(Fault) + 1
    assert all(re.fullmatch(r"\+1[2-9]\d{2}[2-9]\d{6}", number) for number in numbers)
