"""Makes the sinks of the settings: validates each table with the model of its type, creates the sink, probes it."""

import asyncio
import hashlib
import importlib
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from typing import Any, Final

import orjson
from pydantic import ValidationError

from receiver import documents
from receiver.domain.cloudevents import Filter
from receiver.errors import Faults, SettingsError, did_you_mean
from receiver.sinks.base import Sink, SinkSettings
from receiver.sinks.concurrency import call_sink, run_check

GROUP: Final = "receiver.sinks"
_SETTING: Final = "RECEIVER_SINKS"
_TOPIC: Final = "sinks"
# A limit, since every event is published to every sink.
_MAX_SINKS: Final = 64
_REQUIRED: Final = (
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
    """A sink and the settings it was made from.

    `source` and `public_url` are the settings of these names, the same for all sinks.
    """

    settings: SinkSettings
    sink: Sink
    source: str | None = None
    public_url: str | None = None

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def fingerprint(self) -> str:
        """A hash of the settings: it differs when they differ, and does not contain secrets."""
        fields = self.settings.model_dump(mode="json")
        fields |= {name: sorted(fields[name]) for name in ("events", "applications")}
        return hashlib.sha256(orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def configure(
    tables: Iterable[Mapping[str, Any]],
    own_urls: Collection[str] = (),
    source: str | None = None,
    public_url: str | None = None,
) -> list[ConfiguredSink]:
    """Makes the sinks that settings tables describe.

    `own_urls` are the URLs at which this receiver accepts callbacks; a webhook must not post to them. Raises
    SettingsError with a line for each wrong sink, which names it and the field.
    """
    sinks, faults = [], Faults()
    for index, table in enumerate(tables):
        with faults.collected():
            sinks.append(replace(_sink(table, index, own_urls), source=source, public_url=public_url))
    with faults.collected():
        _refuse_together(sinks)
    faults.refuse()
    return sinks


def _refuse_together(sinks: Sequence[ConfiguredSink]) -> None:
    """Raises SettingsError if sinks that are valid by themselves are too many, or have the same name."""
    if len(sinks) > _MAX_SINKS:
        raise SettingsError(f"{_SETTING}: {len(sinks)} sinks are more than the {_MAX_SINKS} there may be", topic=_TOPIC)
    for name, count in Counter(sink.name for sink in sinks).items():
        if count > 1:
            raise SettingsError(f"{_SETTING}: {name}: name: {count} sinks are called so", topic=_TOPIC)


def _sink(table: Mapping[str, Any], index: int, own_urls: Collection[str]) -> ConfiguredSink:
    name = table.get("name")
    if not isinstance(name, str) or not name.isprintable() or not name:
        name = f"number {index + 1}"
    try:
        kind = _kind(table.get("type"))
        settings = kind.Settings.model_validate(table, context={"own_urls": own_urls})
        return ConfiguredSink(settings, _with_valid_limits(kind(settings)))
    except ValidationError as error:
        problem = _first_line(error, kind.Settings)
        raise SettingsError(f"{_SETTING}: {name}: {problem}", topic=_topic(table)) from None
    except ValueError as error:
        raise SettingsError(f"{_SETTING}: {name}: {error}", topic=_topic(table)) from None
    except Exception as error:
        # A sink of your own may raise anything, and the text of the exception may contain a secret.
        problem = f"type: cannot be made: {type(error).__name__}"
        raise SettingsError(f"{_SETTING}: {name}: {problem}", topic=_topic(table)) from error


def filter_of(table: Mapping[str, Any]) -> Filter | None:
    """The filter of a sink of the settings; None if its type cannot be loaded here, which the start did elsewhere."""
    try:
        filter_: Filter = _kind(table.get("type")).Settings.model_validate(table, context={"own_urls": ()}).filter
    except ValueError:
        return None
    return filter_


def _topic(table: Mapping[str, Any]) -> str:
    """The help topic of a sink: that of its type if there is one, else `sinks`."""
    type_name = table.get("type")
    if isinstance(type_name, str) and type_name in entry_points(group=GROUP).names and documents.exists(type_name):
        return type_name
    return _TOPIC


def _kind(type_name: Any) -> Any:
    """The class of a sink type: an installed entry point, or `module:Class`."""
    if not isinstance(type_name, str):
        raise ValueError("type: Field required")
    kind = _private(type_name) if ":" in type_name else _installed(type_name)
    if missing := [name for name in _REQUIRED if not hasattr(kind, name)]:
        raise ValueError(f"type: {type_name} is not a sink, it lacks {missing[0]}")
    return kind


def _with_valid_limits(sink: Sink) -> Sink:
    for name in ("max_batch", "max_event_bytes", "concurrency"):
        limit = getattr(sink, name)
        if not isinstance(limit, int) or limit < 1:
            raise ValueError(f"type: {name} of the sink must be a whole number above 0")
    return sink


def _installed(type_name: str) -> Any:
    known = entry_points(group=GROUP)
    if type_name not in known.names:
        names = sorted(known.names)
        raise ValueError(
            f"type: there is no {type_name!r}; there are {', '.join(names)}{did_you_mean(type_name, names)}"
        )
    entry = known[type_name]
    try:
        return entry.load()
    except Exception as error:
        # Our own modules are installed, so the missing module is the client library of the destination.
        if isinstance(error, ModuleNotFoundError) and entry.extras and not (error.name or "").startswith("receiver"):
            extra, package = entry.extras[0], entry.dist.name if entry.dist else type_name
            raise ValueError(f"type: {type_name} needs the extra {extra}: pip install '{package}[{extra}]'") from None
        raise ValueError(f"type: {type_name} cannot be loaded: {error}") from None


def _private(type_name: str) -> Any:
    module, _, attribute = type_name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"type: {type_name} cannot be loaded: {error}; install it, or put its folder into PYTHONPATH"
        ) from None
    except Exception as error:
        raise ValueError(f"type: {type_name} cannot be loaded: {error}") from None


def _first_line(error: ValidationError, model: type[SinkSettings]) -> str:
    problems = error.errors(include_url=False, include_input=False)
    # A misspelled field before the missing one that it was meant to be.
    problem = next((one for one in problems if one["type"] == "extra_forbidden"), problems[0])
    field = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{field} is not a field of this sink{did_you_mean(field, model.model_fields)}"
    message = problem["msg"].removeprefix("Value error, ").splitlines()[0]
    return f"{field}: {message}" if field else message


# --- probing ---

_PROBE_SECONDS: Final = 15.0
_STOP_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Why a sink cannot be reached, None if it can, and how many seconds the test took."""

    error: str | None
    seconds: float

    @property
    def ok(self) -> bool:
        return self.error is None


async def probe_sink(table: Mapping[str, Any], *, seconds: float = _PROBE_SECONDS) -> ProbeResult:
    """Makes the sink that a settings table describes, starts it, runs its check and stops it. Publishes no event.

    Does not raise: settings that are wrong, and whatever the sink raises, become the error of the result.
    """
    started = time.perf_counter()
    try:
        [configured] = configure([table])
    except SettingsError as error:
        return ProbeResult(str(error), time.perf_counter() - started)
    try:
        async with asyncio.timeout(seconds):
            reason = await _check(configured.sink)
    except TimeoutError:
        reason = "timeout"
    seconds_taken = time.perf_counter() - started
    await _stop(configured.sink)
    return ProbeResult(reason, seconds_taken)


async def _check(sink: Sink) -> str | None:
    try:
        await call_sink(sink.start())
    except Exception as error:
        reason = f"did not start: {type(error).__name__}"
        # The answer of the check says more than the exception.
        with suppress(Exception):
            return await run_check(sink.check) or reason
        return reason
    try:
        return await run_check(sink.check)
    except Exception as error:
        return f"check failed: {type(error).__name__}"


async def _stop(sink: Sink) -> None:
    """Stops the sink, and abandons a `stop` that does not end in time."""
    with suppress(Exception):
        async with asyncio.timeout(_STOP_SECONDS):
            await call_sink(sink.stop())
