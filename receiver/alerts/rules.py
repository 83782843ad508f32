"""The rules of the setting `alerts`: validates each table, fills in the defaults of its type; the rules without any."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from receiver.domain.alert_cells import NO_VALUE
from receiver.domain.alerts import Rule, RuleType, Severity
from receiver.domain.vocabulary import Api, Direction
from receiver.errors import Faults, SettingsError, did_you_mean
from receiver.models.numbers import typed_number_key
from receiver.providers import PROVIDERS
from receiver.providers.registry import reason
from receiver.sinks.base import Duration

_SETTING: Final = "RECEIVER_ALERTS"
_TOPIC: Final = "alerts"
# All rules are evaluated in every round.
_MAX_RULES: Final = 64
_SHORTEST_WINDOW: Final = timedelta(minutes=1)
# `receiver.storage.event_counts` stores the counts of so long a window, and of as much time before it.
_LONGEST_WINDOW: Final = timedelta(hours=24)

SPAM_CODES: Final = frozenset({187, 188, 189, 770, 4121, 4470, 4476, 4481, 4770, 4771, 4772})
"""Codes that say that a message was taken for spam, or that its sender is blocked or not registered."""

_MINUTES: Final = timedelta(minutes=1)
_HOURS: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Type:
    """What rules of a type may have: their dimensions (of `by`, of `where`) and their defaults.

    A field that is None would have no effect; a rule of this type cannot have it.
    """

    by: tuple[str, ...] = ()
    where: tuple[str, ...] = ()
    default_by: str | None = None
    window: timedelta | None = 15 * _MINUTES
    above: float | None = 0
    minimum: int | None = None
    longer_than: timedelta | None = None
    codes: frozenset[int] | None = None
    holds_for: timedelta | None = timedelta(0)
    severity: Severity | None = Severity.WARNING
    is_share: bool = False
    is_about_inbound: bool = False
    """Inbound messages count too."""


_MESSAGE: Final = ("api", "direction", "applicationId", "from")
_DELIVERY: Final = ("api", "applicationId", "from", "carrierName", "deliveryCode", "category")
_WITH_DIRECTION: Final = ("direction", *_DELIVERY)

TYPES: Final[Mapping[RuleType, _Type]] = {
    RuleType.FAILURE_RATE: _Type(by=_DELIVERY, where=_WITH_DIRECTION, above=0.2, minimum=20, is_share=True),
    RuleType.CODE_SPIKE: _Type(by=_DELIVERY, where=_WITH_DIRECTION, above=10, codes=SPAM_CODES),
    RuleType.SLOW_DELIVERY: _Type(
        by=("api", "applicationId", "carrierName"),
        where=("api", "direction", "applicationId", "carrierName"),
        window=30 * _MINUTES,
        above=0.3,
        minimum=20,
        longer_than=5 * _MINUTES,
        is_share=True,
    ),
    RuleType.RECEIPTS_STOPPED: _Type(
        by=("api", "direction", "applicationId"),
        where=("api", "direction", "applicationId"),
        default_by="applicationId",
        window=_HOURS,
        minimum=20,
        severity=Severity.CRITICAL,
        is_about_inbound=True,
    ),
    RuleType.AWAITING_RECEIPT: _Type(
        by=("api", "applicationId", "from"),
        where=("api", "direction", "applicationId", "from"),
        window=6 * _HOURS,
        above=10,
        longer_than=_HOURS,
    ),
    RuleType.CONTRADICTIONS: _Type(by=_MESSAGE, where=_MESSAGE, window=_HOURS, above=10),
    RuleType.FORGED_TAGS: _Type(by=_MESSAGE, where=_MESSAGE, window=_HOURS, severity=Severity.CRITICAL),
    RuleType.QUARANTINE: _Type(window=_HOURS, above=5),
    RuleType.FALLBACK_USED: _Type(by=_MESSAGE, where=_MESSAGE, is_about_inbound=True),
    RuleType.WRONG_CREDENTIALS: _Type(above=20),
    RuleType.PROCESSOR_BEHIND: _Type(
        window=None, above=None, longer_than=_MINUTES, holds_for=_MINUTES, severity=Severity.CRITICAL
    ),
    RuleType.SINK_DOWN: _Type(
        by=("sink",), where=("sink",), default_by="sink", window=None, above=None, holds_for=5 * _MINUTES
    ),
    RuleType.SINK_BEHIND: _Type(
        by=("sink",),
        where=("sink",),
        default_by="sink",
        window=None,
        above=None,
        longer_than=15 * _MINUTES,
        holds_for=5 * _MINUTES,
    ),
    RuleType.DEAD_LETTERS: _Type(by=("sink",), where=("sink",), default_by="sink", window=_HOURS),
    RuleType.STORAGE: _Type(window=None, above=0.9, holds_for=5 * _MINUTES, severity=Severity.CRITICAL, is_share=True),
    # Alerts of other programs: the rule has nothing but the targets.
    RuleType.EXTERNAL: _Type(window=None, above=None, holds_for=None, severity=None),
}
"""The types of rules that the settings may have, with the defaults of each."""

DEFAULTS: Final[Sequence[Mapping[str, Any]]] = tuple(
    {"rule": type_.value, "by": by} if by else {"rule": type_.value}
    for type_, by in (
        (RuleType.FAILURE_RATE, "carrierName"),
        (RuleType.CODE_SPIKE, None),
        (RuleType.SLOW_DELIVERY, "carrierName"),
        *((type_, None) for type_ in list(TYPES)[3:] if type_ is not RuleType.EXTERNAL),
    )
)
"""The tables that are in force if the settings have none: a rule of each type."""


def _values(value: Any) -> Any:
    return value if isinstance(value, list | tuple | set | frozenset) else [value]


def _text(value: Any) -> Any:
    # Codes are written as numbers.
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


_Value = Annotated[str, BeforeValidator(_text)]
_Values = Annotated[frozenset[_Value], BeforeValidator(_values), Field(min_length=1)]


class _Table(BaseModel):
    """The table of a rule, as it is written in the settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    rule: RuleType
    name: str | None = Field(None, min_length=1, max_length=100)
    window: Duration | None = Field(None, ge=_SHORTEST_WINDOW, le=_LONGEST_WINDOW)
    above: float | None = Field(None, ge=0, allow_inf_nan=False)
    minimum: int | None = Field(None, ge=1)
    by: str | None = None
    where: dict[str, _Values] = {}
    holds_for: Duration | None = Field(None, alias="for", ge=timedelta(0), le=_LONGEST_WINDOW)
    longer_than: Duration | None = Field(None, gt=timedelta(0), le=timedelta(days=7))
    codes: frozenset[Annotated[int, Field(ge=0)]] | None = Field(None, min_length=1)
    severity: Severity | None = None
    to: Annotated[tuple[str, ...], BeforeValidator(_values)] = ()

    @field_validator("rule", mode="before")
    @classmethod
    def _known(cls, rule: Any) -> Any:
        names = [type_.value for type_ in TYPES]
        if rule not in names:
            raise ValueError(f"there is no {rule!r}; there are {', '.join(names)}{did_you_mean(str(rule), names)}")
        return rule


