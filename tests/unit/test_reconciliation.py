"""The decisions of reconciliation: when a message is looked up, how an API is left alone, and the settings."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from receiver.domain.events import Api
from receiver.domain.reconciliation import (
    HEALTHY,
    Answer,
    ApiHealth,
    ReconciliationPolicy,
    budget_day,
    day_of,
    next_day,
)
from receiver.errors import SettingsError
from receiver.explanation.installation import FAILURES_TO_REPORT, Findings, ReconcilerRecord, assess
from receiver.reconciliation.settings import Reconciliation
from receiver.settings import dump, load, restore

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
POLICY = ReconciliationPolicy(after=3 * HOUR, give_up_after=72 * HOUR, per_second=2, per_day=100)


def test_messages_are_looked_up_between_two_ages() -> None:
    assert POLICY.ages(NOW) == (NOW - 72 * HOUR, NOW - 3 * HOUR)


def pauses(policy: ReconciliationPolicy, answer: Answer, *tries: int) -> list[timedelta]:
    due = [policy.due_at(NOW, number, answer) for number in tries]
    return [time - NOW for time in due if time is not None]


def test_pause_of_a_message_doubles_up_to_a_day() -> None:
    for answer in (Answer.FINAL, Answer.PENDING, Answer.UNKNOWN):
        assert pauses(POLICY, answer, 1, 2, 3, 4, 5, 1000) == [hours * HOUR for hours in (3, 6, 12, 24, 24, 24)]
    slow = ReconciliationPolicy(after=48 * HOUR, give_up_after=720 * HOUR, per_second=1, per_day=1)
    assert pauses(slow, Answer.PENDING, 3) == [48 * HOUR]


def test_message_whose_request_failed_comes_again_sooner() -> None:
    for answer in (Answer.FAILED, Answer.UNUSABLE):
        assert pauses(POLICY, answer, 1, 2, 3, 5, 1000) == [HOUR / 4, HOUR / 2, HOUR, 3 * HOUR, 3 * HOUR]


def test_message_keeps_its_turn_where_the_api_alone_is_at_fault() -> None:
    kept = {answer for answer in Answer if POLICY.due_at(NOW, 1, answer) is None}
    assert kept == {Answer.LIMITED, Answer.UNREACHABLE, Answer.REFUSED}


def test_message_is_looked_up_five_times_at_most_by_default() -> None:
    policy, tries = Reconciliation().policy, 0
    age = policy.after
    while age < policy.give_up_after:
        tries += 1
        age += pauses(policy, Answer.PENDING, tries)[0]
    assert tries == 5


def test_budget_bounds_the_next_requests() -> None:
    assert [POLICY.room(spent, 20) for spent in (0, 79, 80, 95, 100, 200)] == [20, 20, 20, 5, 0, 0]
    assert POLICY.gap == 0.5


@pytest.mark.parametrize("per_second", [0.001, 0.01, 0.1, 1, 4, 5, 10, 100])
def test_claim_lasts_longer_than_its_requests_can_take(per_second: float) -> None:
    policy = ReconciliationPolicy(after=HOUR, give_up_after=2 * HOUR, per_second=per_second, per_day=1)
    assert 1 <= policy.claim_size <= 50
    assert policy.claim_seconds(10) >= policy.claim_size * (10 + policy.gap)
    assert policy.claim_seconds(10) >= 300


def test_budget_is_that_of_a_day_in_utc() -> None:
    late = datetime(2026, 1, 1, 23, 30, tzinfo=UTC)
    assert (day_of(late), day_of(late + HOUR)) == ("2026-01-01", "2026-01-02")
    assert next_day(late) == datetime(2026, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("latest", "day"),
    [
        (None, "2026-01-01"),
        ("2025-12-31", "2026-01-01"),
        ("2026-01-01", "2026-01-01"),
        # The clock was set back over midnight.
        ("2026-01-02", "2026-01-02"),
        # It was set to next year for a moment.
        ("2027-01-01", "2026-01-01"),
    ],
)
def test_budget_of_a_day_is_not_given_twice(latest: str | None, day: str) -> None:
    assert budget_day(datetime(2026, 1, 1, 23, 30, tzinfo=UTC), latest) == day


def failed(*answers: Answer, ids: str = "", retry_after: timedelta | None = None, fraction: float = 0) -> ApiHealth:
    """The health after requests with these answers, about messages whose ids are single letters."""
    health = HEALTHY
    for number, answer in enumerate(answers):
        now = NOW + timedelta(seconds=number)
        message_id = ids[number] if ids else "m"
        health = health.after(
            answer, f"error {number}", now, message_id=message_id, retry_after=retry_after, fraction=fraction
        )
    return health


def pause(health: ApiHealth) -> float:
    assert health.until is not None
    return (health.until - NOW).total_seconds()


def test_pauses_of_a_failing_api_double_up_to_a_quarter_of_an_hour() -> None:
    pauses = [pause(failed(*[Answer.FAILED] * count)) - count + 1 for count in (1, 2, 3, 8, 9, 100)]
    assert pauses == [5, 10, 20, 640, 900, 900]
    assert pause(failed(Answer.FAILED, fraction=1)) == 6


def test_pause_of_a_failing_api_does_not_grow_when_the_clock_is_set_back() -> None:
    health = failed(Answer.FAILED)
    assert health.is_paused(NOW)
    assert health.is_paused(NOW - timedelta(seconds=4))
    assert not health.is_paused(NOW - HOUR)
    assert not health.is_paused(NOW + timedelta(seconds=5))


@pytest.mark.parametrize("answer", [Answer.LIMITED, Answer.FAILED])
def test_retry_after_is_honoured(answer: Answer) -> None:
    assert pause(failed(answer, retry_after=timedelta(seconds=77))) == 77
    assert pause(failed(answer, retry_after=timedelta(seconds=1))) == 5
    assert pause(failed(answer, retry_after=timedelta(days=400))) == 86_400


def test_refused_credentials_are_tried_once_an_hour() -> None:
    health = failed(Answer.REFUSED)
    assert (pause(health), health.answer, health.since) == (3600, Answer.REFUSED, NOW)


def test_403_moves_its_message_back_beyond_the_pause_of_a_refused_api() -> None:
    assert pauses(POLICY, Answer.FORBIDDEN, 1, 2, 3, 4, 5, 1000) == [hours * HOUR for hours in (2, 4, 8, 16, 24, 24)]
    assert pause(failed(Answer.REFUSED, fraction=1)) < pauses(POLICY, Answer.FORBIDDEN, 1)[0].total_seconds()


@pytest.mark.parametrize(
    ("answers", "ids", "answer"),
    [
        ([Answer.FORBIDDEN], "a", Answer.FORBIDDEN),
        ([Answer.FORBIDDEN, Answer.FORBIDDEN, Answer.FORBIDDEN], "aaa", Answer.FORBIDDEN),
        ([Answer.FORBIDDEN, Answer.FORBIDDEN], "ab", Answer.REFUSED),
        ([Answer.FORBIDDEN, Answer.LIMITED, Answer.FORBIDDEN], "axb", Answer.REFUSED),
        ([Answer.FORBIDDEN, Answer.PENDING, Answer.FORBIDDEN], "axb", Answer.FORBIDDEN),
        ([Answer.FORBIDDEN, Answer.FORBIDDEN, Answer.FORBIDDEN], "abb", Answer.REFUSED),
        ([Answer.REFUSED, Answer.FORBIDDEN], "aa", Answer.REFUSED),
    ],
)
def test_403_refuses_an_api_only_for_two_different_messages(answers: list[Answer], ids: str, answer: Answer) -> None:
    health = failed(*answers, ids=ids)
    assert health.answer is answer
    assert pause(health) >= 3600 if answer is Answer.REFUSED else pause(health) < 60


@pytest.mark.parametrize("answer", [Answer.FINAL, Answer.PENDING, Answer.UNKNOWN])
def test_answer_about_a_message_ends_the_failures(answer: Answer) -> None:
    broken = failed(Answer.FAILED, Answer.LIMITED)
    assert (broken.failures, broken.error, broken.since) == (2, "error 1", NOW)
    assert broken.is_paused(NOW + timedelta(seconds=9))
    assert not broken.is_paused(NOW + timedelta(seconds=11))
    assert broken.after(answer, None, NOW, message_id="m", retry_after=None, fraction=0) == HEALTHY


# --- settings


def test_reconciliation_is_off_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert load().reconciliation.accounts == {}


def test_accounts_of_both_apis(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "receiver.toml").write_text('[reconciliation]\nv1_user_id = "u-1"\nafter = 900\n')
    values = {"V1_CREDENTIALS": "t-1:secret-1", "V2_ACCOUNT_ID": "12345", "V2_CREDENTIALS": "user:secret-2:x"}
    for name, value in {**values, "V2_URL": "http://127.0.0.1:8090/api/v2/", "EGRESS_ALLOW": '["127.0.0.0/8"]'}.items():
        monkeypatch.setenv(f"RECEIVER_RECONCILIATION__{name}", value)
    settings = load()
    found = settings.reconciliation
    accounts = found.accounts
    assert {api: (one.id, one.url) for api, one in accounts.items()} == {
        Api.V1: ("u-1", "https://api.catapult.inetwork.com/v1"),
        Api.V2: ("12345", "http://127.0.0.1:8090/api/v2"),
    }
    assert accounts[Api.V2].credentials.get_secret_value() == "user:secret-2:x"
    assert found.policy.after == timedelta(minutes=15)
    assert "secret" not in repr(settings) + str(found) + repr(accounts) + settings.model_dump_json()
    assert restore(dump(settings)).reconciliation == found


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"V1_USER_ID": "u-1"}, "v1_user_id and v1_credentials belong together: v1_credentials is missing"),
        ({"V2_CREDENTIALS": "u:p"}, "v2_account_id and v2_credentials belong together: v2_account_id is missing"),
        ({"V1_CREDENTIALS": "token-alone"}, 'V1_CREDENTIALS: must be "user:password" (v1: "token:secret")'),
        ({"V2_ACCOUNT_ID": ""}, "V2_ACCOUNT_ID: "),
        ({"V2_ACCOUNT_ID": "1 2"}, "V2_ACCOUNT_ID: "),
        ({"V2_URL": "ftp://example.com"}, "V2_URL: must begin with https:// and a host"),
        ({"V2_URL": "https://"}, "V2_URL: must begin with https:// and a host"),
        ({"V2_URL": "https://exa mple.com"}, "V2_URL: must be without spaces and of printable ASCII characters"),
        ({"V2_URL": "https://example.com:99999"}, "V2_URL: is not a URL"),
        ({"V2_URL": "https://example.com:0"}, "V2_URL: has a port that does not exist"),
        ({"V2_URL": "https://u:p@example.com"}, "V2_URL: must be without user, password and query"),
        ({"V1_URL": "http://example.com/v1"}, "V1_URL: must begin with https://: the credentials would be sent unencr"),
        ({"V1_URL": "http://[2606:4700::1]/v1"}, "V1_URL: must begin with https://: the credentials would be sent un"),
        ({"AFTER": "0"}, "AFTER: "),
        ({"AFTER": "3600", "GIVE_UP_AFTER": "3600"}, "RECONCILIATION: give_up_after must be more than after"),
        ({"REQUESTS_PER_SECOND": "0"}, "REQUESTS_PER_SECOND: "),
        ({"REQUESTS_PER_DAY": "0"}, "REQUESTS_PER_DAY: "),
        (
            {"AFTR": "9"},
            "RECONCILIATION__AFTR is not a setting of receiver; did you mean RECEIVER_RECONCILIATION__AFTER",
        ),
    ],
)
def test_wrong_setting_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, values: dict[str, str], problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in values.items():
        monkeypatch.setenv(f"RECEIVER_RECONCILIATION__{name}", value)
    with pytest.raises(SettingsError) as caught:
        load()
    assert problem in str(caught.value)
    assert str(caught.value).startswith("RECEIVER_RECONCILIATION")
    assert "token-alone" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://localhost:8090/v1", "http://sandbox:8090/v1", "http://[::1]/v1", "https://a.b/"]
)
def test_unencrypted_url_is_for_machines_nearby(url: str) -> None:
    assert Reconciliation(v1_url=url).v1_url == url.rstrip("/")


def test_error_shows_no_value() -> None:
    with pytest.raises(ValidationError) as caught:
        Reconciliation(v1_user_id="u-1", v1_credentials="secret-without-colon")
    assert "secret-without-colon" not in str(caught.value)


# --- the status


def record(**more: Any) -> ReconcilerRecord:
    return ReconcilerRecord(**{"api": "v2", "lease_is_held": True, "requests_today": 7, "last_request_at": NOW, **more})


REFUSED = (
    "Bandwidth refuses reconciliation with v2 since 2026-01-01T12:00:00Z (error 0): correct "
    "RECEIVER_RECONCILIATION__V2_CREDENTIALS, and restart the receiver."
)


@pytest.mark.parametrize(
    ("found", "state", "problem"),
    [
        (record(), "working", None),
        (record(lease_is_held=False, health=failed(Answer.REFUSED)), "off", None),
        (record(is_exhausted=True), "exhausted", None),
        (record(health=failed(Answer.FAILED)), "paused", None),
        (
            record(health=failed(*[Answer.FAILED] * FAILURES_TO_REPORT)),
            "paused",
            "Reconciliation with v2 fails since 2026-01-01T12:00:00Z: error 2.",
        ),
        (
            record(health=failed(Answer.REFUSED)),
            "refused",
            REFUSED,
        ),
    ],
)
def test_state_and_problem(found: ReconcilerRecord, state: str, problem: str | None) -> None:
    assert found.state == state
    assert list(assess(Findings(reconciliation=[found]), NOW).problems) == ([problem] if problem else [])
