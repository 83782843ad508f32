"""Query strings, parsed by the model of an operation. Unknown parameters and invalid values are refused by name."""

from collections.abc import Collection
from typing import Final, TypeVar
from urllib.parse import parse_qsl

from pydantic import ValidationError

from receiver.api.problems import InvalidValue, ProblemError, invalid_values_problem
from receiver.models.queries import Query
from receiver.providers.fields import storable

_MAX_PARAMETERS: Final = 100
_MAX_NAME: Final = 60

Model = TypeVar("Model", bound=Query)


def parse_query(model: type[Model], query_string: bytes) -> Model:
    """The parameters in a query string; raises a problem that names every invalid parameter."""
    values = _values(query_string, model.repeatable)
    try:
        return model.model_validate(values, by_alias=True, by_name=False)
    except ValidationError as error:
        raise invalid_values_problem(invalid_values(error)) from None


def invalid_values(error: ValidationError) -> list[InvalidValue]:
    """The values that a model refuses, by name. The values are left out: one may be a secret in the wrong field."""
    return [_invalid_value(item["loc"], item["type"], item["msg"]) for item in error.errors(include_url=False)]


def _invalid_value(location: tuple[int | str, ...], kind: str, message: str) -> InvalidValue:
    name = ".".join(str(part) for part in location) or "body"
    detail = "is not a known parameter or field" if kind == "extra_forbidden" else message.removeprefix("Value error, ")
    return InvalidValue(parameter=name[:_MAX_NAME], detail=detail)


def _values(query_string: bytes, repeatable: Collection[str]) -> dict[str, str | list[str]]:
    try:
        text = query_string.decode("utf-8")
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_MAX_PARAMETERS)
    except ValueError:
        raise ProblemError(
            400, f"The query string is not UTF-8, or has more than {_MAX_PARAMETERS} parameters."
        ) from None
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(storable(value))
    repeated = [name for name, items in values.items() if len(items) > 1 and name not in repeatable]
    if repeated:
        errors = [InvalidValue(parameter=name[:_MAX_NAME], detail="is given more than once") for name in repeated]
        raise invalid_values_problem(errors)
    return {name: items if name in repeatable else items[0] for name, items in values.items()}
