"""Settings: their sources, precedence, and the error line of a wrong setting."""

import json
import os
import tomllib
from collections.abc import Callable
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from receiver.domain.delivery import FinalConflict
from receiver.errors import SettingsError
from receiver.reconciliation.settings import Reconciliation
from receiver.settings import GivenSettings, Retention, Settings, dump, load, restore
from receiver.storage import sqlite_file
from receiver.tags import TagPolicy
from receiver.tracing.settings import TracingSettings

Set = Callable[..., None]


@pytest.fixture(autouse=True)
def _empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("RECEIVER_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def set_env(monkeypatch: pytest.MonkeyPatch) -> Set:
    def set_env(**settings: str) -> None:
        for name, value in settings.items():
            monkeypatch.setenv(f"RECEIVER_{name}", value)

    return set_env


def plain(value: Any) -> Any:
    """A setting's value with its secrets shown."""
    match value:
        case SecretStr():
            return value.get_secret_value()
        case list():
            return [plain(item) for item in value]
        case dict():
            return {name: plain(item) for name, item in value.items()}
        case _:
            return value


# --- defaults


def test_the_defaults_are_those_of_the_interface() -> None:
    settings = load()
    assert settings.data_dir == Path("receiver-data")
    assert settings.database == "sqlite:///receiver-data/receiver.db"
    assert (settings.host, settings.port) == ("127.0.0.1", 8080)
    assert settings.base_url == "http://127.0.0.1:8080"
    assert (settings.callback_auth, settings.api_auth, settings.metrics_auth) == ("basic", "token", "token")
    assert (settings.tag_policy, settings.final_conflict) == (TagPolicy.RECORD, FinalConflict.FAILED_WINS)
    assert settings.max_body_bytes == 1_048_576
    assert settings.sinks == settings.trusted_proxies == settings.callback_networks == []
    ages = {"text": 30, "callbacks": 30, "events": 180, "attempts": 30, "messages": 400}
    assert settings.retention.model_dump() == ages


# --- sources

# every setting: a value in the environment, the same value in TOML, and the parsed value
VALUES: list[tuple[str, str, Any, Any]] = [
    ("data_dir", "/var/lib/receiver", "/var/lib/receiver", Path("/var/lib/receiver")),
    ("database_url", "postgresql://u:p@h/d", "postgresql://u:p@h/d", "postgresql://u:p@h/d"),
    ("host", "::1", "::1", "::1"),
    ("port", "9000", 9000, 9000),
    ("worker", "inline", "inline", "inline"),
    ("public_url", "https://sms.example.com", "https://sms.example.com", "https://sms.example.com"),
    ("source", "/sms/staging", "/sms/staging", "/sms/staging"),
    ("callback_credentials", '["u:p:q"]', ["u:p:q"], ["u:p:q"]),
    ("callback_keys", '{"v2": "k"}', {"v2": "k"}, {"v2": "k"}),
    ("callback_auth", "none", "none", "none"),
    ("api_tokens", '["t", "ops:read:u"]', ["t", "ops:read:u"], ["t", "ops:read:u"]),
    ("api_auth", "none", "none", "none"),
    ("metrics_auth", "none", "none", "none"),
    ("insecure_no_auth", "1", True, True),
    ("keep_alive", "60", 60, 60),
    ("country_code", "49", "49", "49"),
    ("trusted_proxies", '["10.0.0.0/8"]', ["10.0.0.0/8"], [ip_network("10.0.0.0/8")]),
    ("request_id_header", "X-Amzn-Trace-Id", "X-Amzn-Trace-Id", "X-Amzn-Trace-Id"),
    ("callback_networks", '["192.0.2.0/24", "2001:db8::/32"]', ["192.0.2.0/24", "2001:db8::/32"], None),
    ("tag_keys", '["k1:s:t"]', ["k1:s:t"], ["k1:s:t"]),
    ("tag_policy", "off", "off", TagPolicy.OFF),
    ("final_conflict", "delivered-wins", "delivered-wins", FinalConflict.DELIVERED_WINS),
    ("max_body_bytes", "2048", 2048, 2048),
    ("sinks", '[{"name": "a", "type": "jsonl"}]', [{"name": "a", "type": "jsonl"}], [{"name": "a", "type": "jsonl"}]),
    ("alerts", '[{"rule": "storage"}]', [{"rule": "storage"}], [{"rule": "storage"}]),
    ("alerts_every", "1m", "1m", timedelta(minutes=1)),
    ("retention", '{"text": 7}', {"text": 7}, Retention(text=7)),
    ("reconciliation", '{"after": 900}', {"after": 900}, Reconciliation(after=900)),
    ("tracing", '{"ratio": 0.5}', {"ratio": 0.5}, TracingSettings(ratio=0.5)),
    ("log_format", "json", "json", "json"),
    ("log_level", "debug", "debug", "debug"),
    ("alerts", '[{"rule": "storage"}]', [{"rule": "storage"}], [{"rule": "storage"}]),
    ("alerts_every", "1m", "1m", timedelta(minutes=1)),
    ("alert_to", '["json://a/b"]', ["json://a/b"], ["json://a/b"]),
    ("alert_title", "$name", "$name", "$name"),
    ("alert_body", "$summary", "$summary", "$summary"),
    ("alert_egress_allow", '["10.0.0.0/8"]', ["10.0.0.0/8"], [ip_network("10.0.0.0/8")]),
]
NAMES = [name for name, *_ in VALUES]


def test_every_setting_is_covered_by_these_tests() -> None:
    assert set(NAMES) == set(Settings.model_fields)


def wanted_of(name: str, wanted: Any) -> Any:
    return [ip_network("192.0.2.0/24"), ip_network("2001:db8::/32")] if name == "callback_networks" else wanted


@pytest.mark.parametrize(("name", "text", "_toml", "wanted"), VALUES, ids=NAMES)
def test_a_setting_comes_from_the_environment(set_env: Set, name: str, text: str, _toml: Any, wanted: Any) -> None:
    set_env(**{name.upper(): text})
    assert plain(getattr(load(), name)) == wanted_of(name, wanted)


@pytest.mark.parametrize(("name", "_text", "toml", "wanted"), VALUES, ids=NAMES)
def test_a_setting_comes_from_the_toml_file(tmp_path: Path, name: str, _text: str, toml: Any, wanted: Any) -> None:
    (tmp_path / "receiver.toml").write_text(f"{name} = {as_toml(toml)}")
    assert plain(getattr(load(), name)) == wanted_of(name, wanted)


@pytest.mark.parametrize(("name", "text", "_toml", "wanted"), VALUES, ids=NAMES)
def test_a_setting_comes_from_the_secrets_directory(
    tmp_path: Path, set_env: Set, name: str, text: str, _toml: Any, wanted: Any
) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / f"receiver_{name}").write_text(f"{text}\n")
    set_env(SECRETS_DIR="secrets")
    assert plain(getattr(load(), name)) == wanted_of(name, wanted)


