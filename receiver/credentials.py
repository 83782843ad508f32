"""Generated credentials: created at the first start, and stored in the data directory with mode 0600."""

import json
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from receiver.errors import SettingsError
from receiver.settings import Settings
from receiver.settings_sources import PREFIX
from receiver.storage import sqlite_file
from receiver.storage.database import is_sqlite

FILE: Final = "credentials.json"
TOPIC: Final = "first-run"
"""The documentation topic about generated credentials and those that must be set."""
_USER: Final = "bandwidth"


@dataclass(frozen=True, slots=True)
class Secured:
    """Settings with their credentials, and the file of the generated ones (None: none are generated)."""

    settings: Settings
    file: Path | None


def secure(settings: Settings) -> Secured:
    """Fills in missing credentials from the data directory, where the first start generates them.

    With PostgreSQL nothing is generated, because two hosts would differ: raises SettingsError with the setting to set.
    """
    names = missing(settings)
    if not names:
        return Secured(settings, None)
    if not is_sqlite(settings.database):
        raise SettingsError(what_to_set(names), topic=TOPIC)
    make_data_dir(settings)
    file = settings.data_dir / FILE
    stored = _read(file)
    if not stored.keys() >= set(names):
        stored = {**{name: [generate()] for name, generate in _GENERATORS.items()}, **stored}
        _write(file, stored)
    filled = {name: [SecretStr(value) for value in stored[name]] for name in names}
    return Secured(settings.model_copy(update=filled), file)


def make_data_dir(settings: Settings) -> None:
    """Creates the data directory, for the owner alone; raises SettingsError if it cannot be used."""
    directory = settings.data_dir
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is not a directory" if isinstance(error, FileExistsError) else error.strerror
        raise SettingsError(
            f"{PREFIX}DATA_DIR: {directory.absolute()} cannot be created ({reason}); name a directory that this user "
            "can write",
            topic=TOPIC,
        ) from None
    if not os.access(directory, os.W_OK | os.X_OK):
        raise SettingsError(
            f"{PREFIX}DATA_DIR: this user cannot write in {directory.absolute()}; correct its owner and mode, or name "
            "another directory",
            topic=TOPIC,
        )


def missing(settings: Settings) -> list[str]:
    """The names of the settings that must have credentials and have none."""
    names = []
    if settings.callback_auth == "basic" and not settings.callback_credentials:
        names.append("callback_credentials")
    if not settings.api_tokens and (settings.api_auth == "token" or settings.metrics_auth == "token"):
        names.append("api_tokens")
    return names


def what_to_set(names: Sequence[str]) -> str:
    """The error line for the first of the settings without credentials."""
    return f'set {PREFIX}{names[0].upper()}, for example ["{_EXAMPLES[names[0]]}"]'


_GENERATORS: Final[dict[str, Callable[[], str]]] = {
    "callback_credentials": lambda: f"{_USER}:{secrets.token_urlsafe(24)}",
    "api_tokens": lambda: secrets.token_urlsafe(32),
}
_EXAMPLES: Final = {"callback_credentials": "user:password", "api_tokens": "token"}


def _read(file: Path) -> dict[str, list[str]]:
    if not file.exists():
        return {}
    sqlite_file.close_to_others(file)
    try:
        stored = json.loads(file.read_text("utf-8"))
        return {name: _texts(stored[name]) for name in _GENERATORS if stored.get(name)}
    except (ValueError, TypeError, AttributeError):
        raise SettingsError(
            f"{file} is damaged; restore it, or remove it to generate new credentials", topic=TOPIC
        ) from None


def _texts(values: object) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
        raise TypeError("not a list of strings")
    return values


def _write(file: Path, credentials: dict[str, list[str]]) -> None:
    """Replaces the file atomically: with a half-written file no client could authenticate after a crash."""
    draft = file.with_suffix(".new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        json.dump(credentials, stream, indent=2)
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(file)
