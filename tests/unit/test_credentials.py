"""Credentials of a first run: made once, kept for their owner alone, and never against what the settings say."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from receiver.credentials import FILE, missing, secure
from receiver.errors import SettingsError
from receiver.settings import Settings


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("RECEIVER_")]:
        monkeypatch.delenv(name)


def settings_in(folder: Path, **more: Any) -> Settings:
    return Settings(data_dir=folder, **more)


def shown(secrets: list[SecretStr]) -> list[str]:
    return [secret.get_secret_value() for secret in secrets]


def test_what_is_missing_is_made_and_kept_for_its_owner_alone(tmp_path: Path) -> None:
    secured = secure(settings_in(tmp_path))
    assert secured.file == tmp_path / FILE
    assert secured.file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    [credential], [token] = shown(secured.settings.callback_credentials), shown(secured.settings.api_tokens)
    user, _, password = credential.partition(":")
    assert user == "bandwidth"
    # 24 and 32 bytes of chance
    assert (len(password), len(token)) == (32, 43)
    assert missing(secured.settings) == []


def test_a_second_run_uses_the_same(tmp_path: Path) -> None:
    first, second = secure(settings_in(tmp_path)), secure(settings_in(tmp_path))
    assert first.settings == second.settings


def test_no_two_machines_have_the_same(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    a, b = (secure(settings_in(tmp_path / name)).settings for name in ("a", "b"))
    assert shown(a.callback_credentials) != shown(b.callback_credentials)
    assert shown(a.api_tokens) != shown(b.api_tokens)


def test_settings_win_over_what_was_made(tmp_path: Path) -> None:
    secure(settings_in(tmp_path))
    secured = secure(settings_in(tmp_path, api_tokens=["mine"]))
    assert shown(secured.settings.api_tokens) == ["mine"]
    assert shown(secured.settings.callback_credentials)[0].startswith("bandwidth:")


def test_nothing_is_made_where_nothing_is_missing(tmp_path: Path) -> None:
    given = settings_in(tmp_path, callback_credentials=["u:p"], api_tokens=["t"])
    secured = secure(given)
    assert (secured.settings, secured.file) == (given, None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("auth", "wanted"),
    [
        ({}, ["callback_credentials", "api_tokens"]),
        ({"callback_auth": "none"}, ["api_tokens"]),
        ({"api_auth": "none"}, ["callback_credentials", "api_tokens"]),
        ({"api_auth": "none", "metrics_auth": "none"}, ["callback_credentials"]),
        ({"callback_auth": "none", "api_auth": "none", "metrics_auth": "none"}, []),
    ],
    ids=str,
)
def test_what_is_switched_off_is_not_missing(tmp_path: Path, auth: dict[str, str], wanted: list[str]) -> None:
    assert missing(settings_in(tmp_path, **auth)) == wanted


def test_a_later_start_makes_what_an_earlier_one_did_not_need(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({"api_tokens": ["kept"]}))
    secured = secure(settings_in(tmp_path))
    assert shown(secured.settings.api_tokens) == ["kept"]
    assert json.loads((tmp_path / FILE).read_text())["callback_credentials"] == shown(
        secured.settings.callback_credentials
    )
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", ["", "{", "[]", '{"api_tokens": 5}', '{"api_tokens": "text"}', "\udcff"], ids=repr)
def test_a_damaged_file_is_refused_and_left_as_it_is(tmp_path: Path, content: str) -> None:
    raw = content.encode("utf-8", "surrogateescape")
    (tmp_path / FILE).write_bytes(raw)
    with pytest.raises(SettingsError, match="is damaged"):
        secure(settings_in(tmp_path))
    assert (tmp_path / FILE).read_bytes() == raw


def test_a_draft_that_a_crash_left_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "credentials.new").write_text("half")
    secure(settings_in(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({}, 'set RECEIVER_CALLBACK_CREDENTIALS, for example ["user:password"]'),
        ({"callback_credentials": ["u:p"]}, 'set RECEIVER_API_TOKENS, for example ["token"]'),
    ],
    ids=["nothing", "no token"],
)
def test_with_postgresql_nothing_is_made(tmp_path: Path, given: dict[str, Any], line: str) -> None:
    with pytest.raises(SettingsError) as caught:
        secure(settings_in(tmp_path, database_url="postgresql://h/d", **given))
    assert str(caught.value) == line
    assert list(tmp_path.iterdir()) == []