def as_toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {as_toml(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return json.dumps(value)


def test_a_table_of_sinks_is_written_as_toml_writes_tables(tmp_path: Path) -> None:
    text = '[[sinks]]\nname = "a"\ntype = "jsonl"\n[[sinks]]\nname = "b"\ntype = "webhook"\n[retention]\ntext = 1\n'
    assert tomllib.loads(text)["sinks"][1]["name"] == "b"
    (tmp_path / "receiver.toml").write_text(text)
    settings = load()
    assert [sink["name"] for sink in settings.sinks] == ["a", "b"]
    assert settings.retention.text == 1


def test_a_nested_setting_is_reached_with_two_underscores(set_env: Set) -> None:
    set_env(RETENTION__TEXT="7", RETENTION__MESSAGES="0")
    retention = load().retention
    assert (retention.text, retention.callbacks, retention.messages) == (7, 30, 0)
    assert retention.ages == {
        "text": timedelta(days=7),
        "callbacks": timedelta(days=30),
        "events": timedelta(days=180),
        "attempts": timedelta(days=30),
    }


def test_nested_settings_of_environment_and_file_are_merged(tmp_path: Path, set_env: Set) -> None:
    (tmp_path / "receiver.toml").write_text("[retention]\ntext = 1\nevents = 2\n")
    set_env(RETENTION__TEXT="7")
    assert (load().retention.text, load().retention.events) == (7, 2)


# --- precedence


def test_precedence_option_environment_file_secrets(tmp_path: Path, set_env: Set) -> None:
    (tmp_path / "secrets").mkdir()
    for name, value in {"host": "secret", "port": "1", "data_dir": "secret", "log_level": "error"}.items():
        (tmp_path / "secrets" / f"receiver_{name}").write_text(value)
    (tmp_path / "receiver.toml").write_text('host = "toml"\nport = 2\ndata_dir = "toml"\n')
    set_env(SECRETS_DIR="secrets", HOST="env", PORT="3")
    settings = load(port=4)
    assert (settings.port, settings.host, settings.data_dir, settings.log_level) == (4, "env", Path("toml"), "error")


def test_config_file_of_option_else_environment_else_current_folder(tmp_path: Path, set_env: Set) -> None:
    for number, name in enumerate(("receiver.toml", "env.toml", "option.toml"), start=1):
        (tmp_path / name).write_text(f"port = {number}")
    assert load().port == 1
    set_env(CONFIG="env.toml")
    assert load().port == 2
    assert load(Path("option.toml")).port == 3


def test_receiver_test_variables_are_ignored(set_env: Set) -> None:
    set_env(TEST_POSTGRES_URL="postgresql://x")
    load()


def test_variables_of_a_kubernetes_service_called_receiver_are_no_settings(set_env: Set) -> None:
    links = {
        "SERVICE_HOST": "10.96.0.12",
        "SERVICE_PORT": "80",
        "SERVICE_PORT_HTTP": "80",
        "PORT": "tcp://10.96.0.12:80",
        "PORT_80_TCP": "tcp://10.96.0.12:80",
        "PORT_80_TCP_PROTO": "tcp",
        "PORT_80_TCP_PORT": "80",
        "PORT_80_TCP_ADDR": "10.96.0.12",
    }
    Path("receiver.toml").write_text("port = 8123")
    set_env(**links)
    assert load().port == 8123
    set_env(PORT="8124")
    assert load().port == 8124
    set_env(SERVICE_NAME="x")
    with pytest.raises(SettingsError, match=r"^RECEIVER_SERVICE_NAME is not a setting of receiver"):
        load()


@pytest.mark.parametrize("name", ["data?v2", "50%20 off", "a#b", "a+b ?&=c"])
def test_data_directory_may_have_any_name(name: str) -> None:
    settings = Settings(data_dir=Path(name))
    assert sqlite_file.file_of(settings.database) == Path(name) / "receiver.db"


# --- wrong settings

WRONG: list[tuple[dict[str, str], str]] = [
    ({"COLOUR": "blue"}, "RECEIVER_COLOUR is not a setting of receiver"),
    ({"HOSTS": "x"}, "RECEIVER_HOSTS is not a setting of receiver"),
    ({"RETENTION__TXT": "1"}, "RECEIVER_RETENTION__TXT is not a setting of receiver"),
    ({"RETENTION__TEXT": "-1"}, "RECEIVER_RETENTION__TEXT: "),
    ({"RETENTION__TEXT": "a month"}, "RECEIVER_RETENTION__TEXT: "),
    ({"RETENTION": "30"}, "RECEIVER_RETENTION: "),
    (
        {"ALERTS": '{"rule": "storage"}'},
        "RECEIVER_ALERTS: must be a list of tables; in TOML write [[alerts]], not [alerts]",
    ),
    ({"ALERTS_EVERY": "often"}, "RECEIVER_ALERTS_EVERY: must be a duration such as "),
    ({"PORT": "http"}, "RECEIVER_PORT: "),
    ({"PORT": "65536"}, "RECEIVER_PORT: "),
    ({"HOST": ""}, "RECEIVER_HOST: "),
    ({"PUBLIC_URL": "sms.example.com"}, "RECEIVER_PUBLIC_URL: "),
    ({"PUBLIC_URL": "ftp://sms.example.com"}, "RECEIVER_PUBLIC_URL: "),
    ({"SOURCE": ""}, "RECEIVER_SOURCE: must be the beginning of a URI or of a path, for example /sms/staging"),
    ({"SOURCE": "my receiver"}, "RECEIVER_SOURCE: must be the beginning of a URI"),
    ({"CALLBACK_CREDENTIALS": "user:password"}, 'RECEIVER_CALLBACK_CREDENTIALS must be JSON, for example ["'),
    ({"CALLBACK_CREDENTIALS": '"user:password"'}, "RECEIVER_CALLBACK_CREDENTIALS: "),
    ({"CALLBACK_CREDENTIALS": '["hunter2"]'}, 'RECEIVER_CALLBACK_CREDENTIALS: each must be "user:password"'),
    ({"CALLBACK_CREDENTIALS": '["user:"]'}, 'RECEIVER_CALLBACK_CREDENTIALS: each must be "user:password"'),
    ({"CALLBACK_CREDENTIALS": '[":hunter2"]'}, 'RECEIVER_CALLBACK_CREDENTIALS: each must be "user:password"'),
    ({"CALLBACK_KEYS": '{"v3": "hunter2"}'}, "RECEIVER_CALLBACK_KEYS: v3 is not one of "),
    ({"CALLBACK_AUTH": "digest"}, "RECEIVER_CALLBACK_AUTH: "),
    ({"API_TOKENS": "hunter2"}, "RECEIVER_API_TOKENS must be JSON"),
    ({"API_TOKENS": '[""]'}, "RECEIVER_API_TOKENS: a token is empty"),
    ({"API_TOKENS": '["ops:read:"]'}, "RECEIVER_API_TOKENS: a token is empty"),
    ({"API_TOKENS": "[1]"}, "RECEIVER_API_TOKENS: entry 1: "),
    ({"API_TOKENS": '["t", "ops:Read:hunter2"]'}, "RECEIVER_API_TOKENS: entry 2: must be "),
    ({"API_TOKENS": '["ops:hunter2"]'}, "RECEIVER_API_TOKENS: entry 1: must be "),
    ({"API_TOKENS": '[":read:hunter2"]'}, "RECEIVER_API_TOKENS: entry 1: must be "),
    (
        {"TRUSTED_PROXIES": '["10.0.0.1/8"]'},
        "RECEIVER_TRUSTED_PROXIES: entry 1: the address has bits beyond its prefix; did you mean 10.0.0.0/8?",
    ),
    ({"RETENTON": "{}"}, "RECEIVER_RETENTON is not a setting of receiver; did you mean RECEIVER_RETENTION?"),
    ({"CALLBACK_NETWORKS": '["everywhere"]'}, "RECEIVER_CALLBACK_NETWORKS: entry 1: "),
    ({"TAG_KEYS": '["hunter2"]'}, 'RECEIVER_TAG_KEYS: tag key 1 is not "kid:secret"'),
    ({"TAG_KEYS": '["k1:a", "k1:hunter2"]'}, "RECEIVER_TAG_KEYS: tag key 2 has the kid of an earlier key"),
    ({"TAG_POLICY": "maybe"}, "RECEIVER_TAG_POLICY: "),
    ({"TAG_POLICY": "require"}, "RECEIVER_TAG_POLICY: require needs a key in RECEIVER_TAG_KEYS"),
    ({"FINAL_CONFLICT": "first-wins"}, "RECEIVER_FINAL_CONFLICT: "),
    ({"MAX_BODY_BYTES": "10"}, "RECEIVER_MAX_BODY_BYTES: "),
    ({"SINKS": '{"name": "a"}'}, "RECEIVER_SINKS: "),
    ({"SINKS": "["}, "RECEIVER_SINKS must be JSON"),
    ({"LOG_LEVEL": "loud"}, "RECEIVER_LOG_LEVEL: "),
    ({"CONFIG": "nowhere.toml"}, "RECEIVER_CONFIG: there is no file nowhere.toml"),
    ({"SECRETS_DIR": "nowhere"}, "RECEIVER_SECRETS_DIR: there is no directory nowhere"),
]


@pytest.mark.parametrize(("env", "line"), WRONG, ids=lambda value: str(value)[:60])
def test_a_wrong_setting_is_named_in_one_line_without_its_value(set_env: Set, env: dict[str, str], line: str) -> None:
    set_env(**env)
    with pytest.raises(SettingsError) as caught:
        load()
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", ["receiver_colour", "RECEIVER_COLOUR", "receiver_retention__text"])
def test_unknown_secret_file_is_named_in_one_line(tmp_path: Path, set_env: Set, name: str) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "another-program").write_text("hunter2")
    set_env(SECRETS_DIR="secrets")
    assert load().port == 8080
    (tmp_path / "secrets" / name).write_text("hunter2")
    with pytest.raises(SettingsError, match=f"^RECEIVER_SECRETS_DIR: {name} is not a setting of receiver\\b"):
        load()


def test_config_that_is_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "receiver.toml").mkdir()
    with pytest.raises(SettingsError, match=r"^RECEIVER_CONFIG: there is no file receiver\.toml$"):
        load()


