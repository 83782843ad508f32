"""Options validated by the models of the query API, so that commands and API accept the same values."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeVar

import typer
from pydantic import ValidationError

from receiver.models.parameters import moment
from receiver.models.queries import Query

Model = TypeVar("Model", bound=Query)

# The parameters whose option has another name.
_OPTIONS = {
    "fromDateTime": "--since",
    "toDateTime": "--until",
    "deliveryState": "--delivery-state",
    "deliveryCode": "--code",
    "tagVerdict": "--tag-verdict",
    "applicationId": "--application",
    "messageId": "--message",
    "eventId": "--event",
}


def parse(model: type[Model], parameters: Mapping[str, Any]) -> Model:
    """The parameters from the values of options; raises a usage error that names the invalid option."""
    try:
        return model.model_validate({name: value for name, value in parameters.items() if value is not None})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = str(problem["loc"][0])
        message = problem["msg"].removeprefix("Value error, ")
        raise typer.BadParameter(message, param_hint=_OPTIONS.get(name, f"--{name}")) from None


def time(value: str | None, option: str) -> datetime | None:
    """The time from the value of an option; raises a usage error that names the option."""
    try:
        return moment(value) if value is not None else None
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None
