"""SIGHUP: settings are read again, files are opened again, and neither old nor new credentials are refused."""

import json
import os
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.factories import v2_event
from tests.faults.load import freeze, is_gone, worker_of
from tests.processes import PATIENT, Server, serving, until, whole_lines

OLD, NEW = "bandwidth:old-secret", "bandwidth:new-secret"


def write(folder: Path, *credentials: str, sinks: list[dict[str, Any]] | None = None, more: str = "") -> None:
    """Writes the settings; the sink tables are JSON that is also valid TOML."""
    lines = [f"callback_credentials = {json.dumps(credentials)}", 'api_tokens = ["token"]', more]
    for sink in sinks or []:
        lines += ["[[sinks]]", *(f"{name} = {json.dumps(value)}" for name, value in sink.items())]
    # atomically: the server may be reading
    (folder / "new.toml").write_text("\n".join(lines))
    (folder / "new.toml").replace(folder / "receiver.toml")


def post(server: Server, number: int, credentials: str) -> int:
    user, password = credentials.split(":")
    event = v2_event(message_id=f"m{number}")
    url = f"{server.url}/callbacks/bandwidth/v2"
    return httpx2.post(url, json=[event], auth=(user, password), **PATIENT).status_code


def reload(server: Server) -> None:
    reloads = server.errors.read_text().count("reloaded")
    server.process.send_signal(signal.SIGHUP)
    until(lambda: server.errors.read_text().count("reloaded") > reloads)


def messages(path: Path) -> list[str]:
    return [json.loads(line)["subject"] for line in whole_lines(path)]


def open_files(server: Server) -> list[str]:
    """The files that the worker has open; empty where the system does not list them."""
    held = Path(f"/proc/{worker_of(server)}/fd")
    return [target for link in held.iterdir() if (target := _target(link))] if held.exists() else []


def _target(link: Path) -> str:
    # it may be closed meanwhile
    with suppress(FileNotFoundError):
        return str(link.readlink())
    return ""


def test_sighup_rotates_credentials_under_load_without_a_401(tmp_path: Path) -> None:
    write(tmp_path, OLD)
    with serving(tmp_path) as server:
        answers: list[int] = []
        current, ending = [OLD], threading.Event()

        def load() -> None:
            while not ending.is_set():
                answers.append(post(server, len(answers), current[0]))

        thread = threading.Thread(target=load)
        thread.start()
        try:
            until(lambda: len(answers) > 10)
            write(tmp_path, NEW, OLD)
            reload(server)
            current[0] = NEW
            for _ in range(3):
                reload(server)
            number = len(answers)
            until(lambda: len(answers) > number + 10)
        finally:
            ending.set()
            thread.join()
        assert set(answers) == {200}
        assert post(server, -1, OLD) == 200
        write(tmp_path, NEW)
        reload(server)
        assert post(server, -2, OLD) == 401
        assert post(server, -3, NEW) == 200
        assert server.stop() == 0


def test_sighup_keeps_old_settings_on_error(tmp_path: Path) -> None:
    write(tmp_path, OLD)
    with serving(tmp_path) as server:
        write(tmp_path, NEW, sinks=[{"name": "crm", "type": "pulsar"}])
        reload(server)
        assert "RECEIVER_SINKS: crm: type: there is no 'pulsar'" in server.errors.read_text()
        assert post(server, 1, OLD) == 200
        assert post(server, 2, NEW) == 401
        assert server.stop() == 0


@pytest.mark.slow
def test_sighup_after_an_unexpected_error_of_reload(tmp_path: Path) -> None:
    write(tmp_path, OLD)
    with serving(tmp_path) as server:
        write(tmp_path, OLD, more=f"schedule = {'[' * 10_000}")
        reload(server)
        assert "settings not reloaded" in server.errors.read_text()
        write(tmp_path, NEW)
        reload(server)
        assert post(server, 1, NEW) == 200
        assert server.stop() == 0


def test_sighup_adds_changes_and_removes_sinks_and_names_settings_that_need_a_restart(tmp_path: Path) -> None:
    first, second, third = (tmp_path / f"{name}.jsonl" for name in ("first", "second", "third"))
    unchanged = {"name": "unchanged", "type": "jsonl", "path": str(first)}
    write(tmp_path, OLD, sinks=[unchanged])
    with serving(tmp_path) as server:
        post(server, 1, OLD)
        until(lambda: messages(first) == ["m1"])
        write(tmp_path, OLD, sinks=[unchanged, {"name": "new", "type": "jsonl", "path": str(second)}], more="port = 1")
        reload(server)
        post(server, 2, OLD)
        # nothing more is published to a removed sink
        until(lambda: (messages(first), messages(second)) == (["m1", "m2"], ["m2"]))
        write(tmp_path, OLD, sinks=[{"name": "new", "type": "jsonl", "path": str(third)}], more='log_level = "error"')
        reload(server)
        until(lambda: any("wait for a restart" in line for line in whole_lines(server.errors)))
        [warning] = [line for line in whole_lines(server.errors) if "wait for a restart" in line]
        assert "log_level" in warning
        post(server, 3, OLD)
        until(lambda: messages(third) == ["m3"])
        assert (messages(first), messages(second)) == (["m1", "m2"], ["m2"])
        assert server.stop() == 0


