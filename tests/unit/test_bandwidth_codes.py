from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.domain.events import Api, Failure
from receiver.providers.bandwidth_codes import catalogue, failure_side, proves_nothing
from receiver.providers.registry import CodeEntry, Reason, entry, meaning, reason

V1, V2 = Api.V1, Api.V2
CATEGORIES = {"success", "client", "carrier-client", "service", "carrier-service", "ambiguous"}


def cases(*apis: Api) -> list[Any]:
    return [pytest.param(listed, id=f"{listed.api}-{listed.code}") for listed in catalogue() if listed.api in apis]


def test_the_catalogue_holds_20_codes_of_v1_and_91_of_v2() -> None:
    assert [sum(listed.api is api for listed in catalogue()) for api in (V1, V2)] == [20, 91]


def test_the_catalogue_is_in_rising_order_without_repetition() -> None:
    keys = [(listed.api, listed.code) for listed in catalogue()]
    assert keys == sorted(set(keys))


@pytest.mark.parametrize("listed", cases(V1, V2))
def test_an_entry_is_complete_and_found_by_its_number(listed: CodeEntry) -> None:
    assert entry(listed.api, listed.code) is listed
    assert listed.name
    assert listed.description
    assert listed.category in CATEGORIES
    assert listed.outcome in {"delivered", "failed", "unconfirmed"}
    assert listed.status in {"current", "historic", "unlisted"}
    assert listed.v2_analogue is None or entry(V2, listed.v2_analogue)


@pytest.mark.parametrize("listed", cases(V1, V2))
def test_the_rule_for_unconfirmed_agrees_with_the_catalogue(listed: CodeEntry) -> None:
    assert proves_nothing(listed.api, listed.code) == (listed.outcome == "unconfirmed")


def unlisted_neighbour(listed: CodeEntry) -> int:
    """A number of the same hundred that no table lists."""
    hundred = listed.code // 100 * 100
    return next(code for code in range(hundred, hundred + 100) if entry(listed.api, code) is None)


@pytest.mark.parametrize("listed", cases(V2))
def test_unlisted_code_has_the_category_of_its_listed_neighbours(listed: CodeEntry) -> None:
    meaning_of_digits = reason(V2, unlisted_neighbour(listed))
    assert meaning_of_digits.category == listed.category
    # 4785 alone says of itself that it may be retried
    assert meaning_of_digits.retryable == listed.retryable or listed.code == 4785


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (0, "Message delivered to carrier"),
        (100, "Message not delivered to carrier"),
        (187, "Statistical spam detected"),
        (188, "Keyword spam detected"),
        (189, "Spam detected"),
        (482, "Loop detected"),
        (600, "Destination carrier could not accept messages"),
        (610, "Message submittion failed"),
        (620, "Destination application error"),
        (630, "Message not acknowledge"),
        (720, "Invalid destination number"),
        (740, "Invalid source number"),
        (999, "Unknown error"),
    ],
)
def test_names_of_the_first_v1_documents_are_known(code: int, name: str) -> None:
    listed = entry(V1, code)
    assert listed
    assert name in (listed.name, listed.earlier_name)


def test_an_entry_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        catalogue()[0].name = "other"  # type: ignore[misc]


def test_one_code_has_different_meanings_in_v1_and_v2() -> None:
    assert entry(V1, 902) != entry(V2, 902)
    assert entry(V2, 902) is None
    assert entry(V1, 4432) is None


def test_the_reason_for_a_listed_code_is_its_entry() -> None:
    assert reason(V2, 4432) == Reason(
        name="rejected-forbidden-country",
        description=entry(V2, 4432).description,  # type: ignore[union-attr]
        category="client",
        retryable=False,
        billable=False,
    )


