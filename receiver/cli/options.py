"""Options and arguments of several commands, and the parameters of a query as options."""

import inspect
import shlex
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin

import typer
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from receiver.domain.cloudevents import rfc3339
from receiver.models.parameters import NumberContext, Option
from receiver.models.queries import Query, SortOrder

if TYPE_CHECKING:
    # Most commands send no request.
    import httpx2


def group(help: str) -> typer.Typer:  # noqa: A002
    # Importing rich takes longer than importing everything else.
    return typer.Typer(
        help=help,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


Config = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The TOML file with settings; default: RECEIVER_CONFIG, else ./receiver.toml."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Change nothing, only count.")]
SinkName = Annotated[str, typer.Argument(metavar="SINK", help="The name of the sink.")]

Command = TypeVar("Command", bound=Callable[..., int])


def with_query(model: type[Query], *, leave_out: frozenset[str] = frozenset()) -> Callable[[Command], Command]:
    """Gives a command the parameters of a query as options; the command gets the query, without those left out.

    An invalid value is a usage error that names its option.
    """

    def decorate(command: Command) -> Command:
        own = [value for value in inspect.signature(command).parameters.values() if value.name != "query"]
        options = {name: field for name, field in model.model_fields.items() if name not in {*leave_out, "after"}}

        def with_options(**values: Any) -> int:
            chosen = {name: values.pop(name) for name in options}
            return command(query=_parse(model, chosen, values.get("config")), **values)

        required = [value for value in own if value.default is inspect.Parameter.empty]
        optional = [value for value in own if value.default is not inspect.Parameter.empty]
        described = [_option(name, field) for name, field in options.items()]
        with_options.__signature__ = inspect.Signature([*required, *described, *optional])  # type: ignore[attr-defined]
        with_options.__doc__, with_options.__name__ = command.__doc__, command.__name__
        return with_options  # type: ignore[return-value]

    return decorate


def with_settings(model: type[BaseModel], *, prefix: str) -> Callable[[Command], Command]:
    """Gives a command every field of a model as an option and as a variable of the environment.

    The command gets those that are given as `settings`: texts, lists of texts and flags, which the model validates.
    """

    def decorate(command: Command) -> Command:
        own = [value for value in inspect.signature(command).parameters.values() if value.name != "settings"]

        def with_options(**values: Any) -> int:
            settings = {name: values.pop(name) for name in model.model_fields}
            given = {name: value for name, value in settings.items() if value is not None and value != []}
            return command(settings=given, **values)

        described = [_setting(name, field, f"{prefix}{name.upper()}") for name, field in model.model_fields.items()]
        with_options.__signature__ = inspect.Signature([*own, *described])  # type: ignore[attr-defined]
        with_options.__doc__, with_options.__name__ = command.__doc__, command.__name__
        return with_options  # type: ignore[return-value]

    return decorate


_LISTS: Final = (tuple, frozenset)


def _setting(name: str, field: FieldInfo, variable: str) -> inspect.Parameter:
    """One setting as an option: a flag, a text, or a text that may be repeated."""
    option, text = option_name(name, field), _help(field).removesuffix(".")
    types = set(_types(field.annotation))
    if bool in types:
        declared = option if field.default is False else f"{option}/--no-{option.removeprefix('--')}"
        help_ = f"{text}{_default_of(field)}."
        return _parameter(name, bool | None, None, typer.Option(declared, envvar=variable, help=help_))
    metavar = _metavar(name, field, types)
    # Rates are a model, written as pairs.
    is_list = "=" in metavar or any(get_origin(kind) in _LISTS for kind in types)
    more = ". May be repeated; in the variable separated by spaces." if is_list else f"{_default_of(field)}."
    described = typer.Option(option, envvar=variable, metavar=metavar, help=text + more)
    return _parameter(name, list[str] | None if is_list else str | None, None, described)


def _default_of(field: FieldInfo) -> str:
    """The words for the default of a setting, where it has one that its description does not name."""
    value = field.default
    if value in (None, False) or "default:" in (field.description or ""):
        return ""
    text = "yes" if value is True else f"{value:g}" if isinstance(value, float) else str(value)
    return f"; default: {text}"


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    """One parameter of a query as an option, of text that the query validates, or a flag."""
    if name == "order":
        return _parameter(name, bool, False, typer.Option(_order_flag(field), help=_order_help(field)))
    types = set(_item_types(field.annotation))
    help_ = _help(field)
    if bool in types:
        option = option_name(name, field)
        declared = option if field.default is False else f"{option}/--no-{option.removeprefix('--')}"
        kind = bool if field.default is False else bool | None
        return _parameter(name, kind, field.default, typer.Option(declared, help=help_))
    default = str(field.default) if field.default not in (None, ()) and not field.is_required() else None
    metavar = _metavar(name, field, types)
    return _parameter(name, str | None, default, typer.Option(option_name(name, field), metavar=metavar, help=help_))


def _parameter(name: str, kind: Any, default: Any, option: Any) -> inspect.Parameter:
    kind_of_parameter = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Parameter(name, kind_of_parameter, default=default, annotation=Annotated[kind, option])