@pytest.mark.parametrize(
    ("toml", "line"),
    [
        ("colour = 1", "receiver.toml: colour is not a setting of receiver"),
        ("porrt = 1", "receiver.toml: porrt is not a setting of receiver; did you mean port?"),
        ("port = 'http'", "RECEIVER_PORT: Input should be a valid integer"),
        (
            "[retention]\ntxt = 1",
            "receiver.toml: retention.txt is not a setting of receiver; did you mean retention.text?",
        ),
        ("[sinks]\nname = 'a'", "RECEIVER_SINKS: must be a list of tables; in TOML write [[sinks]], not [sinks]"),
        ("port =", "receiver.toml: "),
        ("callback_credentials = ['hunter2']", "RECEIVER_CALLBACK_CREDENTIALS: "),
        ("host = '\udcff'", "receiver.toml is not UTF-8"),
    ],
)
def test_error_in_the_toml_file_is_one_line(tmp_path: Path, toml: str, line: str) -> None:
    (tmp_path / "receiver.toml").write_bytes(toml.encode("utf-8", "surrogateescape"))
    with pytest.raises(SettingsError) as caught:
        load()
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_wrong_value_in_the_toml_file_names_the_file_unless_the_environment_has_it(
    tmp_path: Path, set_env: Set
) -> None:
    (tmp_path / "receiver.toml").write_text("port = 70000")
    with pytest.raises(SettingsError, match=r"^RECEIVER_PORT: .* \(in receiver\.toml\)$"):
        load()
    set_env(PORT="80000")
    with pytest.raises(SettingsError, match=r"^RECEIVER_PORT: .*65535$"):
        load()


