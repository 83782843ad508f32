"""Credentials of a first run: made once, kept in the data directory, readable by their owner alone."""

import json
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from receiver.errors import SettingsError
from receiver.settings import PREFIX, Settings
from receiver.storage.database import is_sqlite

FILE: Final = "credentials.json"
TOPIC: Final = "first-run"
"""The documentation topic about generated credentials, and those that must be set."""
_USER: Final = "bandwidth"


@dataclass(frozen=True, slots=True)
class Secured:
    """Settings with credentials in them, and the file that holds those that were generated (None: none were)."""

    settings: Settings
    file: Path | None


def secure(settings: Settings) -> Secured:
    """Fills in missing credentials: from the data directory, made anew there the first time.

    With PostgreSQL nothing is generated, because two hosts would differ: raises SettingsError with what to set.
    """
    wanted = missing(settings)
    if not wanted:
        return Secured(settings, None)
    if not is_sqlite(settings.database):
        raise SettingsError(what_to_set(wanted), topic=TOPIC)
    make_data_dir(settings)
    file = settings.data_dir / FILE
    kept = _read(file)
    if not kept.keys() >= set(wanted):
        kept = {**{name: [make()] for name, make in _MAKERS.items()}, **kept}
        _write(file, kept)
    filled = {name: [SecretStr(value) for value in kept[name]] for name in wanted}
    return Secured(settings.model_copy(update=filled), file)


def make_data_dir(settings: Settings) -> None:
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)


def missing(settings: Settings) -> list[str]:
    """The settings that must hold credentials and do not."""
    wanted = []
    if settings.callback_auth == "basic" and not settings.callback_credentials:
        wanted.append("callback_credentials")
    if not settings.api_tokens and (settings.api_auth == "token" or settings.metrics_auth == "token"):
        wanted.append("api_tokens")
    return wanted


def what_to_set(wanted: Sequence[str]) -> str:
    """The line that says which of the missing settings to set."""
    return f'set {PREFIX}{wanted[0].upper()}, for example ["{_EXAMPLES[wanted[0]]}"]'


_MAKERS: Final[dict[str, Callable[[], str]]] = {
    "callback_credentials": lambda: f"{_USER}:{secrets.token_urlsafe(24)}",
    "api_tokens": lambda: secrets.token_urlsafe(32),
}
_EXAMPLES: Final = {"callback_credentials": "user:password", "api_tokens": "token"}


def _read(file: Path) -> dict[str, list[str]]:
    if not file.exists():
        return {}
    try:
        kept = json.loads(file.read_text("utf-8"))
        return {name: _texts(kept[name]) for name in _MAKERS if kept.get(name)}
    except (ValueError, TypeError, AttributeError):
        raise SettingsError(
            f"{file} is damaged; put it right, or remove it to have new credentials made", topic=TOPIC
        ) from None


def _texts(values: object) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
        raise TypeError("not a list of texts")
    return values


def _write(file: Path, kept: dict[str, list[str]]) -> None:
    """Writes the file whole or not at all: a half-written one would lock everybody out after a crash."""
    draft = file.with_suffix(".new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        json.dump(kept, stream, indent=2)
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(file)
