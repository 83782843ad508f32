"""The files of deploy/: each is checked for what it must hold, and by the tool that reads it where there is one."""

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from receiver.cli import work
from receiver.intake.server import GRACEFUL_SECONDS
from receiver.settings import Settings, load
from receiver.worker import configured_sinks
from tests.processes import receiver as run_receiver

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCK = (DEPLOY / "requirements.lock").read_text(encoding="utf-8")
# read before the settings, to find them
NOT_SETTINGS = {"RECEIVER_CONFIG", "RECEIVER_SECRETS_DIR"}
FILES = sorted(path for path in DEPLOY.iterdir() if path.is_file() and not path.name.endswith("env"))


def is_setting(name: str) -> bool:
    return name in NOT_SETTINGS or name.removeprefix("RECEIVER_").lower().split("__")[0] in Settings.model_fields


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_setting_named_in_deploy_exists(path: Path) -> None:
    names = set(re.findall(r"RECEIVER_[A-Z_]+", path.read_text(encoding="utf-8")))
    assert {name for name in names if not is_setting(name)} == set()


# --- the lock file


def pins() -> dict[str, str]:
    return {canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", LOCK, re.MULTILINE)}


# The image has the clients of all sinks, whatever the settings name, and nothing that only developers need.
EXTRAS = [
    client
    for name, clients in PROJECT["optional-dependencies"].items()
    if name not in ("test", "benchmarks")
    for client in clients
]


@pytest.mark.parametrize("dependency", [*PROJECT["dependencies"], *EXTRAS])
def test_every_dependency_is_locked_to_a_version_it_allows(dependency: str) -> None:
    requirement = Requirement(dependency)
    assert pins().get(canonicalize_name(requirement.name), "none") in requirement.specifier


@pytest.mark.parametrize("dependency", [*PROJECT["dependencies"], *EXTRAS])
def test_versions_below_one_have_an_upper_bound(dependency: str) -> None:
    specifier = Requirement(dependency).specifier
    lowest = next(part.version for part in specifier if part.operator == ">=")
    assert not lowest.startswith("0.") or any(part.operator == "<" for part in specifier)


def test_every_locked_version_has_hashes() -> None:
    entries = re.split(r"\n(?=\S)", "\n".join(line for line in LOCK.splitlines() if not line.startswith("#")))
    assert len(entries) == len(pins())
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []


def test_the_lock_names_no_host_and_no_option() -> None:
    assert re.findall(r"\w+://\S*|^-\S+|\S+\.(?:org|com|net)\b", LOCK, re.MULTILINE) == []


def test_a_reload_of_the_unit_asks_for_the_settings_to_be_read_again() -> None:
    assert unit()["ExecReload"] == ["/bin/kill -HUP $MAINPID"]


# --- the package


def test_the_name_of_the_package_is_a_command_too() -> None:
    # `uvx NAME` runs the command that is called like the package.
    assert PROJECT["scripts"][PROJECT["name"]] == PROJECT["scripts"]["receiver"]


# --- the check of a change


def audit(folder: Path, report: str, code: int) -> subprocess.CompletedProcess[str]:
    """Runs the audit of .ci/run with a stand-in for its tool, in a folder with our lock file."""
    tool = folder / ".venv-audit/bin/pip-audit"
    tool.parent.mkdir(parents=True)
    tool.write_text(f"#!/bin/sh\ncat <<'REPORT'\n{report}\nREPORT\nexit {code}\n", encoding="utf-8")
    tool.chmod(0o755)
    (folder / "deploy").mkdir()
    (folder / "deploy/requirements.lock").write_text(LOCK, encoding="utf-8")
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    function = script[script.index("audit() {") : script.index("\n}\n", script.index("audit() {")) + 3]
    command = ["bash", "-c", f"set -euo pipefail\n{function}\naudit\necho goes on"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


UNKNOWN = "yarl              Dependency not found on PyPI and could not be audited: yarl (1.25.1)\n"


@pytest.mark.parametrize(
    ("report", "code", "line"),
    [
        ("No known vulnerabilities found", 0, "audit: no known vulnerability in {all} of the {all} versions of …"),
        (f"No known vulnerabilities found\n{UNKNOWN}", 0, "audit: no known vulnerability in {less} of the {all} …"),
        ("No known vulnerabilities found\n" + UNKNOWN * 100, 0, "audit: skipped, no source of advisories answers"),
        ("ERROR:pip_audit._cli:cannot connect", 1, "audit: skipped, no source of advisories answers"),
        ("", 124, "audit: skipped, no source of advisories answers"),
    ],
)
def test_audit_goes_on_without_a_finding_and_says_what_it_looked_at(
    tmp_path: Path, report: str, code: int, line: str
) -> None:
    ended = audit(tmp_path, report, code)
    expected = line.format(all=len(pins()), less=len(pins()) - 1).removesuffix("…")
    said, goes_on = ended.stdout.splitlines()
    assert said.startswith(expected)
    assert (goes_on, ended.returncode) == ("goes on", 0)


def test_audit_ends_the_run_on_a_finding(tmp_path: Path) -> None:
    ended = audit(tmp_path, "Found 1 known vulnerability in 1 package\nuvicorn 0.54.0 PYSEC-2026-1", 1)
    assert ended.returncode == 1
    assert "PYSEC-2026-1" in ended.stdout
    assert "goes on" not in ended.stdout


# --- Dockerfile


class Instruction(NamedTuple):
    word: str
    rest: str


def instructions() -> list[Instruction]:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    logical = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    return [Instruction(*line.split(None, 1)) for line in logical.splitlines() if line.strip()]


def last_stage() -> list[Instruction]:
    found = instructions()
    return found[max(place for place, instruction in enumerate(found) if instruction.word == "FROM") :]


def only(word: str, among: list[Instruction]) -> str:
    (found,) = (instruction.rest for instruction in among if instruction.word == word)
    return found


def image_environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in shlex.split(only("ENV", last_stage())))


def sources() -> list[str]:
    """What the Dockerfile copies from the tree."""
    copies = [shlex.split(rest) for word, rest in instructions() if word == "COPY" and "--from=" not in rest]
    return [source for copy in copies for source in copy[:-1]]


def test_the_image_runs_as_a_numbered_user_who_is_not_root() -> None:
    user = only("USER", last_stage())
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user)
    assert f"--uid {user.split(':')[0]} " in only("RUN", last_stage())