def test_all_wrong_settings_are_found_at_once(tmp_path: Path, set_env: Set) -> None:
    (tmp_path / "receiver.toml").write_text("colour = 1\nlog_level = 'loud'")
    set_env(PROT="1", PORT="http", API_TOKENS="hunter2", TRUSTED_PROXIES='["10.0.0.1/8"]')
    with pytest.raises(SettingsError) as caught:
        load()
    assert [problem.partition(": ")[0] for problem in caught.value.problems] == [
        "RECEIVER_PROT is not a setting of receiver; did you mean RECEIVER_PORT?",
        "RECEIVER_PORT",
        'RECEIVER_API_TOKENS must be JSON, for example ["value"]',
        "RECEIVER_TRUSTED_PROXIES",
        "RECEIVER_LOG_LEVEL",
        "receiver.toml",
    ]
    assert str(caught.value) == f"{caught.value.problems[0]} (and 5 more; receiver check lists all)"
    assert "hunter2" not in "".join(caught.value.problems)


def test_repr_of_settings_has_no_secrets(set_env: Set) -> None:
    set_env(
        DATABASE_URL="postgresql://u:hunter2@h/d",
        CALLBACK_CREDENTIALS='["u:hunter2"]',
        API_TOKENS='["hunter2"]',
        TAG_KEYS='["k1:hunter2"]',
        CALLBACK_KEYS='{"v2": "hunter2"}',
        SINKS='[{"name": "a", "type": "webhook", "url": "https://u:hunter2@h/", "secret": "hunter2"}]',
    )
    assert "hunter2" not in repr(load()) + str(load())