@pytest.mark.parametrize(
    ("api", "code", "category", "retryable", "billable"),
    [
        (V2, 4199, "client", False, False),
        (V2, 4399, "client", False, False),
        (V2, 4499, "client", False, False),
        (V2, 4799, "carrier-client", False, True),
        (V2, 4999, "client", False, None),
        (V2, 5199, "service", True, False),
        (V2, 5299, "service", True, False),
        (V2, 5599, "service", True, False),
        (V2, 5699, "carrier-service", True, True),
        (V2, 5998, "service", True, None),
        (V2, 9001, "ambiguous", None, True),
        (V2, 0, "success", None, None),
        (V2, 995, "unknown", None, None),
        (V2, 47990, "unknown", None, None),
        (V2, 1234, "unknown", None, None),
        (V2, -4432, "unknown", None, None),
        (V1, 699, "carrier-service", None, None),
        (V1, 799, "carrier-client", None, None),
        (V1, 950, "ambiguous", None, None),
        (V1, 300, "unknown", None, None),
        (V1, 4432, "unknown", None, None),
        (V1, 6000, "unknown", None, None),
        (V1, 60, "unknown", None, None),
    ],
)
def test_unlisted_code_is_classified_by_its_digits(
    api: Api, code: int, category: str, retryable: bool | None, billable: bool | None
) -> None:
    meaning_of_digits = reason(api, code)
    assert (meaning_of_digits.category, meaning_of_digits.retryable, meaning_of_digits.billable) == (
        category,
        retryable,
        billable,
    )
    assert meaning_of_digits.name == f"unlisted-{code}"
    assert meaning_of_digits.description


@pytest.mark.parametrize(
    ("api", "code", "side"),
    [
        (V2, 4100, Failure.REFUSED),
        (V2, 4299, Failure.REFUSED),
        (V2, 4432, Failure.REFUSED),
        (V2, 4499, Failure.REFUSED),
        (V2, 4500, Failure.OTHER),
        (V2, 4001, Failure.OTHER),
        (V2, 4700, Failure.NETWORK),
        (V2, 4799, Failure.NETWORK),
        (V2, 4800, Failure.OTHER),
        (V2, 5000, Failure.NETWORK),
        (V2, 5999, Failure.NETWORK),
        (V2, 6000, Failure.OTHER),
        (V2, 995, Failure.OTHER),
        (V2, 0, Failure.OTHER),
        (V2, None, Failure.NETWORK),
        (V1, 187, Failure.REFUSED),
        (V1, 482, Failure.REFUSED),
        (V1, 600, Failure.NETWORK),
        (V1, 770, Failure.NETWORK),
        (V1, 100, Failure.NETWORK),
        (V1, 4432, Failure.NETWORK),
        (V1, None, Failure.NETWORK),
    ],
)
def test_the_code_tells_the_side_of_a_failure(api: Api, code: int | None, side: Failure) -> None:
    assert failure_side(api, code) is side


@pytest.mark.parametrize(
    ("api", "code", "expected"),
    [
        (V2, 9000, True),
        (V2, 9999, True),
        (V2, 8999, False),
        (V2, 10000, False),
        (V2, 902, False),
        (V1, 902, True),
        (V1, 999, True),
        (V1, 950, False),
        (V1, 9902, False),
        (V1, None, False),
        (V2, None, False),
    ],
)
def test_codes_that_are_unconfirmed(api: Api, code: int | None, expected: bool) -> None:
    assert proves_nothing(api, code) is expected


@given(st.sampled_from([Api.V1, Api.V2]), st.integers(-(2**63), 2**63 - 1))
def test_every_number_has_a_reason_and_a_side(api: Api, code: int) -> None:
    assert reason(api, code).category in CATEGORIES | {"unknown"}
    assert failure_side(api, code) in Failure


@pytest.mark.parametrize(
    ("api", "code", "name"),
    [
        (Api.V2, 4720, "invalid-destination-address"),
        (Api.V2, 0, None),
        (Api.V2, None, None),
        (Api.V1, 0, "Message Delivered to Carrier"),
    ],
)
def test_only_a_code_that_says_something_has_a_meaning(api: Api, code: int | None, name: str | None) -> None:
    found = meaning(api, code)
    assert (found.name if found else None) == name