def test_the_image_starts_the_server_without_a_shell_between_it_and_signals() -> None:
    assert json.loads(only("ENTRYPOINT", last_stage())) == ["receiver"]
    assert json.loads(only("CMD", last_stage())) == ["serve"]


def test_the_image_listens_and_keeps_its_data_where_it_says() -> None:
    environment = image_environment()
    assert environment["RECEIVER_HOST"] == "0.0.0.0"
    assert environment["RECEIVER_PORT"] == only("EXPOSE", last_stage())
    assert environment["RECEIVER_DATA_DIR"] == only("VOLUME", last_stage())


def test_the_image_installs_the_lock_and_beside_it_only_our_wheel() -> None:
    runs = [rest for word, rest in instructions() if word == "RUN"]
    installs = [command for rest in runs for command in rest.split("&&") if "pip install" in command]
    assert ["--require-hashes" in command or "--no-deps --no-index" in command for command in installs] == [True, True]
    assert "-r deploy/requirements.lock" in installs[0]
    assert "/wheels/" in installs[1]


def test_the_image_has_a_python_that_the_package_allows() -> None:
    version = only("ARG", instructions()).removeprefix("PYTHON=")
    assert version in SpecifierSet(PROJECT["requires-python"])
    assert {rest.split()[0] for word, rest in instructions() if word == "FROM"} == {"python:${PYTHON}-slim"}


@pytest.mark.parametrize("source", sources())
def test_what_the_image_copies_exists_and_is_let_into_the_build(source: str) -> None:
    assert (ROOT / source).exists()
    rules = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert f"!{source}" in rules


@pytest.mark.parametrize(
    "secret", ["receiver-data", "receiver.toml", ".env", "deploy/.env", "deploy/receiver.env", ".git"]
)
def test_secrets_are_not_let_into_the_build(secret: str) -> None:
    rules = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in rules
    assert not any(fnmatch.fnmatch(secret, rule.removeprefix("!")) for rule in rules if rule.startswith("!"))