# --- contradictions

NO_AUTH = [
    pytest.param({"CALLBACK_AUTH": "none"}, id="callbacks"),
    pytest.param({"API_AUTH": "none"}, id="query API"),
]


@pytest.mark.parametrize("switched_off", NO_AUTH)
@pytest.mark.parametrize(
    "address",
    [
        {"HOST": "0.0.0.0"},
        {"HOST": "::"},
        {"HOST": "192.0.2.1"},
        {"HOST": "sms.example.com"},
        {"PUBLIC_URL": "https://sms.example.com"},
        {"HOST": "0.0.0.0", "PUBLIC_URL": "http://127.0.0.1:8080"},
    ],
    ids=str,
)
def test_public_address_needs_authentication(
    set_env: Set, switched_off: dict[str, str], address: dict[str, str]
) -> None:
    set_env(**switched_off, **address)
    [name] = switched_off
    with pytest.raises(SettingsError, match=f"^RECEIVER_{name}: authentication is off"):
        load()
    set_env(INSECURE_NO_AUTH="1")
    load()


@pytest.mark.parametrize("switched_off", NO_AUTH)
@pytest.mark.parametrize("host", ["127.0.0.1", "127.5.5.5", "::1", "localhost"])
def test_loopback_address_without_authentication_is_allowed(
    set_env: Set, switched_off: dict[str, str], host: str
) -> None:
    set_env(**switched_off, HOST=host)
    assert load().is_loopback


