"""Generated credentials: created once, with mode 0600, and settings win over them."""

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


def test_missing_credentials_are_generated_with_mode_0600(tmp_path: Path) -> None:
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


def test_second_start_uses_the_stored_credentials(tmp_path: Path) -> None:
    first, second = secure(settings_in(tmp_path)), secure(settings_in(tmp_path))
    assert first.settings == second.settings


def test_generated_credentials_are_random(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    a, b = (secure(settings_in(tmp_path / name)).settings for name in ("a", "b"))
    assert shown(a.callback_credentials) != shown(b.callback_credentials)
    assert shown(a.api_tokens) != shown(b.api_tokens)


def test_settings_win_over_generated_credentials(tmp_path: Path) -> None:
    secure(settings_in(tmp_path))
    secured = secure(settings_in(tmp_path, api_tokens=["mine"]))
    assert shown(secured.settings.api_tokens) == ["mine"]
    assert shown(secured.settings.callback_credentials)[0].startswith("bandwidth:")


def test_no_credentials_are_generated_if_none_is_missing(tmp_path: Path) -> None:
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
def test_auth_none_needs_no_credentials(tmp_path: Path, auth: dict[str, str], wanted: list[str]) -> None:
    assert missing(settings_in(tmp_path, **auth)) == wanted


def test_later_start_generates_credentials_that_became_necessary(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({"api_tokens": ["kept"]}))
    secured = secure(settings_in(tmp_path))
    assert shown(secured.settings.api_tokens) == ["kept"]
    assert json.loads((tmp_path / FILE).read_text())["callback_credentials"] == shown(
        secured.settings.callback_credentials
    )
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", ["", "{", "[]", '{"api_tokens": 5}', '{"api_tokens": "text"}', "\udcff"], ids=repr)
def test_damaged_credentials_file_is_refused_and_unchanged(tmp_path: Path, content: str) -> None:
    raw = content.encode("utf-8", "surrogateescape")
    (tmp_path / FILE).write_bytes(raw)
    with pytest.raises(SettingsError, match="is damaged"):
        secure(settings_in(tmp_path))
    assert (tmp_path / FILE).read_bytes() == raw


def test_draft_of_a_crashed_start_is_replaced(tmp_path: Path) -> None:
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
def test_with_postgresql_no_credentials_are_generated(tmp_path: Path, given: dict[str, Any], line: str) -> None:
    with pytest.raises(SettingsError) as caught:
        secure(settings_in(tmp_path, database_url="postgresql://h/d", **given))
    assert str(caught.value) == line
    assert list(tmp_path.iterdir()) == []
