"""Every setting: its type, default and description. Wrong, unknown and contradictory settings prevent the start.

Environment variables `RECEIVER_*` win over a TOML file, which wins over a directory of secrets.
"""

import ipaddress
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import quote, urlsplit

import orjson
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    IPvAnyNetwork,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from receiver.domain.delivery import FinalConflict
from receiver.errors import SettingsError, first_of
from receiver.providers import PROVIDERS
from receiver.reconciliation.settings import Reconciliation
from receiver.settings_sources import (
    PREFIX,
    Environment,
    Secrets,
    config_file,
    is_service_link,
    is_written,
    problems,
    secrets_directory,
    unknown_secrets,
    unknown_variables,
)
from receiver.sinks.base import Duration
from receiver.storage.database import driver_url
from receiver.tags import TagPolicy, parse_keys
from receiver.tracing.settings import TracingSettings

Days = Annotated[int, Field(ge=0)]


class Retention(BaseModel):
    """The ages in days after which data is removed; 0 keeps it for ever."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: Days = Field(30, description="Days to keep the text and media of messages; 0 keeps them for ever.")
    callbacks: Days = Field(30, description="Days to keep raw callbacks, quarantined ones too; 0 keeps them for ever.")
    events: Days = Field(180, description="Days to keep the event log; 0 keeps it for ever.")
    attempts: Days = Field(30, description="Days to keep the record of attempts to publish; 0 keeps it for ever.")
    messages: Days = Field(
        400,
        description="Days to keep messages and their deliveries, since they were created and since they last changed; "
        "0 keeps them for ever.",
    )

    @property
    def ages(self) -> dict[str, timedelta]:
        """The ages by name, without those that are 0."""
        return {name: timedelta(days=days) for name, days in self if days}


TABLES: Final[Mapping[str, type[BaseModel]]] = {
    "retention": Retention,
    "reconciliation": Reconciliation,
    "tracing": TracingSettings,
}
"""The settings that are tables of settings."""


class Settings(BaseSettings):
    """The settings of `receiver`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        validate_default=True,
    )

    data_dir: Path = Field(
        Path("receiver-data"), description="The directory of the SQLite database and of generated credentials."
    )
    database_url: SecretStr | None = Field(
        None,
        description="`sqlite:///relative.db`, `sqlite:////absolute.db` (the journal is a file beside it: "
        "`callbacks.db` for `receiver.db`, else `name-callbacks.db`) or `postgresql://user:password@host/name` "
        "(see `receiver help deploy`). Without it SQLite in the data directory.",
    )
    host: str = Field("127.0.0.1", min_length=1, description="The address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="The port to listen on; 0 takes a free port.")
    worker: Literal["process", "inline", "none"] = Field(
        "process",
        description="Where callbacks are processed and events are published: in a child process of `serve`, in a "
        "thread of it (`inline`, the default of `create_app`), or elsewhere by `receiver work` (`none`).",
    )
    keep_alive: int = Field(
        75,
        ge=1,
        le=3600,
        description="Seconds for which a connection stays open between two requests. A proxy in front must close its "
        "own connections sooner, or it loses requests: nginx keeps them for 60 s.",
    )
    public_url: str | None = Field(
        None,
        description="The beginning of the printed URLs and of the links of the API. Without it they are made from host "
        "and port.",
    )
    source: str | None = Field(
        None,
        description="The beginning of the `source` of published events, in place of `/bandwidth`: `/sms/staging` makes "
        "`/sms/staging/v2`. So the events of two receivers on one bus can be told apart.",
    )
    country_code: str = Field(
        "1",
        pattern=r"^[1-9][0-9]{0,2}$",
        description="The country code of a number that is searched for without one. Callbacks are stored as they come.",
    )
    callback_credentials: list[SecretStr] = Field(
        [],
        description='List of `"user:password"` for callbacks. Each of them is accepted, the first is printed. With '
        "SQLite the first start generates them. On an address that others can reach a password has at least 8 "
        "characters.",
    )
    callback_keys: dict[str, SecretStr] = Field(
        {},
        description="Keys of providers that sign their callbacks, by API. Bandwidth signs none: its callbacks need "
        "`callback_credentials`.",
    )
    callback_auth: Literal["basic", "none"] = Field("basic", description="How callbacks are authenticated.")
    api_tokens: list[SecretStr] = Field(
        [],
        description='List of `"token"`, `"name:read:token"` or `"name:admin:token"`; a token without a name may do '
        "everything. With SQLite the first start generates a token. On an address that others can reach a token has at "
        "least 16 characters.",
    )
    api_auth: Literal["token", "none"] = Field("token", description="How the query API is authenticated.")
    metrics_auth: Literal["token", "none"] = Field("token", description="How `/metrics` is authenticated.")
    insecure_no_auth: bool = Field(
        False, description="Allows a public address or URL with authentication switched off, or with short secrets."
    )
    trusted_proxies: list[IPvAnyNetwork] = Field([], description="Networks whose `X-Forwarded-*` headers are trusted.")
    request_id_header: str = Field(
        "X-Request-ID",
        pattern=r"^[A-Za-z0-9-]{1,64}$",
        description="The header with the id that a proxy gives each request. The id is in the log lines and in the "
        "answer of the request. A request without it gets a new one, and so does an id that is not 1 to 128 printable "
        "ASCII characters without spaces.",
    )
    callback_networks: list[IPvAnyNetwork] = Field(
        [],
        description="Networks that callbacks may come from; others are answered 403. Empty: any network.",
    )
    tag_keys: list[SecretStr] = Field(
        [],
        description='List of `"kid:secret"`: the first key signs tags, all keys verify them. On an address that others '
        "can reach a secret has at least 16 characters.",
    )
    tag_policy: TagPolicy = Field(
        TagPolicy.RECORD,
        description="`off` checks no tag; `record` stores and publishes the verdict; `require` quarantines an outbound "
        "event whose tag is not valid.",
    )
    final_conflict: FinalConflict = Field(
        FinalConflict.FAILED_WINS,
        description="Which status wins if a recipient is reported both delivered and failed. `delivered-wins` lets "
        "delivered win over a failure on the network's side. Run `receiver rebuild` after a change.",
    )
    max_body_bytes: int = Field(1_048_576, ge=1024, description="A callback with a larger body is answered 413.")
    # Not in `repr`: the tables may contain passwords.
    sinks: list[dict[str, Any]] = Field(
        [], repr=False, description="The sinks that events are published to: `name`, `type` and the fields of the type."
    )
    # Not in `repr` either: targets for people may contain passwords.
    alerts: list[dict[str, Any]] = Field(
        [],
        repr=False,
        description="The rules of alerts: `rule`, and the fields in which it differs from the defaults of its type. "
        "Without any, a rule of each type is in force.",
    )
    alerts_every: Duration = Field(
        timedelta(seconds=30),
        json_schema_extra={"default": "30s"},
        ge=timedelta(0),
        le=timedelta(minutes=10),
        description="How often the rules of alerts are evaluated, such as `30s`, at least `1s`; 0 switches alerts off.",
    )
    alert_to: list[SecretStr] = Field(
        [],
        description="Targets for people of the rules without `to`: URLs such as `mailto://…` or `slack://…`, "
        "`env:NAME` or `file:/path`.",
    )
    alert_title: str | None = Field(
        None,
        description="The template of the title of notifications, or `file:/path`; its values are in "
        "`receiver help alerts`.",
    )
    alert_body: str | None = Field(None, description="The template of the text of notifications, or `file:/path`.")
    alert_egress_allow: list[IPvAnyNetwork] = Field(
        [],
        description="Networks that PagerDuty, Opsgenie and Alertmanager targets may be in, besides public addresses.",
    )
    retention: Retention = Field(Retention(), description="Days after which data is deleted; 0 keeps it for ever.")
    reconciliation: Reconciliation = Field(
        Reconciliation(), description="Looking up messages without a final event at Bandwidth; off without credentials."
    )
    tracing: TracingSettings = Field(TracingSettings(), description="Where traces go to.")
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="The format of the log on standard error; `auto` is `console` on a terminal, else `json`."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="The lowest level logged.")

    @field_validator("database_url")
    @classmethod
    def _check_database_url(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            try:
                driver_url(url.get_secret_value())
            except SettingsError as error:
                raise ValueError(str(error)) from None
        return url

    @field_validator("alerts_every")
    @classmethod
    def _check_alerts_every(cls, every: timedelta) -> timedelta:
        if timedelta(0) < every < timedelta(seconds=1):
            raise ValueError("must be at least 1s, or 0, which switches alerts off")
        return every

    @field_validator("public_url")
    @classmethod
    def _check_url(cls, url: str | None) -> str | None:
        if url is not None and not (url.startswith(("http://", "https://")) and _host_of(url)):
            raise ValueError("must begin with https:// or http:// and a host")
        return url

    @field_validator("source")
    @classmethod
    def _check_source(cls, source: str | None) -> str | None:
        if source is not None and not re.fullmatch(r"[A-Za-z0-9._~:/?#@!$&'()*+,;=%-]*[A-Za-z0-9]/?", source):
            raise ValueError("must be the beginning of a URI or of a path, for example /sms/staging")
        return source

    @field_validator("callback_credentials")
    @classmethod
    def _check_pairs(cls, credentials: list[SecretStr]) -> list[SecretStr]:
        pairs = [credential.get_secret_value().partition(":") for credential in credentials]
        if not all(user and password for user, _, password in pairs):
            raise ValueError('each must be "user:password"')
        return credentials

    @field_validator("callback_keys")
    @classmethod
    def _check_apis(cls, keys: dict[str, SecretStr]) -> dict[str, SecretStr]:
        if unknown := sorted(keys.keys() - PROVIDERS.keys()):
            raise ValueError(f"{unknown[0]} is not one of {', '.join(sorted(PROVIDERS))}")
        return keys

    @field_validator("api_tokens")
    @classmethod
    def _check_tokens(cls, tokens: list[SecretStr]) -> list[SecretStr]:
        for number, token in enumerate(tokens, start=1):
            name, *rest = token.get_secret_value().split(":", 2)
            if not (rest or name) or (len(rest) == 2 and not rest[1]):
                raise ValueError("a token is empty")
            # A misspelled `read` would give a token, by another name, the right to do everything.
            if rest and (len(rest) < 2 or rest[0] not in ("read", "admin") or not name):
                raise ValueError(
                    f'entry {number}: must be "token", "name:read:token" or "name:admin:token"; '
                    "a token alone has no colon"
                )
        return tokens

    @field_validator("tag_keys")
    @classmethod
    def _check_tag_keys(cls, keys: list[SecretStr]) -> list[SecretStr]:
        parse_keys(key.get_secret_value() for key in keys)
        return keys

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        toml = TomlConfigSettingsSource(settings_cls)
        return init_settings, Environment(settings_cls), toml, Secrets(settings_cls)

    @property
    def database(self) -> str:
        """The database's URL, with its password."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        # Quoted: a `?` in the name of the directory would begin the parameters of the URL.
        return f"sqlite:///{quote(str(self.data_dir / 'receiver.db'))}"

    @property
    def base_url(self) -> str:
        return self.public_url.rstrip("/") if self.public_url is not None else self.listen_url

    @property
    def listen_url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the listening address and the public URL."""
        return _is_loopback(self.host) and _is_loopback(_host_of(self.base_url))

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        problems = []
        if not self.is_loopback and not self.insecure_no_auth:
            switched_off = [
                f"{PREFIX}{name.upper()}" for name in ("callback_auth", "api_auth") if getattr(self, name) == "none"
            ]
            problems += [
                f"{name}: authentication is off, but {self.base_url} is not a loopback address; "
                f"switch it on, or set {PREFIX}INSECURE_NO_AUTH=1 to allow this"
                for name in switched_off[:1]
            ]
            problems += self._weak_secrets()
        if self.tag_policy is TagPolicy.REQUIRE and not self.tag_keys:
            problems.append(f"{PREFIX}TAG_POLICY: require needs a key in {PREFIX}TAG_KEYS")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _weak_secrets(self) -> Iterator[str]:
        """A line for each secret that could be guessed by those who reach this server."""
        secrets = {
            "api_tokens": (16, [bare_token(token.get_secret_value()) for token in self.api_tokens]),
            "callback_credentials": (8, [_after_colon(pair) for pair in self.callback_credentials]),
            "tag_keys": (16, [_after_colon(key) for key in self.tag_keys]),
        }
        for name, (least, values) in secrets.items():
            for number, value in enumerate(values, start=1):
                if len(value) < least:
                    yield (
                        f"{PREFIX}{name.upper()}: entry {number}: the secret has fewer than {least} characters, but "
                        f"{self.base_url} is not a loopback address; make it longer, or set {PREFIX}INSECURE_NO_AUTH=1"
                    )


def bare_token(entry: str) -> str:
    """The token that a request carries, from `token` or `name:access:token`."""
    parts = entry.split(":", 2)
    return parts[2] if len(parts) == 3 and parts[1] in ("read", "admin") else entry


def _after_colon(pair: SecretStr) -> str:
    return pair.get_secret_value().partition(":")[2]


class GivenSettings(Settings):
    """Settings from arguments alone, without environment and files."""

    @classmethod
    def settings_customise_sources(  # type: ignore[override]
        cls, _: type[BaseSettings], init_settings: PydanticBaseSettingsSource, **__: PydanticBaseSettingsSource
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def dump(settings: Settings) -> bytes:
    """Settings as JSON, with their secrets, for the worker process; `restore` reads it."""
    return orjson.dumps(settings.model_dump(), default=_plain)


def restore(dumped: bytes) -> Settings:
    return GivenSettings(**orjson.loads(dumped))


def _plain(value: object) -> str | float:
    if isinstance(value, timedelta):
        return value.total_seconds()
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def load(config: Path | None = None, **overrides: Any) -> Settings:
    """Reads the settings from environment, TOML file and secrets directory; `overrides` win over all.

    Raises SettingsError with one line that names the setting; its `problems` are the lines of all wrong settings.
    """
    toml, secrets = config_file(config), secrets_directory()
    fields = Settings.model_fields
    sourced = _sourced(toml, secrets)
    wrong = [*unknown_variables(fields), *unknown_secrets(secrets, fields)]
    settings = None
    try:
        settings = sourced(**overrides)
    except ValidationError as error:
        wrong += problems(error, toml, fields, TABLES)
    except tomllib.TOMLDecodeError as error:
        wrong.append(f"{toml}: {error}")
    except UnicodeDecodeError:
        wrong.append(f"{toml or secrets} is not UTF-8; save it as UTF-8")
    if settings is None or wrong:
        raise SettingsError(first_of(wrong), problems=wrong)
    return settings


def load_valid(config: Path | None = None) -> tuple[Settings, frozenset[str]] | None:
    """The settings with the defaults in place of wrong values, and the names of these; None if a source is unreadable.

    For reports alone: contradictions and unknown settings are in no one's way here.
    """

    class Lenient(_sourced(config_file(config), secrets_directory())):  # type: ignore[misc]
        model_config = SettingsConfigDict(extra="ignore")

        @model_validator(mode="after")
        def _refuse_contradictions(self) -> Self:
            return self

    fields = Settings.model_fields
    try:
        return Lenient(), frozenset()
    except ValidationError as error:
        wrong = {str(problem["loc"][0]) for problem in error.errors(include_input=False) if problem["loc"]}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        return None
    return Lenient(**{name: fields[name].default for name in wrong}), frozenset(wrong)


def _sourced(toml: Path | None, secrets: str | None) -> type[Settings]:
    class Sourced(Settings):
        model_config = SettingsConfigDict(toml_file=toml, secrets_dir=secrets)

    return Sourced


def sources(config: Path | None = None) -> dict[tuple[str, ...], str]:
    """Where the value of each setting comes from, by its path; `load` must accept the settings."""
    file, directory = config_file(config), secrets_directory()
    written = tomllib.loads(file.read_text("utf-8")) if file is not None else {}
    secrets = {one.name.lower(): one for one in Path(directory).iterdir()} if directory else {}
    variables = {name.upper(): value for name, value in os.environ.items() if not is_service_link(name.upper(), value)}

    def source(*path: str) -> str:
        name, whole = (f"{PREFIX}{'__'.join(part)}".upper() for part in (path, path[:1]))
        if name in variables:
            return name
        # The variable of the whole table may hold some of its settings.
        if whole in variables and path[1] in orjson.loads(variables[whole]):
            return whole
        if is_written(path, written):
            return str(file)
        secret = secrets.get(whole.lower())
        return str(secret) if secret is not None else "default"

    found: dict[tuple[str, ...], str] = {}
    for name in Settings.model_fields:
        if (table := TABLES.get(name)) is not None:
            found |= {(name, inner): source(name, inner) for inner in table.model_fields}
        else:
            found[(name,)] = source(name)
    return found


def _host_of(url: str) -> str:
    return urlsplit(url).hostname or ""


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