WEAK = [
    ({"API_TOKENS": '["ops:read:hunter2"]'}, "RECEIVER_API_TOKENS: entry 1: the secret has fewer than 16 characters"),
    ({"CALLBACK_CREDENTIALS": '["u:long enough", "u:hunter2"]'}, "RECEIVER_CALLBACK_CREDENTIALS: entry 2: the secret"),
    ({"TAG_KEYS": '["k1:hunter2"]'}, "RECEIVER_TAG_KEYS: entry 1: the secret has fewer than 16 characters"),
]


@pytest.mark.parametrize(("secrets", "line"), WEAK, ids=lambda value: str(value)[:30])
def test_short_secret_is_refused_on_a_public_address(set_env: Set, secrets: dict[str, str], line: str) -> None:
    set_env(**secrets)
    load()
    set_env(PUBLIC_URL="https://sms.example.com")
    with pytest.raises(SettingsError) as caught:
        load()
    assert str(caught.value).startswith(line)
    assert "hunter2" not in str(caught.value)
    set_env(INSECURE_NO_AUTH="1")
    load()


def test_metrics_auth_none_is_allowed_on_a_public_address(set_env: Set) -> None:
    set_env(METRICS_AUTH="none", HOST="0.0.0.0")
    load()


def test_tag_policy_require_with_a_key(set_env: Set) -> None:
    set_env(TAG_POLICY="require", TAG_KEYS='["k1:secret"]')
    assert load().tag_policy is TagPolicy.REQUIRE


@pytest.mark.parametrize(
    ("env", "base_url"),
    [
        ({"HOST": "::1", "PORT": "1"}, "http://[::1]:1"),
        ({"PUBLIC_URL": "https://sms.example.com/"}, "https://sms.example.com"),
        ({"PUBLIC_URL": "https://example.com/sms/"}, "https://example.com/sms"),
    ],
    ids=str,
)
def test_base_url(set_env: Set, env: dict[str, str], base_url: str) -> None:
    set_env(**env)
    assert load().base_url == base_url


def test_dump_and_restore_keep_secrets() -> None:
    given = GivenSettings(
        data_dir=Path("/var/lib/receiver"),
        database_url=SecretStr("postgresql://user:p%C3%A4ss@host/name"),
        callback_credentials=[SecretStr("user:pässwörd")],
        callback_keys={"v2": SecretStr("key")},
        tag_keys=[SecretStr("k1:secret")],
        trusted_proxies=["10.0.0.0/8"],
        sinks=[{"name": "file", "type": "jsonl", "path": "events.jsonl"}],
        retention=Retention(text=7),
    )
    assert restore(dump(given)).model_dump() == given.model_dump()