@dataclass(frozen=True, slots=True)
class _Installation:
    """What other settings say: the country code of numbers without one, and the names of the sinks."""

    country_code: str
    sinks: Collection[str]


def configure(
    tables: Iterable[Mapping[str, Any]], *, sinks: Collection[str] = (), country_code: str = "1"
) -> list[Rule]:
    """The rules that settings tables describe; without any the default rules.

    `sinks` are the names of the configured sinks, `country_code` is that of a number that is written without one.
    Raises SettingsError with a line for each wrong rule, which names it and the field.
    """
    faults = Faults()
    rules = configure_valid(tables, faults, sinks=sinks, country_code=country_code)
    faults.refuse()
    return rules


def configure_valid(
    tables: Iterable[Mapping[str, Any]], faults: Faults, *, sinks: Collection[str] = (), country_code: str = "1"
) -> list[Rule]:
    """As `configure`, but returns the rules that are valid, and collects what is wrong with the others."""
    installation, rules = _Installation(country_code, sinks), []
    for index, table in enumerate(list(tables) or DEFAULTS):
        with faults.collected():
            rules.append(_rule(table, index, installation))
    with faults.collected():
        _refuse_together(rules)
    return rules


def _refuse_together(rules: Sequence[Rule]) -> None:
    """Raises SettingsError if rules that are valid by themselves are too many, or have the same name."""
    if len(rules) > _MAX_RULES:
        raise SettingsError(f"{_SETTING}: {len(rules)} rules are more than the {_MAX_RULES} there may be", topic=_TOPIC)
    for name, count in Counter(rule.name for rule in rules).items():
        if count > 1:
            raise SettingsError(f"{_SETTING}: {name}: name: {count} rules are called so", topic=_TOPIC)


def _rule(table: Mapping[str, Any], index: int, installation: _Installation) -> Rule:
    named = table.get("name") or table.get("rule")
    name = named if isinstance(named, str) and named.isprintable() else f"number {index + 1}"
    try:
        return _filled_in(_Table.model_validate(table), installation)
    except ValidationError as error:
        raise SettingsError(f"{_SETTING}: {name}: {_first_line(error)}", topic=_TOPIC) from None
    except ValueError as error:
        raise SettingsError(f"{_SETTING}: {name}: {error}", topic=_TOPIC) from None


# What a rule has in the place of a field that its type has not.
_UNUSED_WINDOW: Final = 15 * _MINUTES
_UNUSED_SEVERITY: Final = Severity.WARNING


