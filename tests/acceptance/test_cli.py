"""The commands: their output, their exit codes, and that their output cannot control a terminal."""

import csv
import io
import json
import os
import re
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import create_engine, text

from receiver import cli
from receiver.cli import calls
from receiver.cli.output import plain
from receiver.domain.events import Api, Callback
from receiver.intake.transfer import from_line, to_line
from receiver.storage.journal import first_id
from receiver.storage.sqlite_file import WORKER, held
from tests.factories import at, callback, v1_event, v2_event
from tests.processes import COMMAND, environment, receiver, serving
from tests.processing import now
from tests.servers import named_database, on_postgres, random_name

pytestmark = pytest.mark.usefixtures("own_log")

EVIL = "\x1b[31mred\x07\u202e\x9b2J\r\n\u2028end"


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command within this process, in an empty folder, with these settings."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ.keys() - environment().keys():
        monkeypatch.delenv(name)

    def run(*arguments: str, **settings: str) -> Result:
        with monkeypatch.context() as patch:
            for name, value in settings.items():
                patch.setenv(f"RECEIVER_{name}", value)
            code = cli.main(arguments)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


def received(body: Any, seconds: float, **more: Any) -> Callback:
    """A callback whose id is the same in every process that collects these tests."""
    return callback(body, received=seconds, id=f"{first_id(at(seconds)):0<32}", **more)


CALLBACKS = [
    received([v2_event("out-1", tag="order-1", message={"text": "hello", "tag": "order-1"})], 0),
    received([v2_event("out-2", "message-failed", errorCode=4720, description=EVIL)], 1),
    received([v2_event("in-1", "message-received", message={"direction": "in", "text": EVIL})], 2),
    received([v1_event("both"), v1_event("v1-only")], 3, api=Api.V1),
    received([v2_event("both")], 4),
    received(b"not \x1b[31m json \xff", 5, headers={"user-agent": EVIL}),
]


def folder_with(folder: Path, callbacks: Iterable[Callback]) -> Path:
    """A folder with a database that the commands created."""
    assert receiver(folder, "migrate").returncode == 0
    lines = b"".join(map(to_line, callbacks))
    assert receiver(folder, "callbacks", "import", "-", stdin=lines).returncode == 0
    return folder


@pytest.fixture(scope="module")
def _filled_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_with(tmp_path_factory.mktemp("filled"), CALLBACKS)


@pytest.fixture
def filled(run: Run, tmp_path: Path, _filled_folder: Path) -> Run:
    """`run` in a folder whose database has some callbacks."""
    shutil.copytree(_filled_folder, tmp_path, dirs_exist_ok=True)
    return run


# --- the program itself


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["serve", "--help"],
        ["sandbox", "--help"],
        ["demo", "--help"],
        ["messages", "list", "--help"],
        ["callbacks", "import", "--help"],
        ["sinks", "replay", "--help"],
        ["dead-letters", "requeue", "--help"],
    ],
    ids=" ".join,
)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    script = (
        f"import sys; from receiver.cli import main; code = main({arguments!r});"
        # typer itself imports pydantic
        "heavy = {'sqlalchemy', 'sqlmodel', 'starlette', 'uvicorn', 'pydantic_settings', 'structlog', 'rich',"
        " 'asyncio', 'alembic', 'httpx2'} & sys.modules.keys();"
        "print(sorted(heavy), file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert "Usage: receiver" in done.stdout


@pytest.mark.slow
def test_help_costs_less_than_half_of_loading_the_server() -> None:
    """In seconds of CPU time, which do not depend on other processes of the machine."""

    def cost(*command: str | Path) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, env=environment(), check=True, capture_output=True, timeout=120)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    help_, server = (COMMAND, "messages", "list", "--help"), (sys.executable, "-c", "import receiver.app")
    assert min(cost(*help_) for _ in range(3)) < min(cost(*server) for _ in range(3)) / 2


def test_version_is_printed(run: Run) -> None:
    assert run("--version") == (0, f"receiver {version('bandwidth-receiver')}\n", "")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "receiver: Missing command; see receiver --help"),
        (["what"], "receiver: No such command 'what'; see receiver --help"),
        (["messages", "list", "--what"], "receiver: No such option: --what"),
        (["messages", "list", "--size", "0"], "receiver: Invalid value for --size: "),
        (["messages", "list", "--status", "what"], "receiver: Invalid value for --status: "),
        (["messages", "list", "--to", "call me maybe"], "receiver: Invalid value for --to: must be a telephone number"),
        (["messages", "list", "--since", "tomorrow"], "receiver: Invalid value for --since: must be a time"),
        (["callbacks", "list", "--outcome", "what"], "receiver: Invalid value for --outcome: "),
        (["callbacks", "export", "--outcome", "what"], "receiver: Invalid value for --outcome: "),
        (["callbacks", "export", "--until", "what"], "receiver: Invalid value for --until: must be a time"),
        (["callbacks", "reprocess"], "receiver: Invalid value: give either ids, or --outcome, --reason, --message"),
        (["callbacks", "reprocess", "x", "--outcome", "accepted"], "receiver: Invalid value: give either ids"),
        (["dead-letters", "requeue", "crm"], "receiver: Invalid value: give one of: ids; --all"),
        (["dead-letters", "drop", "crm", "1", "--all"], "receiver: Invalid value: give one of: ids; --all"),
        (["dead-letters", "drop", "crm", "1", "--message", "m"], "receiver: Invalid value: give one of: ids; --all"),
        (["dead-letters", "list", "--since", "what"], "receiver: Invalid value for --since: must be a time"),
        (["dead-letters", "list", "--reason", "bored"], "receiver: Invalid value for --reason: "),
        (["sinks", "replay", "crm"], "receiver: Invalid value: give one of --since, --beginning"),
        (["sinks", "replay", "crm", "--beginning", "--pause"], "receiver: Invalid value: give one of --since"),
        (["sinks", "replay", "crm", "--since", "what"], "receiver: Invalid value for --since: must be a time"),
        (["sinks", "replay", "crm", "--cancel", "--dry-run"], "receiver: Invalid value: --dry-run is for --since"),
        (["tag", "sign", "x"], "receiver: set RECEIVER_TAG_KEYS"),
        (["serve", "--config", "nowhere.toml"], "receiver: --config: there is no file nowhere.toml"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(run: Run, arguments: list[str], line: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(line)
    assert err.count("\n") == 1


COMMANDS = [
    ["serve"],
    ["migrate"],
    ["check"],
    ["rebuild"],
    ["prune"],
    ["tag", "sign", "x"],
    ["tag", "verify", "x"],
    ["messages", "list"],
    ["messages", "export"],
    ["messages", "show", "x"],
    ["callbacks", "list"],
    ["callbacks", "show", "x"],
    ["callbacks", "reprocess", "x"],
    ["callbacks", "export"],
    ["callbacks", "import", "x"],
    ["messages", "attempts", "x"],
    ["sinks", "list"],
    ["sinks", "show", "x"],
    ["sinks", "pause", "x"],
    ["sinks", "resume", "x"],
    ["sinks", "replay", "x", "--beginning"],
    ["sinks", "replays", "x"],
    ["dead-letters", "list"],
    ["dead-letters", "requeue", "x", "--all"],
    ["dead-letters", "drop", "x", "--all"],
]


@pytest.mark.parametrize("arguments", [command for command in COMMANDS if command != ["check"]], ids=" ".join)
def test_a_wrong_setting_is_one_line_and_exit_code_2(run: Run, arguments: list[str]) -> None:
    assert run(*arguments, COLOUR="blue") == (2, "", "receiver: RECEIVER_COLOUR is not a setting of receiver\n")


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("mysql://user:hunter2@host/name", "RECEIVER_DATABASE_URL: mysql is not supported"),
        ("hunter2", "RECEIVER_DATABASE_URL is not a database URL"),
        ("sqlite://", "RECEIVER_DATABASE_URL: SQLite needs a file"),
        ("sqlite:///file:receiver.db?mode=rwc&uri=true", "RECEIVER_DATABASE_URL: give SQLite's file as a path"),
    ],
)
@pytest.mark.parametrize("arguments", [["serve"], ["migrate"], ["messages", "list"]], ids=" ".join)
def test_a_wrong_database_url_is_one_line_and_exit_code_2(run: Run, arguments: list[str], url: str, line: str) -> None:
    code, out, err = run(*arguments, DATABASE_URL=url)
    assert (code, out) == (2, "")
    assert err.startswith(f"receiver: {line}")
    assert err.count("\n") == 1
    assert "hunter2" not in err


