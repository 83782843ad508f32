"""SIGHUP: settings are read again, files opened anew, and no request is refused that either key would accept."""

import json
import os
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.faults.load import freeze, is_gone, worker_of
from tests.posts import v2_event
from tests.running import PATIENT, Server, serving, until, whole_lines

OLD, NEW = "bandwidth:old-secret", "bandwidth:new-secret"


def write(folder: Path, *credentials: str, sinks: list[dict[str, Any]] | None = None, more: str = "") -> None:
    """The settings; the tables of sinks as the JSON that TOML happens to read too."""
    lines = [f"callback_credentials = {json.dumps(credentials)}", 'api_tokens = ["token"]', more]
    for sink in sinks or []:
        lines += ["[[sinks]]", *(f"{name} = {json.dumps(value)}" for name, value in sink.items())]
    # at once: the server may be reading
    (folder / "new.toml").write_text("\n".join(lines))
    (folder / "new.toml").replace(folder / "receiver.toml")


def post(server: Server, number: int, credentials: str) -> int:
    user, password = credentials.split(":")
    event = v2_event(message_id=f"m{number}")
    url = f"{server.url}/callbacks/bandwidth/v2"
    return httpx2.post(url, json=[event], auth=(user, password), **PATIENT).status_code


def reload(server: Server) -> None:
    told = server.errors.read_text().count("reloaded")
    server.process.send_signal(signal.SIGHUP)
    until(lambda: server.errors.read_text().count("reloaded") > told)


def messages(path: Path) -> list[str]:
    return [json.loads(line)["subject"] for line in whole_lines(path)]


def open_files(server: Server) -> list[str]:
    """What the server's worker has open; nothing where the system does not tell."""
    held = Path(f"/proc/{worker_of(server)}/fd")
    return [told for one in held.iterdir() if (told := _target(one))] if held.exists() else []


def _target(link: Path) -> str:
    # it may be closed between two looks
    with suppress(FileNotFoundError):
        return str(link.readlink())
    return ""


def test_credentials_are_rotated_under_load_and_no_request_is_refused(tmp_path: Path) -> None:
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
            told = len(answers)
            until(lambda: len(answers) > told + 10)
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


def test_a_mistake_is_told_and_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path, OLD)
    with serving(tmp_path) as server:
        write(tmp_path, NEW, sinks=[{"name": "crm", "type": "pulsar"}])
        reload(server)
        assert "RECEIVER_SINKS: crm: type: there is no 'pulsar'" in server.errors.read_text()
        assert post(server, 1, OLD) == 200
        assert post(server, 2, NEW) == 401
        assert server.stop() == 0


def test_what_nobody_foresaw_is_told_and_the_next_signal_is_heard(tmp_path: Path) -> None:
    write(tmp_path, OLD)
    with serving(tmp_path) as server:
        write(tmp_path, OLD, more=f"schedule = {'[' * 10_000}")
        reload(server)
        assert "settings not reloaded" in server.errors.read_text()
        write(tmp_path, NEW)
        reload(server)
        assert post(server, 1, NEW) == 200
        assert server.stop() == 0


def test_sinks_come_change_and_go_and_what_waits_for_a_restart_is_told(tmp_path: Path) -> None:
    first, second, third = (tmp_path / f"{name}.jsonl" for name in ("first", "second", "third"))
    kept = {"name": "kept", "type": "jsonl", "path": str(first)}
    write(tmp_path, OLD, sinks=[kept])
    with serving(tmp_path) as server:
        post(server, 1, OLD)
        until(lambda: messages(first) == ["m1"])
        write(tmp_path, OLD, sinks=[kept, {"name": "new", "type": "jsonl", "path": str(second)}], more="port = 1")
        reload(server)
        post(server, 2, OLD)
        # a sink that leaves the settings is given nothing more
        until(lambda: (messages(first), messages(second)) == (["m1", "m2"], ["m2"]))
        write(tmp_path, OLD, sinks=[{"name": "new", "type": "jsonl", "path": str(third)}], more='log_level = "error"')
        reload(server)
        until(lambda: any("wait for a restart" in line for line in whole_lines(server.errors)))
        [told] = [line for line in whole_lines(server.errors) if "wait for a restart" in line]
        assert "log_level" in told
        post(server, 3, OLD)
        until(lambda: messages(third) == ["m3"])
        assert (messages(first), messages(second)) == (["m1", "m2"], ["m2"])
        assert server.stop() == 0


def test_sighup_with_wrong_settings_changes_nothing_in_web_process_and_worker(tmp_path: Path) -> None:
    kept, other = tmp_path / "kept.jsonl", tmp_path / "other.jsonl"
    sink = {"name": "kept", "type": "jsonl", "path": str(kept)}
    write(tmp_path, OLD, sinks=[sink])
    with serving(tmp_path) as server:
        post(server, 1, OLD)
        until(lambda: messages(kept) == ["m1"])
        wrong = [{"name": "other", "type": "jsonl", "path": str(other)}, {"name": "crm", "type": "pulsar"}]
        write(tmp_path, NEW, sinks=wrong)
        reload(server)
        post(server, 2, OLD)
        until(lambda: messages(kept) == ["m1", "m2"])
        # nor does the next worker begin with them
        worker = worker_of(server)
        os.kill(worker, signal.SIGKILL)
        worker_of(server, but=worker)
        post(server, 3, OLD)
        # what the killed worker had not settled comes twice
        until(lambda: set(messages(kept)) == {"m1", "m2", "m3"})
        assert not other.exists()
        assert server.stop() == 0


def test_worker_that_is_down_starts_with_the_reloaded_settings(tmp_path: Path) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    sink = {"name": "file", "type": "jsonl", "path": str(first)}
    write(tmp_path, OLD, sinks=[sink])
    with serving(tmp_path) as server:
        post(server, 1, OLD)
        until(lambda: messages(first) == ["m1"])
        worker = worker_of(server)
        os.kill(worker, signal.SIGKILL)
        until(lambda: is_gone(worker))
        # whether none runs yet, or one starts and has read the old settings
        write(tmp_path, NEW, sinks=[{**sink, "path": str(second)}])
        reload(server)
        post(server, 2, NEW)
        until(lambda: "m2" in messages(second))
        assert messages(first) == ["m1"]
        assert server.stop() == 0


@pytest.mark.faults
def test_reload_beside_a_frozen_worker_changes_nothing_in_either_process(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("asked", [True, False], ids=["with a signal", "without"])
def test_a_file_that_was_rotated_away_is_left_alone(tmp_path: Path, asked: bool) -> None:
    path = tmp_path / "events.jsonl"
    write(tmp_path, OLD, sinks=[{"name": "archive", "type": "jsonl", "path": str(path)}])
    with serving(tmp_path) as server:
        post(server, 1, OLD)
        until(lambda: messages(path) == ["m1"])
        path.rename(tmp_path / "events.jsonl.1")
        if asked:
            reload(server)
        post(server, 2, OLD)
        until(lambda: messages(path) == ["m2"])
        assert messages(tmp_path / "events.jsonl.1") == ["m1"]
        assert not any("jsonl.1" in one for one in open_files(server))