def _filled_in(table: _Table, installation: _Installation) -> Rule:
    """The rule of a table, with the defaults of its type; raises ValueError with the field that has no effect."""
    kind = TYPES[table.rule]
    if (field := next(_without_effect(table, kind), None)) is not None:
        selecting = "; where = { deliveryCode = [4720] } selects some" if field == "codes" and kind.where else ""
        raise ValueError(f"{field}: {table.rule} has no {field}{selecting}")
    if table.by is not None and table.by not in kind.by:
        raise ValueError(f"by: {_no_dimension(table.by, table.rule, kind.by)}")
    for dimension in table.where:
        if dimension not in kind.where:
            raise ValueError(f"where.{dimension}: {_no_dimension(dimension, table.rule, kind.where)}")
    above = table.above if table.above is not None else kind.above or 0
    if kind.is_share and above >= 1:
        raise ValueError("above: must be a share below 1, for example 0.2 for 20 %")
    rule = Rule(
        type=table.rule,
        name=table.name or table.rule.value,
        window=table.window or kind.window or _UNUSED_WINDOW,
        above=above,
        minimum=table.minimum or kind.minimum or 1,
        by=table.by or kind.default_by,
        where={
            dimension: frozenset(_checked(dimension, value, installation) for value in sorted(values))
            for dimension, values in table.where.items()
        },
        holds_for=table.holds_for if table.holds_for is not None else kind.holds_for or timedelta(0),
        longer_than=table.longer_than or kind.longer_than,
        codes=table.codes or kind.codes or frozenset(),
        severity=table.severity or kind.severity or _UNUSED_SEVERITY,
        to=table.to,
    )
    if (problem := _impossible(rule, kind)) is not None:
        raise ValueError(problem)
    return rule


def _without_effect(table: _Table, kind: _Type) -> Iterator[str]:
    """The fields of a table that nothing looks at in rules of its type."""
    for field in ("window", "above", "minimum", "longer_than", "codes", "holds_for", "severity"):
        if getattr(table, field) is not None and getattr(kind, field) is None:
            yield _Table.model_fields[field].alias or field


def _no_dimension(name: str, rule: RuleType, known: Sequence[str]) -> str:
    if not known:
        return f"{rule} has no dimensions"
    return f"{name} is no dimension of {rule}; there are {', '.join(known)}{did_you_mean(name, known)}"


def _checked(dimension: str, value: str, installation: _Installation) -> str:
    """A value of a filter as it is compared; raises ValueError if nothing can have it."""
    known = _known(dimension, installation)
    if known is None and value in ("", NO_VALUE):
        return ""
    if known is not None and value not in known:
        there_are = f"; there are {', '.join(known)}{did_you_mean(value, known)}" if known else ""
        raise ValueError(f"where.{dimension}: there is no {dimension} {value}{there_are}")
    if dimension == "deliveryCode":
        if not value.isdecimal():
            raise ValueError(f"where.deliveryCode: {value} is not a code")
        return str(int(value))
    if dimension == "from":
        try:
            return typed_number_key(value, lambda: installation.country_code)
        except ValueError as error:
            raise ValueError(f"where.from: {value}: {error}") from None
    return value


def _known(dimension: str, installation: _Installation) -> Sequence[str] | None:
    """The values that a dimension can have; None: nobody knows them all."""
    match dimension:
        case "api":
            return tuple(Api)
        case "direction":
            return tuple(Direction)
        case "sink":
            return sorted(installation.sinks)
        case "category":
            return sorted({name for provider in PROVIDERS.values() for name in provider.codes.categories()})
    return None


def _impossible(rule: Rule, kind: _Type) -> str | None:
    """Why the rule could never fire; None if it can."""
    if rule.where.get("direction") == frozenset({Direction.IN}):
        if not kind.is_about_inbound:
            return f"where.direction: {rule.type} looks at outbound messages alone"
        if rule.by == "from" or "from" in rule.where:
            return "where.direction: inbound messages are not counted by sender"
    apis = [Api(name) for name in rule.where.get("api", tuple(Api))]
    listed = rule.where.get("deliveryCode", frozenset())
    chosen = {"codes": rule.codes, "where.deliveryCode": {int(code) for code in listed if code}}
    for field, codes in chosen.items():
        highest = [PROVIDERS[api].codes.highest for api in apis]
        for code in sorted(codes):
            if all(one is not None and code > one for one in highest):
                return f"{field}: {code} is no delivery code of {' or '.join(apis)}"
    if not rule.codes and (not listed or "" in listed):
        return None
    codes = set(rule.codes or chosen["where.deliveryCode"])
    codes &= chosen["where.deliveryCode"] if listed else codes
    categories = rule.where.get("category")
    if any(categories is None or reason(api, code).category in categories for api in apis for code in codes):
        return None
    return "where: no delivery code meets codes, deliveryCode and category at once"


def _first_line(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_input=False)
    # A misspelled field before the missing one that it was meant to be.
    problem = next((one for one in problems if one["type"] == "extra_forbidden"), problems[0])
    field = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = [info.alias or name for name, info in _Table.model_fields.items()]
        return f"{field} is not a field of a rule{did_you_mean(field, known)}"
    return f"{field}: {problem['msg'].removeprefix('Value error, ').splitlines()[0]}"
