"""Where the values of settings come from, and what is wrong with them: a line for each, without the value."""

import ipaddress
import os
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SecretsSettingsSource

from receiver.errors import SettingsError, did_you_mean

PREFIX: Final = "RECEIVER_"
DEFAULT_CONFIG: Final = "receiver.toml"
SOURCES: Final = {
    "RECEIVER_CONFIG": "The TOML file; `--config` wins over it. Without both `./receiver.toml`, if it exists.",
    "RECEIVER_SECRETS_DIR": "A directory with one file for each secret setting, named like `receiver_api_tokens`.",
}
"""Environment variables that name the sources of settings. They are not settings."""
_TEST_PREFIX: Final = "RECEIVER_TEST_"

# --- the sources ---


def config_file(config: Path | None) -> Path | None:
    """The TOML file: of `--config` or RECEIVER_CONFIG, which must exist, else ./receiver.toml if it exists."""
    named = config or os.environ.get(f"{PREFIX}CONFIG")
    if named is None and not Path(DEFAULT_CONFIG).exists():
        return None
    file = Path(named or DEFAULT_CONFIG)
    # A container engine that mounts a missing file creates a directory of that name, which must be an error.
    if not file.is_file():
        raise SettingsError(f"{'--config' if config else f'{PREFIX}CONFIG'}: there is no file {file}")
    return file


def secrets_directory() -> str | None:
    """The directory of secrets that RECEIVER_SECRETS_DIR names."""
    named = os.environ.get(f"{PREFIX}SECRETS_DIR")
    if named is not None and not Path(named).is_dir():
        raise SettingsError(f"{PREFIX}SECRETS_DIR: there is no directory {named}")
    return named


# A Service of the name `receiver` in the same namespace: https://kubernetes.io/docs/concepts/services-networking/service/
_SERVICE_LINK: Final = re.compile(r"SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?")


def is_service_link(variable: str, value: str | None, prefix: str = PREFIX) -> bool:
    """Whether a variable is one that Kubernetes adds for a Service called as the prefix, and no setting of anybody."""
    if variable == f"{prefix}PORT":
        return value is not None and re.match(r"(tcp|udp|sctp)://", value) is not None
    return variable.startswith(prefix) and _SERVICE_LINK.fullmatch(variable.removeprefix(prefix)) is not None


class _NotJson(str):
    """A value of the environment or of a secret that should be JSON and is not."""

    __slots__ = ()


class _Undecoded(PydanticBaseSettingsSource):
    """A source that leaves a value that is not JSON to the validation, where its error hides no others."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return _NotJson(value)


class Environment(_Undecoded, EnvSettingsSource):
    """The environment, without what Kubernetes adds to it."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls)
        given = self.env_vars.items()
        self.env_vars = {name: value for name, value in given if not is_service_link(name.upper(), value)}


class Secrets(_Undecoded, SecretsSettingsSource):
    """The directory of secrets."""


# --- the problems ---


def unknown_secrets(directory: str | None, fields: Collection[str]) -> Iterator[str]:
    """A line for each file with the prefix of settings whose name is not a setting: it would be ignored silently."""
    for name in sorted(file.name for file in Path(directory).iterdir()) if directory else ():
        variable = name.upper()
        if variable.startswith(PREFIX) and variable.removeprefix(PREFIX).lower() not in fields:
            prefix = PREFIX.lower()
            meant = did_you_mean(name.lower(), (f"{prefix}{field}" for field in fields), prefix=prefix)
            yield f"{PREFIX}SECRETS_DIR: {name} is not a setting of receiver{meant}"


def unknown_variables(fields: Collection[str]) -> Iterator[str]:
    """A line for each variable with the prefix of settings whose name is not a setting."""
    for variable in os.environ:
        if variable in SOURCES or not variable.startswith(PREFIX) or variable.startswith(_TEST_PREFIX):
            continue
        if is_service_link(variable, os.environ[variable]):
            continue
        if variable.removeprefix(PREFIX).lower().split("__")[0] not in fields:
            known = (*SOURCES, *(f"{PREFIX}{field}".upper() for field in fields))
            yield f"{variable} is not a setting of receiver{did_you_mean(variable, known, prefix=PREFIX)}"


def problems(
    error: ValidationError, file: Path | None, fields: Collection[str], tables: Mapping[str, type[BaseModel]]
) -> Iterator[str]:
    """A line for each wrong setting, with the TOML file for those that are written there.

    `fields` are the names of all settings, `tables` those of them that are tables of settings.
    """
    written = tomllib.loads(file.read_text("utf-8")) if file is not None else {}
    for problem in error.errors(include_url=False):
        path = [part for part in problem["loc"] if isinstance(part, str)]
        if not path:
            # All contradictions at once.
            yield from problem["msg"].removeprefix("Value error, ").splitlines()
            continue
        name = f"{PREFIX}{'__'.join(path)}".upper()
        is_in_file = is_written(path, written) and name not in map(str.upper, os.environ)
        if problem["type"] == "extra_forbidden":
            known = fields if len(path) == 1 else tables[path[0]].model_fields
            if is_in_file:
                prefix = "".join(f"{part}." for part in path[:-1])
                meant = did_you_mean(".".join(path), (prefix + field for field in known), prefix=prefix)
                yield f"{file}: {'.'.join(path)} is not a setting of receiver{meant}"
            else:
                prefix = PREFIX + "".join(f"{part}__".upper() for part in path[:-1])
                meant = did_you_mean(name, (prefix + field.upper() for field in known), prefix=prefix)
                yield f"{name} is not a setting of receiver{meant}"
        elif isinstance(problem["input"], _NotJson):
            yield f'{name} must be JSON, for example ["value"]'
        else:
            entries = [f"entry {part + 1}: " for part in problem["loc"] if isinstance(part, int)]
            reason = f"{''.join(entries)}{_reason(path, problem)}{f' (in {file})' if is_in_file else ''}"
            # An error about the database's URL begins with the name.
            yield reason if reason.startswith(name) else f"{name}: {reason}"


def is_written(path: Sequence[str], table: Any) -> bool:
    """Whether a TOML file has a setting."""
    for part in path:
        if not isinstance(table, dict) or part not in table:
            return False
        table = table[part]
    return True


def _reason(path: Sequence[str], problem: ErrorDetails) -> str:
    """What is wrong with a value, without the value."""
    value = problem["input"]
    if path == ["sinks"] and isinstance(value, dict):
        return "must be a list of tables; in TOML write [[sinks]], not [sinks]"
    if path == ["alerts"] and isinstance(value, dict):
        return "must be a list of tables; in TOML write [[alerts]], not [alerts]"
    if problem["type"] == "ip_any_network":
        with suppress(ValueError):
            return f"the address has bits beyond its prefix; did you mean {ipaddress.ip_network(value, strict=False)}?"
    return problem["msg"].removeprefix("Value error, ")
