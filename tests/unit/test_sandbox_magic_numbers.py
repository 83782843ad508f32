"""MagicNumber numbers."""

import json
import re
from importlib.resources import files

import pytest

from receiver.domain.events import Api
from receiver.sandbox.scenario import FinalStatus, Kind
from receiver.sandbox.scenario_writer import code_number, fault_number, magic_number, magic_numbers
from receiver.sandbox.settings import Fault

_CODES = [
    (Api(each["api"]), each["code"], each["outcome"])
    for each in json.loads((files("receiver.providers") / "codes.json").read_bytes())
]


@pytest.mark.parametrize(("api", "code", "outcome"), _CODES)
def test_every_code_has_a_magic_number(api: Api, code: int, outcome: str) -> None:
    found = magic_number(api, code_number(api, code))
    assert found is not None
    assert found.final_status == FinalStatus(Kind.DELIVERED if outcome == "delivered" else Kind.FAILED, code)
    assert outcome in found.meaning


def test_magic_numbers_have_the_documented_scheme() -> None:
    assert code_number(Api.V1, 720) == "+15552010720"
    assert code_number(Api.V2, 4720) == "+15552024720"
    assert fault_number(Fault.DUPLICATE) == "+15552090001"
    assert fault_number(Fault.BATCH) == "+15552090009"


@pytest.mark.parametrize("api", [Api.V1, Api.V2])
@pytest.mark.parametrize("fault", Fault)
def test_every_fault_has_a_magic_number_in_both_api_versions(api: Api, fault: Fault) -> None:
    found = magic_number(api, fault_number(fault))
    assert found is not None
    assert found.fault is fault


def test_code_number_is_ordinary_in_the_other_api_version() -> None:
    assert magic_number(Api.V2, code_number(Api.V1, 720)) is None
    assert magic_number(Api.V1, code_number(Api.V2, 4720)) is None
    assert magic_number(Api.V1, "+15552090100") is None


def test_read_number_is_read() -> None:
    found = magic_number(Api.V2, "+15552090100")
    assert found is not None
    assert found.final_status == FinalStatus(Kind.READ)


def test_other_numbers_are_ordinary() -> None:
    assert magic_number(Api.V2, "+19195551212") is None


def test_magic_numbers_are_e164_and_unique() -> None:
    numbers = [each.number for each in magic_numbers()]
    assert len(set(numbers)) == len(numbers) == len(_CODES) + len(Fault) + 1
    assert all(re.fullmatch(r"\+1[2-9]\d{2}[2-9]\d{6}", number) for number in numbers)