class Health(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/healthz" else 404)
        self.end_headers()

    def log_message(self, *_args: Any) -> None:
        """Says nothing."""


@pytest.fixture(params=[200, 503])
def health(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """The port of a server, and the status its /healthz answers with."""
    handler = type("Answering", (Health,), {"status": request.param})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        yield server.server_port, request.param
        server.shutdown()


def healthcheck(port: int) -> int:
    program, *arguments = json.loads(only("HEALTHCHECK", last_stage()).partition("CMD ")[2])
    assert program == "python"
    environment = {"RECEIVER_PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, check=False).returncode


def test_the_healthcheck_tells_a_healthy_server_from_others(health: tuple[int, int]) -> None:
    port, status = health
    assert (healthcheck(port) == 0) is (status == 200)


def test_the_healthcheck_fails_where_nothing_listens() -> None:
    assert healthcheck(9) != 0


# --- compose.yaml


def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    return document


SERVICES: dict[str, Any] = compose()["services"]
RECEIVERS = [service for name, service in SERVICES.items() if name.startswith("receiver-")]
WORKER = SERVICES["worker"]


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


def test_two_receivers_wait_for_the_schema() -> None:
    assert len(RECEIVERS) == 2
    for receiver in RECEIVERS:
        assert receiver["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
        assert "command" not in receiver


def test_receivers_leave_processing_to_a_worker_of_its_own() -> None:
    for receiver in RECEIVERS:
        assert receiver["environment"]["RECEIVER_WORKER"] == "none"
    assert WORKER["command"][0] == "work"
    assert WORKER["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    assert WORKER["environment"] == RECEIVERS[0]["environment"]
    # it is reached by nobody, and can be scaled
    assert not {"ports", "container_name"} & WORKER.keys()


def test_the_worker_answers_the_health_check_of_the_image() -> None:
    option, address = WORKER["command"][1:]
    assert option == "--metrics"
    assert address == f"127.0.0.1:{image_environment()['RECEIVER_PORT']}"
    # its metrics need a token, which the settings of all services hold
    assert "RECEIVER_API_TOKENS" in WORKER["environment"]
    assert "healthcheck" not in WORKER


def test_the_schema_is_migrated_once_when_the_database_is_healthy() -> None:
    migrate = SERVICES["migrate"]
    assert (migrate["command"], migrate["restart"]) == (["migrate"], "no")
    assert migrate["depends_on"] == {"database": {"condition": "service_healthy"}}
    assert migrate["environment"] == RECEIVERS[0]["environment"]


def test_the_database_is_kept_watched_and_reached_by_no_one_else() -> None:
    database = SERVICES["database"]
    assert database["image"] == "postgres:17"
    assert "ports" not in database
    assert "pg_isready" in database["healthcheck"]["test"]
    volume, _, _ = database["volumes"][0].partition(":")
    assert volume in compose()["volumes"]


def test_no_secret_stands_in_the_file_and_a_missing_one_stops_the_start() -> None:
    secret = re.compile(r"PASSWORD|CREDENTIALS|TOKENS|_URL$")
    for service in SERVICES.values():
        values = {name: value for name, value in service["environment"].items() if secret.search(name)}
        assert values
        for name, value in values.items():
            assert re.search(r"\$\{[A-Z_]+:\?[^}]+\}", value), name


def test_receivers_are_published_to_this_host_alone_each_on_its_own_port() -> None:
    published = [port for receiver in RECEIVERS for port in receiver["ports"]]
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:8080", port) for port in published)
    assert len(set(published)) == 2


def test_receivers_run_with_as_little_as_they_need() -> None:
    for service in [*RECEIVERS, WORKER, SERVICES["migrate"]]:
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]


def test_a_stopped_container_has_time_to_finish_what_it_accepted() -> None:
    assert all(seconds(receiver["stop_grace_period"]) > GRACEFUL_SECONDS for receiver in RECEIVERS)
    assert seconds(WORKER["stop_grace_period"]) > work.STOP_SECONDS


def test_the_image_is_built_from_files_that_exist() -> None:
    for receiver in [*RECEIVERS, WORKER]:
        context = DEPLOY / receiver["build"]["context"]
        assert (context / receiver["build"]["dockerfile"]).samefile(DEPLOY / "Dockerfile")


def docker_compose(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["docker", "compose", "--file", DEPLOY / "compose.yaml", *arguments]
    base = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(command, env=base | environment, capture_output=True, text=True, timeout=60, check=False)


def test_docker_compose_reads_the_file_and_asks_for_what_is_missing() -> None:
    if shutil.which("docker") is None or docker_compose("version").returncode:
        pytest.skip("install Docker Compose to check compose.yaml with it")
    given = {
        "POSTGRES_PASSWORD": "secret",
        "RECEIVER_PUBLIC_URL": "https://sms.example.com",
        "RECEIVER_CALLBACK_CREDENTIALS": '["user:password"]',
        "RECEIVER_API_TOKENS": '["token"]',
    }
    complete = docker_compose("config", "--quiet", **given)
    assert complete.returncode == 0, complete.stderr
    for name in given:
        lacking = docker_compose("config", "--quiet", **{key: given[key] for key in given if key != name})
        assert lacking.returncode
        assert name in lacking.stderr


# --- receiver.service


def unit() -> dict[str, list[str]]:
    """The unit's keys, each with its values in order."""
    keys: dict[str, list[str]] = defaultdict(list)
    for line in (DEPLOY / "receiver.service").read_text(encoding="utf-8").splitlines():
        if line and line[0] not in "#;[":
            key, _, value = line.partition("=")
            keys[key].append(value)
    return keys


HARDENING = {
    "NoNewPrivileges": ["yes"],
    "CapabilityBoundingSet": [""],
    "ProtectSystem": ["strict"],
    "ProtectHome": ["yes"],
    "PrivateTmp": ["yes"],
    "PrivateDevices": ["yes"],
    "MemoryDenyWriteExecute": ["yes"],
    "RestrictAddressFamilies": ["AF_INET AF_INET6 AF_UNIX"],
    "SystemCallFilter": ["@system-service", "~@privileged @resources"],
    "UMask": ["0077"],
    "StateDirectory": ["receiver"],
    "StateDirectoryMode": ["0700"],
}


@pytest.mark.parametrize(("key", "values"), HARDENING.items(), ids=list(HARDENING))
def test_the_unit_is_hardened(key: str, values: list[str]) -> None:
    assert unit()[key] == values


def test_the_unit_runs_as_a_user_who_is_not_root() -> None:
    assert (unit()["DynamicUser"], unit()["User"]) == (["yes"], ["receiver"])


def test_the_unit_restarts_after_failures_for_ever_and_stops_in_peace() -> None:
    assert (unit()["Restart"], unit()["StartLimitIntervalSec"]) == (["on-failure"], ["0"])
    # the server first, then its worker
    assert int(unit()["TimeoutStopSec"][0]) > GRACEFUL_SECONDS + work.STOP_SECONDS


def test_stopping_the_unit_signals_the_server_alone_which_stops_its_worker() -> None:
    assert unit()["KillMode"] == ["mixed"]


def unit_environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for line in unit()["Environment"] for pair in line.split())


def test_the_unit_does_not_restart_after_a_wrong_setting(tmp_path: Path) -> None:
    wrong = run_receiver(tmp_path, "serve", PORT="none")
    assert unit()["RestartPreventExitStatus"] == [str(wrong.returncode)] == ["2"]


def test_the_unit_keeps_its_data_in_the_state_directory() -> None:
    environment = unit_environment()
    assert environment["RECEIVER_DATA_DIR"] == f"%S/{unit()['StateDirectory'][0]}"
    assert environment["RECEIVER_SECRETS_DIR"] == "%d"
    assert unit()["EnvironmentFile"] == ["-/etc/receiver/receiver.env"]


def test_credentials_of_the_unit_are_settings_and_are_read_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = unit()["LoadCredential"]
    assert all(is_setting(name.upper()) for name in names)
    assert "receiver_api_tokens" in names
    (tmp_path / "receiver_api_tokens").write_text('["from-a-file"]\n', encoding="utf-8")
    monkeypatch.setenv("RECEIVER_SECRETS_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert [token.get_secret_value() for token in load().api_tokens] == ["from-a-file"]


# --- receiver.toml


EXAMPLE = (DEPLOY / "receiver.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", [EXAMPLE, re.sub(r"^# (?=[a-z_]+ = |\[\[)", "", EXAMPLE, flags=re.MULTILINE)])
def test_the_example_of_a_settings_file_is_valid_with_and_without_its_comments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    (tmp_path / "receiver.toml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CRM_SECRET", "whsec_c2VjcmV0")
    settings = load(tmp_path / "receiver.toml")
    assert bool(settings.sinks) is ("\n[[sinks]]" in text)
    configured_sinks(settings)


def test_unit_and_containers_read_their_settings_from_that_file() -> None:
    assert unit_environment()["RECEIVER_CONFIG"] == "/etc/receiver/receiver.toml"
    [source] = {settings["file"] for settings in compose()["configs"].values()}
    assert (DEPLOY / source).samefile(DEPLOY / "receiver.toml")
    for service in [*RECEIVERS, WORKER, SERVICES["migrate"]]:
        [config] = service["configs"]
        assert config["source"] in compose()["configs"]
        assert service["environment"]["RECEIVER_CONFIG"] == config["target"]


# --- receiver-command


def arguments_for_systemd(tmp_path: Path, *arguments: str) -> list[str]:
    """The arguments with which the script calls systemd-run."""
    called = tmp_path / "systemd-run"
    called.write_text(f"#!{sys.executable}\nimport json, sys; print(json.dumps(sys.argv[1:]))\n", encoding="utf-8")
    called.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    run = subprocess.run([DEPLOY / "receiver-command", *arguments], env=environment, capture_output=True, check=True)
    found: list[str] = json.loads(run.stdout)
    return found


def test_commands_run_with_user_settings_and_credentials_of_the_service(tmp_path: Path) -> None:
    arguments = arguments_for_systemd(tmp_path, "messages", "list", "--tag", "order 1")
    properties = defaultdict(list)
    for argument in arguments:
        if argument.startswith("--property="):
            key, _, value = argument.removeprefix("--property=").partition("=")
            properties[key].append(value)
    shared = ("DynamicUser", "User", "StateDirectory", "StateDirectoryMode", "UMask", "EnvironmentFile")
    for key in (*shared, "LoadCredential"):
        assert properties[key] == unit()[key], key
    given = dict(one.removeprefix("--setenv=").split("=", 1) for one in arguments if one.startswith("--setenv="))
    state = f"/var/lib/{unit()['StateDirectory'][0]}"
    # of the unit's environment only the folder of credentials is another one, which the shell fills in
    expected = {name: value.replace("%S/receiver", state) for name, value in unit_environment().items()}
    assert given == {name: expected[name] for name in ("RECEIVER_CONFIG", "RECEIVER_DATA_DIR")}
    assert 'RECEIVER_SECRETS_DIR="$CREDENTIALS_DIRECTORY"' in arguments[arguments.index("-c") + 1]
    assert arguments[-4:] == ["messages", "list", "--tag", "order 1"]


def test_the_command_of_the_script_is_that_of_the_unit(tmp_path: Path) -> None:
    program = unit()["ExecStart"][0].split()[0]
    assert f'exec {program} "$@"' in arguments_for_systemd(tmp_path)[-2]


# --- with systemd


def systemd_analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("install systemd to check receiver.service with systemd-analyze")
    command = ["systemd-analyze", "--no-pager", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_systemd_understands_every_line_of_the_unit(tmp_path: Path) -> None:
    units = tmp_path / "etc/systemd/system"
    units.mkdir(parents=True)
    for key in ("ExecStart", "ExecReload"):
        program = tmp_path / unit()[key][0].split()[0].lstrip("/")
        program.parent.mkdir(parents=True)
        program.touch(mode=0o755)
    copy = shutil.copy(DEPLOY / "receiver.service", units)
    verified = systemd_analyze("verify", "--man=no", "--recursive-errors=no", f"--root={tmp_path}", copy)
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")


def test_systemd_finds_little_that_the_unit_could_do_to_the_host() -> None:
    # in tenths: 15 is an exposure of 1.5 out of 10
    security = systemd_analyze("security", "--offline=true", "--threshold=15", DEPLOY / "receiver.service")
    assert security.returncode == 0, security.stdout