@pytest.mark.parametrize("arguments", COMMANDS[3:5] + COMMANDS[7:], ids=" ".join)
def test_no_reading_command_creates_a_database(run: Run, tmp_path: Path, arguments: list[str]) -> None:
    """It names the folder where it looked, and does not advise to create an empty database there."""
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    assert err == (
        f"receiver: there is no database {tmp_path}/receiver-data/receiver.db; run this where receiver serve runs, or "
        "set RECEIVER_DATA_DIR; receiver migrate creates a new one (see: receiver help first-run)\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_unexpected_error_is_one_line(filled: Run, tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'receiver-data/receiver.db'}")
    with engine.begin() as connection:
        connection.execute(text("UPDATE messages SET created_at = 'what'"))
    engine.dispose()
    code, out, err = filled("messages", "list")
    assert (code, out) == (1, "")
    assert err.startswith("receiver: unexpected ValueError")
    assert err.count("\n") == 1


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose database has more messages than a pipe holds."""
    callbacks = (received([v2_event(f"m{number}")], number) for number in range(400))
    return folder_with(tmp_path_factory.mktemp("crowded"), callbacks)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [["callbacks", "export"], ["messages", "list", "--size", "1000", "--json"]], ids=" ".join
)
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_closed_pipe_ends_a_command_by_sigpipe(crowded: Path, arguments: list[str], unbuffered: str) -> None:
    variables = environment() | {"PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen(
        [COMMAND, *arguments], cwd=crowded, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(60) == -signal.SIGPIPE
        assert process.stderr.read() == b""


def test_output_to_a_full_non_blocking_pipe_is_complete() -> None:
    size = 1_000_000
    script = (
        "import os; from receiver.cli.output import write;"
        f"os.set_blocking(1, False); write(b'x' * {size}); print('whole', file=__import__('sys').stderr)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        output, errors = process.communicate(timeout=60)
    assert (len(output), errors, process.returncode) == (size, b"whole\n", 0)


# --- migrate and check


def test_migrate_creates_the_database_with_mode_0600(run: Run, tmp_path: Path) -> None:
    assert run("migrate", "--check").code == 1
    assert run("migrate").out.startswith("now at revision ")
    assert (tmp_path / "receiver-data").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "receiver-data/receiver.db").stat().st_mode & 0o777 == 0o600
    again = run("migrate", "--json").json
    assert again["before"] == again["after"]
    assert run("migrate", "--check").code == 0


def test_migrate_names_the_missing_directory_of_the_database(run: Run, tmp_path: Path) -> None:
    code, _, err = run("migrate", DATABASE_URL="sqlite:///nowhere/receiver.db")
    assert code == 2
    assert (
        err
        == f"receiver: RECEIVER_DATABASE_URL: there is no directory {tmp_path}/nowhere (see: receiver help settings)\n"
    )


def test_check_on_an_empty_machine_is_ok_and_creates_nothing(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("check", PORT="0")
    assert code == 0
    assert "will be created at the first start" in out
    assert list(tmp_path.iterdir()) == []


def test_check_after_migrate_prints_a_line_per_check(filled: Run) -> None:
    code, out, _ = filled("check", PORT="0", API_TOKENS='["t"]', CALLBACK_CREDENTIALS='["u:p"]')
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [
        [what, "ok"] for what in ("settings", "sinks", "alerts", "credentials", "address", "database", "schema")
    ]


def test_settings_are_shown_with_their_source_and_without_secrets(run: Run, tmp_path: Path) -> None:
    (tmp_path / "receiver.toml").write_text("log_level = 'error'\nkeep_alive = 60\n[retention]\ntext = 7")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/receiver_api_tokens").write_text('["hunter2"]')
    sinks = [{"name": "crm", "type": "webhook", "url": "https://u:hunter2@h/", "secret": "hunter2"}]
    code, out, err = run(
        "settings",
        "--json",
        DATABASE_URL="postgresql://u:hunter2@db:6000/receiver?sslmode=require",
        SINKS=json.dumps(sinks),
        KEEP_ALIVE="50",
        SECRETS_DIR="secrets",
        RETENTION='{"events": 3}',
    )
    assert (code, err, "hunter2" in out) == (0, "", False)
    shown = {one["name"].removeprefix("RECEIVER_"): (one["value"], one["source"]) for one in json.loads(out)}
    assert shown["DATABASE_URL"] == (
        "postgresql://u@db/receiver, password and parameters hidden",
        "RECEIVER_DATABASE_URL",
    )
    assert shown["SINKS"] == ("crm (webhook)", "RECEIVER_SINKS")
    assert shown["KEEP_ALIVE"] == ("50", "RECEIVER_KEEP_ALIVE")
    assert shown["LOG_LEVEL"] == ("error", "receiver.toml")
    assert shown["API_TOKENS"] == ('["**********"]', "secrets/receiver_api_tokens")
    assert (shown["RETENTION__EVENTS"], shown["RETENTION__TEXT"]) == (
        ("3", "RECEIVER_RETENTION"),
        ("7", "receiver.toml"),
    )
    assert shown["PORT"] == ("8080", "default")
    assert run("settings").out.startswith("SETTING ")


def test_check_names_every_wrong_setting(run: Run) -> None:
    code, out, err = run("check", PORT="http", LOG_LEVEL="loud", COLOUR="blue")
    assert (code, err) == (2, "")
    assert [line.split()[:3] for line in out.splitlines()[1:]] == [
        ["settings", "FAILED", name] for name in ("RECEIVER_COLOUR", "RECEIVER_PORT:", "RECEIVER_LOG_LEVEL:")
    ]


WRONG_TABLES = {
    "SINKS": json.dumps(
        [{"name": "crm", "type": "nonsense"}, {"name": "lake", "type": "memory"}, {"name": "bus", "type": "webhook"}]
    ),
    "ALERTS": json.dumps(
        [
            {"rule": "sink-down", "where": {"sink": "lakes"}},
            {"rule": "storage", "to": ["lake", "nobody"]},
            {"rule": "quarantine", "minimum": 3},
        ]
    ),
    "ALERT_TO": '["lake"]',
    "ALERT_TITLE": "$nothing",
}
FAULTS = [
    ("sinks", "RECEIVER_SINKS: crm: type: there is no 'nonsense'"),
    ("sinks", "RECEIVER_SINKS: bus: url: Field required"),
    ("alerts", "RECEIVER_ALERTS: sink-down: where.sink: there is no sink lakes"),
    ("alerts", "RECEIVER_ALERTS: quarantine: minimum: quarantine has no minimum"),
    ("alerts", "RECEIVER_ALERT_TITLE: "),
    ("alerts", "RECEIVER_ALERTS: storage: to: entry 2: there is no sink nobody"),
    ("alerts", "RECEIVER_ALERT_TO: lake is a sink"),
]


def test_check_names_every_wrong_sink_rule_and_target(run: Run) -> None:
    code, out, _ = run("check", "--json", PORT="0", **WRONG_TABLES)
    assert code == 1
    wrong = [(one["what"], one["detail"]) for one in json.loads(out) if not one["ok"]]
    assert [(what, detail[: len(fault)]) for (what, detail), (_, fault) in zip(wrong, FAULTS, strict=True)] == FAULTS
    assert [detail.rpartition(" (")[2] for _, detail in wrong] == [
        "see: receiver help sinks)",
        "see: receiver help webhook)",
        *["see: receiver help alerts)"] * 5,
    ]


def test_check_names_wrong_sinks_and_rules_beside_wrong_settings(run: Run) -> None:
    contradiction = {"TAG_POLICY": "require"}
    for settings in ({"PORT": "http"}, {"COLOUR": "blue"}, contradiction):
        code, out, _ = run("check", "--json", **settings, **WRONG_TABLES)
        assert code == 2
        settings_fault, *wrong = [(one["what"], one["detail"]) for one in json.loads(out)]
        assert settings_fault[0] == "settings"
        assert [
            (what, detail[: len(fault)]) for (what, detail), (_, fault) in zip(wrong, FAULTS, strict=True)
        ] == FAULTS
    # Without the names of the sinks nothing is known of rules that name one.
    code, out, _ = run("check", "--json", **{**WRONG_TABLES, "SINKS": "crm"})
    assert (code, [one["what"] for one in json.loads(out)]) == (2, ["settings"])


@pytest.mark.parametrize("name", ["SINKS", "ALERTS"])
def test_start_says_how_many_tables_are_wrong(run: Run, name: str) -> None:
    sinks = {"SINKS": WRONG_TABLES["SINKS"]} if name == "SINKS" else {}
    alerts = {} if sinks else {"ALERTS": WRONG_TABLES["ALERTS"]}
    code, _, err = run("serve", PORT="0", **sinks, **alerts)
    assert code == 2
    assert err.count("\n") == 1
    assert f"(and {1 if sinks else 3} more; receiver check lists all) (see: receiver help" in err


def test_check_names_a_port_in_use(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, _ = run("check", PORT=str(port))
    assert code == 1
    assert re.search(
        rf"^address +FAILED +cannot listen on 127\.0\.0\.1 port {port}: Address already in use$", out, re.M
    )


def test_check_beside_the_server_of_the_database_is_ok(run: Run, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        code, out, _ = run("check", PORT=server.url.rpartition(":")[2])
        assert code == 0
        assert f"process {server.process.pid} serves this database already" in out


def test_check_names_every_problem(run: Run, tmp_path: Path) -> None:
    (tmp_path / "broken.db").write_bytes(b"SQLite format 3\0" + b"broken " * 1000)
    code, out, _ = run(
        "check", "--json", PORT="0", DATABASE_URL="sqlite:///broken.db", SINKS='[{"name": "crm", "type": "nonsense"}]'
    )
    assert code == 1
    findings = {finding["what"]: finding for finding in json.loads(out)}
    assert {what for what, finding in findings.items() if not finding["ok"]} == {"sinks", "database", "schema"}
    assert findings["sinks"]["detail"].startswith("RECEIVER_SINKS: crm: type: ")


def test_check_of_postgresql_names_missing_credentials_and_schema(run: Run, postgres: str) -> None:
    name = random_name()
    on_postgres(postgres, f"CREATE DATABASE {name}")
    try:
        code, out, _ = run("check", PORT="0", DATABASE_URL=named_database(postgres, name))
        assert code == 1
        assert "set RECEIVER_CALLBACK_CREDENTIALS" in out
        assert "run: receiver migrate" in out
        assert run("migrate", DATABASE_URL=named_database(postgres, name)).code == 0
        settings = {"API_TOKENS": '["t"]', "CALLBACK_CREDENTIALS": '["u:p"]'}
        assert run("check", PORT="0", DATABASE_URL=named_database(postgres, name), **settings).code == 0
    finally:
        on_postgres(postgres, f"DROP DATABASE {name} WITH (FORCE)")


def test_check_of_unreachable_postgresql_fails(run: Run) -> None:
    code, out, err = run("check", PORT="0", DATABASE_URL="postgresql://receiver@127.0.0.1:9/receiver")
    assert (code, err) == (1, "")
    assert out.count("FAILED") == 3


# --- tags and codes

KEYS = '["k1:secret","k2:other"]'


def test_tag_sign_and_verify_with_numbers(run: Run) -> None:
    code, tag, _ = run("tag", "sign", "order-1", "--from", "+1", "--to", "+2", "--to", "+3", TAG_KEYS=KEYS)
    assert code == 0
    signed = tag.removesuffix("\n")
    assert signed.startswith("order-1~r1.k1.sr.")
    verify = ("tag", "verify", signed, "--from", "1")
    assert run(*verify, "--to", "3", "--to", "2", TAG_KEYS=KEYS) == (0, "valid: order-1\n", "")
    assert run(*verify, "--to", "3", TAG_KEYS=KEYS) == (1, "forged: order-1\n", "")
    assert run(*verify, "--to", "3", "--to", "2", "--kid", "k2", "--json", TAG_KEYS=KEYS).json == {
        "verdict": "forged",
        "value": "order-1",
        "kid": "k1",
    }


def test_tag_sign_with_kid(run: Run) -> None:
    assert run("tag", "sign", "x", "--kid", "k2", "--json", TAG_KEYS=KEYS).json["tag"].startswith("x~r1.k2.-.")
    assert run("tag", "sign", "x", "--kid", "k3", TAG_KEYS=KEYS).code == 2
    assert run("tag", "sign", "x~r1.x", TAG_KEYS=KEYS).code == 2


def test_codes_of_one_api_version(run: Run) -> None:
    [code] = run("codes", "4720", "--api", "v2", "--json").json
    assert (code["api"], code["code"], code["retryable"]) == ("v2", 4720, False)
    assert "4720 (v2)" in run("codes", "4720").out
    assert len(run("codes").out.splitlines()) > 50
    assert run("codes", "4720", "--api", "v1").code == 1
    assert "Statistical spam detected" in run("codes", "187").out
    for words in ("statistical spam detected", "Spam Detected - Statistical", "187 statistical"):
        assert [code["code"] for code in run("codes", "--search", words, "--json").json] == [187]
    assert run("codes", "--search", "no such words").out.count("\n") <= 1
    assert run("codes", "1") == (1, "", "receiver: Bandwidth's documents list no code 1\n")


# --- events


def test_sample_of_a_published_event_needs_no_database(run: Run, tmp_path: Path) -> None:
    event = run("events", "sample", "--type", "message.failed").json
    assert (event["type"], event["data"]["deliveryCode"], event["data"]["status"]) == ("message.failed", 4720, "failed")
    assert (event["data"]["tag"], event["data"]["tagVerdict"]) == ("order 4711", "unchecked")
    assert event["data"]["reason"]["name"] == "invalid-destination-address"
    assert run("events", "sample").json["type"] == "message.delivered"
    assert run("events", "sample", "--type", "message.lost").code == 2
    assert list(tmp_path.iterdir()) == []


# --- messages


def test_messages_list_is_newest_first_and_filtered_by_options(filled: Run) -> None:
    def ids(*options: str) -> set[str]:
        return {message["id"] for message in filled("messages", "list", "--json", *options).json}

    assert ids() == {"out-1", "out-2", "in-1", "both", "v1-only"}
    assert ids("--direction", "in") == {"in-1"}
    assert ids("--status", "failed") == ids("--code", "4720") == {"out-2"}
    assert ids("--tag", "order-1") == {"out-1"}
    assert ids("--from", "15559999", "--to", "+15550001", "--size", "1") < ids()
    assert ids("--until", "2025") == set()
    assert ids("--status", "failed,delivered", "--code", "4720") == {"out-2"}
    assert ids("--number", "+1 (555) 999-9") == ids("--number", "15559999")
    assert ids("--q", "out-1") == {"out-1"}
    assert ids("--tag-prefix", "order") == {"out-1"}
    assert "(there are more: --page 1)" in filled("messages", "list", "--size", "2").out


def test_group_message_does_not_widen_the_list(filled: Run, tmp_path: Path) -> None:
    numbers = [f"+1919555{number:04}" for number in range(40)]
    events = [v2_event("pair", message={"to": numbers[:2]}), v2_event("group", message={"to": numbers})]
    (tmp_path / "in.jsonl").write_bytes(to_line(received(events, 60)))
    assert filled("callbacks", "import", "in.jsonl").code == 0
    lines = filled("messages", "list").out.splitlines()
    assert any("  +19195550000 and 39 more  " in line for line in lines)
    assert any("  +19195550000, +19195550001  " in line for line in lines)
    assert max(map(len, lines)) < 140
    shown = next(message for message in filled("messages", "list", "--json").json if message["id"] == "group")
    assert shown["to"] == numbers


def test_empty_list_says_what_was_searched_for(filled: Run) -> None:
    found = filled("messages", "list", "--to", "(919) 555-4321", "--status", "failed,sent", "--since", "2026")
    assert found == (0, "nothing matches --to 19195554321 --since 2026-01-01T00:00:00Z --status failed,sent\n", "")
    assert filled("messages", "list", "--to", "(919) 555-4321", "--json").json == []
    found = filled("messages", "list", "--to", "030 1234567", "--no-contradicted", COUNTRY_CODE="49")
    assert found.out == "nothing matches --to 49301234567 --no-contradicted\n"
    # A duration is a time by then, so the option is the one that takes a time.
    old = filled("messages", "list", "--awaiting", "--older-than", "3w", "--to", "19195550999").out
    assert re.fullmatch(r"nothing matches --to 19195550999 --awaiting --until 20[-0-9T:.]+Z\n", old)
    assert filled("messages", "list", "--q", "no such tag").out == "nothing matches --q 'no such tag'\n"


def test_messages_export_writes_all_messages(filled: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "_EXPORT_SIZE", 2)
    listed = filled("messages", "list", "--json").json
    exported = filled("messages", "export", "--jsonl").out
    assert [json.loads(line) for line in exported.rstrip("\n").split("\n")] == listed
    rows = list(csv.DictReader(io.StringIO(filled("messages", "export").out)))
    assert {row["id"] for row in rows} == {message["id"] for message in listed}
    assert len(rows) == sum(len(message["recipients"]) for message in listed)
    file = tmp_path / "failed.csv"
    assert filled("messages", "export", "--csv", "--status", "failed", "-o", str(file)).out == ""
    assert [row["id"] for row in csv.DictReader(io.StringIO(file.read_text("utf-8")))] == ["out-2"]
    assert file.stat().st_mode & 0o777 == 0o600
    assert filled("messages", "export", "--csv", "--jsonl").code == 2


def test_a_message_is_shown_with_its_recipients_and_events(filled: Run) -> None:
    shown = filled("messages", "show", "out-2", "--json").json
    assert (shown["id"], shown["status"], shown["recipients"][0]["deliveryCode"]) == ("out-2", "failed", 4720)
    assert [event["type"] for event in shown["events"]] == ["message-failed"]
    out = filled("messages", "show", "out-2").out
    assert "invalid-destination-address" in out
    assert "message-failed" in out


def test_messages_show_of_unknown_and_of_ambiguous_id(filled: Run) -> None:
    assert filled("messages", "show", "what") == (
        1,
        "",
        (
            "receiver: there is no message what: no callback about it came, or retention removed it "
            "(see: receiver help support)\n"
        ),
    )
    assert filled("messages", "show", "both").code == 2
    assert filled("messages", "show", "both", "--api", "v1", "--json").json["api"] == "v1"


# --- safe for a terminal


def test_plain_escapes_control_characters_and_keeps_other_text() -> None:
    text = "na\u00efve \u4f60\u597d \U0001f468\u200d\U0001f469 ~!"
    assert plain(text) == text
    assert plain(EVIL) == r"\x1b[31mred\x07\u202e\x9b2J\r\n\u2028end"


@pytest.mark.parametrize(
    "arguments",
    [
        ["messages", "list"],
        ["messages", "list", "--json"],
        ["messages", "show", "in-1"],
        ["messages", "show", "in-1", "--json"],
        ["messages", "show", "out-2"],
        ["callbacks", "list"],
        ["callbacks", "show", CALLBACKS[5].id],
        ["callbacks", "show", CALLBACKS[5].id, "--json"],
        ["callbacks", "show", CALLBACKS[2].id],
        ["messages", "show", EVIL],
    ],
    ids=lambda arguments: plain(" ".join(arguments)),
)
def test_control_characters_of_callbacks_are_escaped_in_every_output(filled: Run, arguments: list[str]) -> None:
    code, out, err = filled(*arguments)
    assert code == (1 if EVIL in arguments else 0)
    assert [character for character in (out + err).replace("\n", "") if not character.isprintable()] == []


# --- callbacks


def test_callbacks_are_listed_by_outcome(filled: Run) -> None:
    listed = filled("callbacks", "list", "--json").json
    assert [one["id"] for one in listed] == [one.id for one in reversed(CALLBACKS)]
    [quarantined] = filled("callbacks", "list", "--outcome", "quarantined", "--json").json
    assert (quarantined["id"], quarantined["reason"]) == (CALLBACKS[5].id, "unreadable")
    assert filled("callbacks", "list", "--reason", "no-message-id", "--json").json == []


def test_a_callback_is_shown_byte_for_byte(filled: Run) -> None:
    shown = filled("callbacks", "show", CALLBACKS[0].id, "--json").json
    assert shown["body"].encode() == CALLBACKS[0].body
    code, _, err = filled("callbacks", "show", "0" * 32)
    assert code == 1
    assert err.startswith(f"receiver: the journal has no callback {'0' * 32}; ")


def test_callbacks_of_a_message_are_listed(filled: Run) -> None:
    listed = filled("callbacks", "list", "--message", "both", "--json").json
    assert [one["id"] for one in listed] == [CALLBACKS[4].id, CALLBACKS[3].id]


def test_an_export_is_imported_elsewhere(filled: Run, tmp_path: Path) -> None:
    assert filled("callbacks", "export", "--output", "out.jsonl").code == 0
    assert (tmp_path / "out.jsonl").stat().st_mode & 0o777 == 0o600
    lines = (tmp_path / "out.jsonl").read_bytes().splitlines()
    assert [from_line(line, now=now()) for line in lines] == CALLBACKS
    elsewhere = {"DATABASE_URL": "sqlite:///elsewhere.db"}
    assert filled("migrate", **elsewhere).code == 0
    imported = filled("callbacks", "import", "out.jsonl", "--json", **elsewhere)
    assert imported.json == {"callbacks": 6, "known": 0, "broken": 0, "pending": 0}
    again = filled("callbacks", "import", "out.jsonl", "--json", **elsewhere)
    assert again.json == {"callbacks": 0, "known": 6, "broken": 0, "pending": 0}
    assert filled("messages", "list", "--json", **elsewhere).json == filled("messages", "list", "--json").json


def test_import_reports_a_broken_line_and_imports_the_rest(run: Run, tmp_path: Path) -> None:
    run("migrate")
    (tmp_path / "in.jsonl").write_bytes(to_line(CALLBACKS[0]) + b"what\n" + to_line(CALLBACKS[1]))
    code, out, err = run("callbacks", "import", "in.jsonl", "--json")
    assert (code, err) == (1, "receiver: line 2: is not a JSON object\n")
    assert (json.loads(out)["callbacks"], json.loads(out)["broken"]) == (2, 1)


def test_an_import_reads_standard_input_and_an_export_writes_standard_output(filled: Run, tmp_path: Path) -> None:
    exported = receiver(tmp_path, "callbacks", "export", "--outcome", "accepted")
    assert (exported.returncode, exported.stdout.count(b"\n")) == (0, 5)
    imported = receiver(tmp_path, "callbacks", "import", "-", "--json", stdin=exported.stdout)
    assert (imported.returncode, json.loads(imported.stdout)["known"]) == (0, 5)


def test_failed_export_keeps_the_existing_file(filled: Run, tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_bytes(b"precious")
    engine = create_engine(f"sqlite:///{tmp_path / 'receiver-data/callbacks.db'}")
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE callbacks RENAME TO hidden"))
    engine.dispose()
    assert filled("callbacks", "export", "--output", "out.jsonl").code == 1
    assert (tmp_path / "out.jsonl").read_bytes() == b"precious"
    assert not (tmp_path / "out.jsonl.new").exists()


def test_quarantined_callbacks_are_reprocessed_with_the_keys_of_today(run: Run, tmp_path: Path) -> None:
    run("migrate")
    tag = run("tag", "sign", "order", TAG_KEYS='["new:secret"]').out.strip()
    lines = [to_line(received([v2_event("m", message={"tag": tag})], 0)), to_line(CALLBACKS[5])]
    (tmp_path / "in.jsonl").write_bytes(b"".join(lines))
    policy = {"TAG_POLICY": "require"}
    run("callbacks", "import", "in.jsonl", TAG_KEYS='["old:secret"]', **policy)
    assert run("messages", "list", "--json").json == []
    again = run("callbacks", "reprocess", "--outcome", "quarantined", "--json", TAG_KEYS='["new:secret"]', **policy)
    assert (again.code, again.json) == (0, {"callbacks": 2, "events": 1, "quarantined": 1})
    [message] = run("messages", "list", "--json").json
    assert (message["tag"], message["tagVerdict"]) == ("order", "valid")
    assert run("callbacks", "reprocess", CALLBACKS[5].id, "--json").json["callbacks"] == 1
    assert run("callbacks", "reprocess", "0" * 32).code == 1


def test_pending_callbacks_are_reported_on_standard_error(filled: Run, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "receiver-data/callbacks.db")) as connection:
        names = "received_at, api, route, method, query, headers, body"
        connection.execute(f"INSERT INTO callbacks (id, {names}) SELECT '{'f' * 32}', {names} FROM callbacks LIMIT 1")
        connection.commit()
    code, out, err = filled("callbacks", "list", "--outcome", "pending", "--json")
    assert (code, [one["id"] for one in json.loads(out)]) == (0, ["f" * 32])
    assert err == "receiver: 1 callbacks are still pending and not shown yet\n"


def test_an_import_waits_for_the_worker_that_has_the_database(filled: Run, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(to_line(received([v2_event("new")], 60)))
    with held(tmp_path / "receiver-data/receiver.db", WORKER), pytest.MonkeyPatch.context() as patch:
        patch.setattr("receiver.cli.callback_transfer.STALLED_SECONDS", 0.3)
        code, out, err = filled("callbacks", "import", "in.jsonl", "--json")
    assert (code, json.loads(out)) == (1, {"callbacks": 1, "known": 0, "broken": 0, "pending": 1})
    assert err.startswith("receiver: 1 callbacks are in the journal and not processed yet")
    assert filled("callbacks", "import", "in.jsonl", "--json").json["pending"] == 0
    assert filled("messages", "show", "new").code == 0


# --- statistics


def test_statistics_count_deliveries_by_dimensions(filled: Run) -> None:
    found = filled("stats", "--by", "direction,status", "--since", "2000", "--json").json
    assert sum(row["deliveries"] for row in found["rows"]) == 6
    assert [list(row)[:2] for row in found["rows"]] == [["status", "direction"]] * len(found["rows"])
    heading, *lines = filled("stats", "--by", "deliveryCode,from", "--since", "2000").out.splitlines()
    assert heading.startswith("deliveries of messages from 2000-01-01 00:00:00 UTC to ")
    assert lines[0].split() == [
        *("DELIVERY", "CODE", "FROM", "DELIVERIES", "DELIVERED", "FAILED", "UNCONFIRMED", "AWAITING"),
        *("SUCCESS", "P50", "P95"),
    ]
    assert filled("stats", "--by", "carrier").code == 2


def test_statistics_are_written_as_csv(filled: Run) -> None:
    rows = list(
        csv.DictReader(io.StringIO(filled("stats", "--by", "direction,status", "--since", "2000", "--csv").out))
    )
    found = filled("stats", "--by", "direction,status", "--since", "2000", "--json").json["rows"]
    assert list(rows[0])[:3] == ["direction", "status", "deliveries"]
    assert [(row["status"], row["deliveries"]) for row in rows] == [
        (row["status"], str(row["deliveries"])) for row in found
    ]
    assert len(filled("stats", "--by", "status", "--since", "2000", "--limit", "1").out.splitlines()) == 3
    assert filled("stats", "--csv", "--json").code == 2


# --- maintenance


def test_rebuild_counts_and_corrects_rows_that_differ(filled: Run, tmp_path: Path) -> None:
    assert filled("rebuild", "--json").json == {"messages": 6, "forgotten": 0, "differing": 0, "statistics": 0}
    engine = create_engine(f"sqlite:///{tmp_path / 'receiver-data/receiver.db'}")
    with engine.begin() as connection:
        connection.execute(text("UPDATE messages SET status = 'queued' WHERE id = 'out-1'"))
    engine.dispose()
    assert filled("rebuild", "--dry-run").out == "6 messages read, 1 rows differ\n"
    assert filled("rebuild").out == "6 messages read, 1 rows differed and were corrected\n"
    assert filled("messages", "show", "out-1", "--json").json["status"] == "delivered"


def test_prune_dry_run_counts_and_prune_removes(filled: Run) -> None:
    """The callbacks are from January 2026 and the clock is that of the machine, so all of them are older than a day."""
    settings = {"RETENTION": '{"text": 1, "callbacks": 1, "events": 1, "attempts": 0, "messages": 0}'}
    counts = {"text": 4, "callbacks": 6, "events": 6, "alerts": 0}
    assert filled("prune", "--dry-run", "--json", **settings).json == counts
    assert filled("prune", "--json", **settings).json == counts
    assert filled("prune", "--json", **settings).json == dict.fromkeys(counts, 0)
    assert filled("callbacks", "list", "--json").json == []


@pytest.fixture
def with_sink(filled: Run, tmp_path: Path) -> Run:
    """`filled`, with a sink without a worker: all events are published but the first three, which are dead letters."""
    engine = create_engine(f"sqlite:///{tmp_path / 'receiver-data/receiver.db'}")
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO sinks (name, cursor, epoch, revision, paused, fingerprint, failures, last_error, seen_at)"
                " VALUES ('crm', 6, 0, 0, 0, 'f', 2, :error, '2026-01-01T00:00:00.000000Z')"
            ),
            {"error": EVIL},
        )
        for position in (1, 2, 3):
            connection.execute(
                text(
                    "INSERT INTO dead_letters"
                    " (sink, position, ordering_key, event_id, reason, detail, attempts, first_at, died_at)"
                    " VALUES ('crm', :p,"
                    " :p, :p, 'refused', 'no', 1, '2026-01-01T00:00:00.000000Z', '2026-01-01T00:00:00.000000Z')"
                ),
                {"p": position},
            )
        connection.execute(
            text(
                "INSERT INTO attempts (sink, position, event_id, started_at, ended_at, outcome, decision, reason,"
                " response_code, response) VALUES ('crm', 2, '2', '2026-01-01T00:00:00.000000Z',"
                " '2026-01-01T00:00:01.500000Z', 'refused', 'dead', 'status 422', 422, :response)"
            ),
            {"response": EVIL},
        )
    engine.dispose()
    return filled


def test_dead_letters_are_listed_and_requeued(with_sink: Run) -> None:
    letters = with_sink("dead-letters", "list", "--sink", "crm", "--json").json
    assert [(letter["messageId"], letter["reason"], letter["detail"]) for letter in letters] == [
        (id_, "refused", "no") for id_ in ("out-1", "out-2", "in-1")
    ]
    first = str(letters[0]["id"])
    assert with_sink("dead-letters", "requeue", "crm", "--all", "--dry-run", "--json").json["deadLetters"] == 3
    assert with_sink("dead-letters", "requeue", "crm", first, "--json").json["deadLetters"] == 1
    code, _, err = with_sink("dead-letters", "requeue", "crm", first)
    assert (code, err) == (1, "receiver: 1 of these ids are not dead letters of crm\n")
    assert with_sink("dead-letters", "requeue", "crm", "--all", "--json").json["deadLetters"] == 2
    assert with_sink("dead-letters", "list", "--json").json == []
    assert with_sink("dead-letters", "requeue", "what", "--all") == (1, "", "receiver: there is no sink what\n")


def test_dead_letters_list_has_pages_and_filters(with_sink: Run) -> None:
    def listed(*options: str) -> list[str]:
        return [letter["messageId"] for letter in with_sink("dead-letters", "list", *options, "--json").json]

    assert listed("--size", "2") == ["out-1", "out-2"]
    assert listed("--size", "2", "--page", "1") == ["in-1"]
    assert listed("--message", "out-2") == ["out-2"]
    assert listed("--reason", "expired") == listed("--since", "2026-01-02") == listed("--until", "2025") == []
    assert with_sink("dead-letters", "list", "--size", "2").out.endswith("(there are more: --page 1)\n")


def test_dead_letters_drop_after_dry_run(with_sink: Run) -> None:
    assert with_sink("dead-letters", "drop", "crm", "--message", "out-2", "--dry-run").out == (
        "1 dead letters of crm would be dropped\n"
    )
    assert with_sink("dead-letters", "drop", "crm", "--message", "out-2").out == "1 dead letters of crm are dropped\n"
    assert with_sink("dead-letters", "drop", "crm", "--all", "--json").json == {
        "deadLetters": 2,
        "left": 0,
        "dryRun": False,
    }
    assert with_sink("sinks", "show", "crm", "--json").json["retries"] == {}


def test_sinks_are_listed_and_shown(with_sink: Run) -> None:
    settings = {"SINKS": '[{"name": "crm", "type": "webhook", "url": "https://crm.example"}]'}
    [sink] = with_sink("sinks", "list", "--json", **settings).json
    assert (sink["name"], sink["type"], sink["state"], sink["deadLetters"]) == (
        "crm",
        "webhook",
        "unattended",
        {"refused": 3},
    )
    assert with_sink("sinks", "show", "crm", "--json", **settings).json == sink
    assert "crm   -     removed  0" in with_sink("sinks", "list").out
    shown = with_sink("sinks", "show", "crm").out
    assert "dead letters       3 refused\n" in shown
    assert "failures in a row  2\n" in shown
    assert with_sink("sinks", "show", "what") == (1, "", "receiver: there is no sink what\n")


def test_a_sink_is_paused_and_resumed(with_sink: Run) -> None:
    assert with_sink("sinks", "pause", "crm").out == "crm is paused: its events wait\n"
    assert with_sink("sinks", "show", "crm", "--json").json["paused"] is True
    assert with_sink("sinks", "resume", "crm", "--json").json["paused"] is False
    assert with_sink("sinks", "pause", "what") == (1, "", "receiver: there is no sink what\n")


def test_sinks_replay_counts_what_the_filter_of_the_sink_accepts(with_sink: Run) -> None:
    crm = {"name": "crm", "type": "memory", "applications": ["nobody"]}
    dry_run = with_sink("sinks", "replay", "crm", "--beginning", "--dry-run", SINKS=json.dumps([crm]))
    assert dry_run.out == "there is no event to replay to crm\n"


def test_sinks_replay_dry_run_start_pause_resume_cancel(with_sink: Run) -> None:
    since = "2026-01-01 00:00:02"
    assert with_sink("sinks", "replay", "crm", "--since", since, "--dry-run").out == (
        "4 events, received from 2026-01-01T00:00:02Z on, would be published to crm again\n"
    )
    assert with_sink("sinks", "replays", "crm", "--json").json == []
    begun = with_sink("sinks", "replay", "crm", "--since", since, "--json").json
    assert (begun["events"], begun["dryRun"]) == (4, False)
    number = begun["id"]
    assert with_sink("sinks", "replay", "crm", "--beginning").err.startswith(f"receiver: replay {number} to crm is run")
    assert with_sink("sinks", "replay", "crm", "--pause", "--json").json["state"] == "paused"
    assert with_sink("sinks", "replay", "crm", "--resume").out == f"replay {number} to crm is running, 0% done\n"
    assert with_sink("sinks", "show", "crm").out.endswith(f"replay             {number}, running, 0% done\n")
    assert with_sink("sinks", "replay", "crm", "--cancel", "--json").json["state"] == "cancelled"
    assert with_sink("sinks", "replay", "crm", "--cancel") == (1, "", "receiver: there is no open replay to crm\n")
    whole = with_sink("sinks", "replay", "crm", "--beginning").out
    assert whole.startswith(
        f"replay {number + 1}: 6 events, received from 2026-01-01T00:00:00Z on, are published to crm again"
    )
    assert [one["id"] for one in with_sink("sinks", "replays", "crm", "--json").json] == [number + 1, number]
    first = with_sink("sinks", "replays", "crm", "--oldest-first", "--size", "1").out.splitlines()[1]
    assert first.split()[::2][:2] == [str(number), "cancelled"]
    assert with_sink("sinks", "replay", "crm", "--cancel").code == 0
    assert with_sink("sinks", "replay", "crm", "--since", "2999").out == "there is no event to replay to crm\n"


def test_sinks_test_reports_reachability(run: Run) -> None:
    """It needs the settings and no database."""

    def settings(path: str) -> dict[str, str]:
        return {"SINKS": json.dumps([{"name": "file", "type": "jsonl", "path": path}])}

    code, out, err = run("sinks", "test", "file", **settings("events.jsonl"))
    assert (code, err) == (0, "")
    assert re.match(r"file can be reached \(\d+\.", out)
    reason = "No such file or directory"
    nowhere = settings("nowhere/events.jsonl")
    assert run("sinks", "test", "file", **nowhere) == (1, "", f"receiver: file cannot be reached: {reason}\n")
    result = run("sinks", "test", "file", "--json", **nowhere)
    assert (result.code, result.json["ok"], result.json["error"]) == (1, False, reason)
    assert run("sinks", "test", "what") == (1, "", "receiver: the settings have no sink what\n")


REACHABILITY = {
    "SINKS": json.dumps(
        [
            {"name": "here", "type": "jsonl", "path": "events.jsonl"},
            {"name": "nowhere", "type": "jsonl", "path": "nowhere/events.jsonl"},
            {"name": "refused", "type": "webhook", "url": "http://127.0.0.1:1/"},
        ]
    )
}


@pytest.mark.parametrize(
    "command",
    [
        ("stats",),
        ("messages", "list"),
        ("messages", "export"),
        ("callbacks", "list"),
        ("callbacks", "export"),
        ("callbacks", "reprocess"),
        ("dead-letters", "list"),
        ("dead-letters", "requeue", "crm"),
        ("alerts", "list"),
    ],
    ids=" ".join,
)
def test_range_that_ends_before_it_begins_is_a_wrong_option(filled: Run, command: Sequence[str]) -> None:
    code, out, err = filled(*command, "--since", "2026-02-01", "--until", "2026-01-31")
    assert (code, out) == (2, "")
    assert "--until: must not be before the beginning of the range" in err


def test_sinks_test_all_tests_every_sink(run: Run, tmp_path: Path) -> None:
    code, out, err = run("sinks", "test", "--all", **REACHABILITY)
    assert (code, err) == (1, "")
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [
        ["here", "ok"],
        ["nowhere", "FAILED"],
        ["refused", "FAILED"],
    ]
    tested = run("sinks", "test", "--all", "--json", **REACHABILITY).json
    assert [(one["sink"], one["ok"]) for one in tested] == [("here", True), ("nowhere", False), ("refused", False)]
    assert 'add egress_allow = ["127.0.0.1/32"] to the sink' in tested[2]["error"]
    # A test by another user must not leave a file that the server cannot write.
    assert not (tmp_path / "events.jsonl").exists()


@pytest.mark.parametrize("arguments", [[], ["crm", "--all"]])
def test_sinks_test_wants_a_name_or_all(run: Run, arguments: list[str]) -> None:
    code, _, err = run("sinks", "test", *arguments)
    assert code == 2
    assert "give the name of a sink, or --all" in err


def test_check_warns_of_sinks_that_cannot_be_reached(run: Run) -> None:
    code, out, _ = run("check", **REACHABILITY)
    assert code == 0
    results = {line.split()[1]: line.split()[2] for line in out.splitlines() if line.startswith("sink ")}
    assert results == {"here": "ok", "nowhere": "WARNING", "refused": "WARNING"}
    findings = run("check", "--json", **REACHABILITY).json
    assert [one["warning"] for one in findings if one["what"].startswith("sink ")] == [False, True, True]


def test_messages_attempts_lists_delivery_attempts(with_sink: Run) -> None:
    heading, row = with_sink("messages", "attempts", "out-2").out.splitlines()
    assert heading.split()[:4] == ["STARTED", "SECONDS", "SINK", "STATUS"]
    assert row.split()[:7] == ["2026-01-01T00:00:00Z", "1.500", "crm", "failed", "refused", "422", "dead"]
    [attempt] = with_sink("messages", "attempts", "out-2", "--sink", "crm", "--json").json
    assert (attempt["responseCode"], attempt["seconds"], attempt["decision"]) == (422, 1.5, "dead")
    assert with_sink("messages", "attempts", "out-2", "--sink", "lake", "--json").json == []
    assert with_sink("messages", "attempts", "what").code == 1
    assert with_sink("messages", "attempts", "both").code == 2


@pytest.mark.parametrize(
    "arguments", [["sinks", "list"], ["sinks", "show", "crm"], ["messages", "attempts", "out-2"]], ids=" ".join
)
@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
def test_control_characters_of_sink_responses_are_escaped(
    with_sink: Run, arguments: list[str], form: list[str]
) -> None:
    code, out, err = with_sink(*arguments, *form)
    assert (code, err) == (0, "")
    assert [character for character in out.replace("\n", "") if not character.isprintable()] == []