@pytest.mark.slow
def test_sighup_with_wrong_settings_changes_neither_web_process_nor_worker(tmp_path: Path) -> None:
    unchanged, other = tmp_path / "unchanged.jsonl", tmp_path / "other.jsonl"
    sink = {"name": "unchanged", "type": "jsonl", "path": str(unchanged)}
    write(tmp_path, OLD, sinks=[sink])
    with serving(tmp_path) as server:
        post(server, 1, OLD)
        until(lambda: messages(unchanged) == ["m1"])
        wrong = [{"name": "other", "type": "jsonl", "path": str(other)}, {"name": "crm", "type": "pulsar"}]
        write(tmp_path, NEW, sinks=wrong)
        reload(server)
        post(server, 2, OLD)
        until(lambda: messages(unchanged) == ["m1", "m2"])
        # the next worker does not start with them either
        worker = worker_of(server)
        os.kill(worker, signal.SIGKILL)
        worker_of(server, but=worker)
        post(server, 3, OLD)
        # events that the killed worker had not settled are published twice
        until(lambda: set(messages(unchanged)) == {"m1", "m2", "m3"})
        assert not other.exists()
        assert server.stop() == 0


@pytest.mark.slow
def test_restarted_worker_has_the_settings_of_sighup(tmp_path: Path) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    sink = {"name": "file", "type": "jsonl", "path": str(first)}
    write(tmp_path, OLD, sinks=[sink])
    with serving(tmp_path) as server:
        post(server, 1, OLD)
        until(lambda: messages(first) == ["m1"])
        worker = worker_of(server)
        os.kill(worker, signal.SIGKILL)
        until(lambda: is_gone(worker))
        # whether no worker runs yet, or one is starting with the old settings
        write(tmp_path, NEW, sinks=[{**sink, "path": str(second)}])
        reload(server)
        post(server, 2, NEW)
        until(lambda: "m2" in messages(second))
        assert messages(first) == ["m1"]
        assert server.stop() == 0


@pytest.mark.faults
def test_sighup_with_a_frozen_worker_changes_nothing(tmp_path: Path) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    sink = {"name": "file", "type": "jsonl", "path": str(first)}
    write(tmp_path, OLD, sinks=[sink])
    with serving(tmp_path) as server:
        post(server, 1, OLD)
        until(lambda: messages(first) == ["m1"])
        worker = worker_of(server)
        freeze(worker)
        write(tmp_path, NEW, sinks=[{**sink, "path": str(second)}])
        reload(server)
        assert "settings not reloaded" in server.errors.read_text()
        os.kill(worker, signal.SIGCONT)
        assert post(server, 2, NEW) == 401
        assert post(server, 3, OLD) == 200
        # the worker has read the new settings by now and, after them, the old ones again
        until(lambda: "m3" in messages(first))
        assert worker_of(server) == worker
        reload(server)
        assert post(server, 4, NEW) == 200
        until(lambda: messages(second)[-1:] == ["m4"])
        assert server.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize("with_sighup", [True, False], ids=["sighup", "no-sighup"])
def test_rotated_jsonl_file_is_released_with_and_without_sighup(tmp_path: Path, with_sighup: bool) -> None:
    path = tmp_path / "events.jsonl"
    write(tmp_path, OLD, sinks=[{"name": "archive", "type": "jsonl", "path": str(path)}])
    with serving(tmp_path) as server:
        post(server, 1, OLD)
        until(lambda: messages(path) == ["m1"])
        path.rename(tmp_path / "events.jsonl.1")
        if with_sighup:
            reload(server)
        post(server, 2, OLD)
        until(lambda: messages(path) == ["m2"])
        assert messages(tmp_path / "events.jsonl.1") == ["m1"]
        assert not any("jsonl.1" in one for one in open_files(server))


@pytest.mark.slow
def test_reloads_leave_no_memory_behind(tmp_path: Path) -> None:
    write(tmp_path, OLD)
    with serving(tmp_path) as server:

        def memory() -> float:
            """In MiB, without mapped files."""
            status = Path(f"/proc/{server.process.pid}/status").read_text()
            return int(status.partition("RssAnon:")[2].split()[0]) / 1024

        for _ in range(10):
            reload(server)
        before = memory()
        for _ in range(40):
            reload(server)
        assert memory() - before < 3
