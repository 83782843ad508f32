"""The rules of the setting `alerts`: validates each table, fills in the defaults of its type; the rules without any."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from receiver.domain.alerts import Rule, RuleType, Severity
from receiver.domain.vocabulary import Api, Direction, number_key
from receiver.errors import SettingsError, did_you_mean
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
    """What rules of a type may have: their dimensions (of `by`, of `where`) and their defaults."""

    by: tuple[str, ...] = ()
    where: tuple[str, ...] = ()
    default_by: str | None = None
    window: timedelta = 15 * _MINUTES
    above: float = 0
    minimum: int | None = None
    """None: the type has no minimum."""
    longer_than: timedelta | None = None
    """None: the type has no `longer_than`."""
    codes: frozenset[int] = frozenset()
    holds_for: timedelta = timedelta(0)
    severity: Severity = Severity.WARNING
    is_share: bool = False


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
    RuleType.FALLBACK_USED: _Type(by=_MESSAGE, where=_MESSAGE),
    RuleType.WRONG_CREDENTIALS: _Type(above=20),
    RuleType.PROCESSOR_BEHIND: _Type(longer_than=_MINUTES, holds_for=_MINUTES, severity=Severity.CRITICAL),
    RuleType.SINK_DOWN: _Type(by=("sink",), where=("sink",), default_by="sink", holds_for=5 * _MINUTES),
    RuleType.SINK_BEHIND: _Type(
        by=("sink",), where=("sink",), default_by="sink", longer_than=15 * _MINUTES, holds_for=5 * _MINUTES
    ),
    RuleType.DEAD_LETTERS: _Type(by=("sink",), where=("sink",), default_by="sink", window=_HOURS),
    RuleType.STORAGE: _Type(above=0.9, holds_for=5 * _MINUTES, severity=Severity.CRITICAL, is_share=True),
    # Alerts of other programs: the rule has nothing but the targets.
    RuleType.EXTERNAL: _Type(),
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
    codes: frozenset[int] | None = Field(None, min_length=1)
    severity: Severity | None = None
    to: Annotated[tuple[str, ...], BeforeValidator(_values)] = ()

    @field_validator("rule", mode="before")
    @classmethod
    def _known(cls, rule: Any) -> Any:
        names = [type_.value for type_ in TYPES]
        if rule not in names:
            raise ValueError(f"there is no {rule!r}; there are {', '.join(names)}{did_you_mean(str(rule), names)}")
        return rule


def configure(tables: Iterable[Mapping[str, Any]]) -> list[Rule]:
    """The rules that settings tables describe; without any the default rules.

    Raises SettingsError with one line that names the rule and the field.
    """
    given = list(tables)
    rules = [_rule(table, index) for index, table in enumerate(given or DEFAULTS)]
    if len(rules) > _MAX_RULES:
        raise SettingsError(f"{_SETTING}: {len(rules)} rules are more than the {_MAX_RULES} there may be", topic=_TOPIC)
    for name, count in Counter(rule.name for rule in rules).items():
        if count > 1:
            raise SettingsError(f"{_SETTING}: {name}: name: {count} rules are called so", topic=_TOPIC)
    return rules


def _rule(table: Mapping[str, Any], index: int) -> Rule:
    named = table.get("name") or table.get("rule")
    name = named if isinstance(named, str) and named.isprintable() else f"number {index + 1}"
    try:
        return _filled_in(_Table.model_validate(table))
    except ValidationError as error:
        raise SettingsError(f"{_SETTING}: {name}: {_first_line(error)}", topic=_TOPIC) from None
    except ValueError as error:
        raise SettingsError(f"{_SETTING}: {name}: {error}", topic=_TOPIC) from None


def _filled_in(table: _Table) -> Rule:
    """The rule of a table, with the defaults of its type; raises ValueError with the field that its type has not."""
    kind = TYPES[table.rule]
    by = table.by or kind.default_by
    if table.by is not None and table.by not in kind.by:
        raise ValueError(f"by: {_no_dimension(table.by, table.rule, kind.by)}")
    for dimension in table.where:
        if dimension not in kind.where:
            raise ValueError(f"where.{dimension}: {_no_dimension(dimension, table.rule, kind.where)}")
    if table.minimum is not None and kind.minimum is None:
        raise ValueError(f"minimum: {table.rule} has no minimum")
    if table.longer_than is not None and kind.longer_than is None:
        raise ValueError(f"longer_than: {table.rule} has no longer_than")
    if table.codes is not None and not kind.codes:
        raise ValueError(f"codes: {table.rule} has no codes; where = {{ deliveryCode = [4720] }} selects some")
    above = kind.above if table.above is None else table.above
    if kind.is_share and above >= 1:
        raise ValueError("above: must be a share below 1, for example 0.2 for 20 %")
    return Rule(
        type=table.rule,
        name=table.name or table.rule.value,
        window=table.window or kind.window,
        above=above,
        minimum=table.minimum or kind.minimum or 1,
        by=by,
        where={dimension: _checked(dimension, values) for dimension, values in table.where.items()},
        holds_for=kind.holds_for if table.holds_for is None else table.holds_for,
        longer_than=table.longer_than or kind.longer_than,
        codes=table.codes or kind.codes,
        severity=table.severity or kind.severity,
        to=table.to,
    )


def _no_dimension(name: str, rule: RuleType, known: Sequence[str]) -> str:
    if not known:
        return f"{rule} has no dimensions"
    return f"{name} is no dimension of {rule}; there are {', '.join(known)}{did_you_mean(name, known)}"


def _checked(dimension: str, values: frozenset[str]) -> frozenset[str]:
    """The values of a filter as they are compared; raises ValueError for those that nothing can have."""
    known: Mapping[str, Sequence[str]] = {"api": tuple(Api), "direction": tuple(Direction)}
    for value in sorted(values):
        if dimension in known and value not in known[dimension]:
            raise ValueError(f"where.{dimension}: {value} is not one of {', '.join(known[dimension])}")
        if dimension == "deliveryCode" and not value.isdecimal():
            raise ValueError(f"where.deliveryCode: {value} is not a code")
    return frozenset(map(number_key, values)) if dimension == "from" else values


def _first_line(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_input=False)
    # A misspelled field before the missing one that it was meant to be.
    problem = next((one for one in problems if one["type"] == "extra_forbidden"), problems[0])
    field = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = [info.alias or name for name, info in _Table.model_fields.items()]
        return f"{field} is not a field of a rule{did_you_mean(field, known)}"
    return f"{field}: {problem['msg'].removeprefix('Value error, ').splitlines()[0]}"
