"""The sinks the settings name: each table checked against the model of its kind, and made into a sink."""

import hashlib
import importlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Final

import orjson
from pydantic import ValidationError

from receiver.errors import SettingsError
from receiver.sinks.base import Sink, SinkSettings

GROUP: Final = "receiver.sinks"
_SETTING: Final = "RECEIVER_SINKS"
_NEEDED: Final = (
    "Settings",
    "max_batch",
    "max_event_bytes",
    "concurrency",
    "keeps_order",
    "keep_attempts",
    "start",
    "publish",
    "check",
    "stop",
)


@dataclass(frozen=True, slots=True)
class ConfiguredSink:
    """A sink with the settings it was made from."""

    settings: SinkSettings
    sink: Sink

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def fingerprint(self) -> str:
        """Tells settings apart without giving secrets away."""
        told = {**self.settings.model_dump(mode="json"), "events": sorted(self.settings.events)}
        return hashlib.sha256(orjson.dumps(told, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def configure(tables: Iterable[Mapping[str, Any]]) -> list[ConfiguredSink]:
    """The sinks that settings tables describe. Raises SettingsError with one line that names the sink and the field."""
    sinks = [_sink(table, place) for place, table in enumerate(tables)]
    for name, count in Counter(sink.name for sink in sinks).items():
        if count > 1:
            raise SettingsError(f"{_SETTING}: {name}: name: {count} sinks are called so")
    return sinks


def _sink(table: Mapping[str, Any], place: int) -> ConfiguredSink:
    name = table.get("name")
    if not isinstance(name, str) or not name.isprintable() or not name:
        name = f"number {place + 1}"
    try:
        kind = _kind(table.get("type"))
        settings = kind.Settings.model_validate(table)
        return ConfiguredSink(settings, kind(settings))
    except ValidationError as error:
        raise SettingsError(f"{_SETTING}: {name}: {_first_line(error)}") from None
    except ValueError as error:
        raise SettingsError(f"{_SETTING}: {name}: {error}") from None


def _kind(type_name: Any) -> Any:
    """The class of sinks of a type: one that is installed, or a private one by `module:Class`."""
    if not isinstance(type_name, str):
        raise ValueError("type: Field required")
    found = _private(type_name) if ":" in type_name else _installed(type_name)
    if missing := [needed for needed in _NEEDED if not hasattr(found, needed)]:
        raise ValueError(f"type: {type_name} is not a sink, it lacks {missing[0]}")
    return found


def _installed(type_name: str) -> Any:
    known = entry_points(group=GROUP)
    if type_name not in known.names:
        raise ValueError(f"type: there is no {type_name!r}; there are {', '.join(sorted(known.names))}")
    try:
        return known[type_name].load()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"type: {type_name} cannot be loaded: {error}") from None


def _private(type_name: str) -> Any:
    module, _, attribute = type_name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"type: {type_name} cannot be loaded: {error}") from None


def _first_line(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{field} is not a field of this sink"
    message = problem["msg"].removeprefix("Value error, ").splitlines()[0]
    return f"{field}: {message}" if field else message