def option_name(name: str, field: FieldInfo) -> str:
    """The option of a parameter: its own, or the parameter's name in the address, with hyphens."""
    own = _metadata(field)
    return own.name if own is not None and own.name else f"--{_kebab(field.alias or name)}"


def http_url(text: str, option: str) -> "httpx2.URL":
    """The URL that an option gives; raises a usage error if it leads nowhere by HTTP."""
    import httpx2

    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL:
        url = httpx2.URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise typer.BadParameter("must begin with http:// or https:// and name a host", param_hint=option)
    return url


def filter_options(query: Query) -> str:
    """The filters of a query as the options that give them, with their values as they were understood."""
    given = (
        (_understood(name, field), getattr(query, name))
        for name, field in type(query).model_fields.items()
        if name not in _NO_FILTERS and getattr(query, name) != field.default
    )
    return " ".join(_option_text(option, value) for option, value in given)


def _understood(name: str, field: FieldInfo) -> str:
    own = _metadata(field)
    return own.understood if own is not None and own.understood else option_name(name, field)


_NO_FILTERS: Final = frozenset({"page", "size", "order", "after"})


def _option_text(option: str, value: Any) -> str:
    if isinstance(value, bool):
        return option if value else f"--no-{option.removeprefix('--')}"
    if isinstance(value, datetime):
        return f"{option} {rfc3339(value)}"
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(getattr(value, "text", value))
    return f"{option} {shlex.quote(text)}"


def _metadata(field: FieldInfo) -> Option | None:
    metadata = (*field.metadata, *_annotated(field.annotation))
    return next((value for value in metadata if isinstance(value, Option)), None)


def _annotated(annotation: Any) -> Iterator[Any]:
    """The metadata within an annotation, as in `Annotated[str, …] | None`."""
    if get_origin(annotation) is Annotated:
        yield from annotation.__metadata__
    elif get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from _annotated(part)


def _help(field: FieldInfo) -> str:
    own = _metadata(field)
    text = (own.help if own is not None else "") or field.description or ""
    # A word of code keeps its case.
    begun = text if text.startswith("`") else f"{text[:1].upper()}{text[1:]}"
    return begun.replace("`", "") + "."


_METAVARS: Final = {
    "sender": "NUMBER",
    "recipient": "NUMBER",
    "number": "NUMBER",
    "since": "TIME",
    "until": "TIME",
}


def _metavar(name: str, field: FieldInfo, types: set[Any]) -> str:
    own = _metadata(field)
    if own is not None and own.metavar:
        return own.metavar
    choices = _choices(field.annotation)
    if choices:
        return "|".join(choices)
    if int in types:
        return "INTEGER"
    if float in types:
        return "NUMBER"
    return _METAVARS.get(name, "ID" if name.endswith("_id") else "TEXT")


def _order_flag(field: FieldInfo) -> str:
    return "--oldest-first" if field.default is SortOrder.DESC else "--newest-first"


def _order_help(field: FieldInfo) -> str:
    oldest, newest = "Oldest first", "Newest first"
    flag, default = (oldest, newest) if field.default is SortOrder.DESC else (newest, oldest)
    return f"{flag}; default: {default.lower()}."


def _types(annotation: Any) -> Iterator[Any]:
    """The types of an annotation, without None and without what pydantic knows about them."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _types(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for part in get_args(annotation):
            yield from _types(part)
    elif annotation is not type(None):
        yield annotation


def _item_types(annotation: Any) -> Iterator[Any]:
    """The same, of a list those of its items."""
    for kind in _types(annotation):
        yield from _types(get_args(kind)[0]) if get_origin(kind) is tuple else (kind,)


def _choices(annotation: Any) -> list[str]:
    for kind in _item_types(annotation):
        if get_origin(kind) is Literal:
            return [str(value) for value in get_args(kind)]
        if isinstance(kind, type) and issubclass(kind, Enum):
            return [str(value) for value in kind]
    return []


def _kebab(alias: str) -> str:
    return "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in alias.replace("_", "-"))


Model = TypeVar("Model", bound=Query)


def _parse(model: type[Model], values: Mapping[str, Any], config: Path | None) -> Model:
    present = {name: value for name, value in values.items() if value is not None}
    if "order" in present:
        turned = present.pop("order")
        default = model.model_fields["order"].default
        present["order"] = (
            {SortOrder.ASC: SortOrder.DESC, SortOrder.DESC: SortOrder.ASC}[default] if turned else default
        )
    return parse_query(model, present, config)


def parse_query(model: type[Model], values: Mapping[str, Any], config: Path | None = None) -> Model:
    """The query with these values, by the names of its fields; raises a usage error that names the option.

    The settings are read only if a number without a country code needs them.
    """

    def country_code() -> str:
        from receiver.settings import load

        return load(config).country_code

    context: NumberContext = {"country_code": country_code}
    try:
        return model.model_validate(values, by_alias=False, by_name=True, context=context)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = str(problem["loc"][0])
        message = problem["msg"].removeprefix("Value error, ")
        hint = option_name(name, model.model_fields[name]) if name in model.model_fields else name
        raise typer.BadParameter(message, param_hint=hint) from None
