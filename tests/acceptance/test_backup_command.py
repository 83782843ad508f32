"""`receiver backup` beside a server under load, and `receiver restore` elsewhere; journals that do not fit."""

import json
import threading
from pathlib import Path

import httpx2
import pytest

from tests.factories import v2_event
from tests.processes import PATIENT, Server, receiver, serving, until

SETTINGS = {"CALLBACK_CREDENTIALS": '["bandwidth:secret"]', "API_TOKENS": '["token"]'}
AUTHORIZED = {"Authorization": "Bearer token"}


def post(server: Server, message_id: str) -> None:
    url = f"{server.url}/callbacks/bandwidth/v2"
    event = v2_event(message_id)
    answer = httpx2.post(url, json=[event], auth=("bandwidth", "secret"), **PATIENT)
    assert answer.status_code == 200


def settle(server: Server) -> None:
    url = f"{server.url}/api/status"
    until(lambda: httpx2.get(url, headers=AUTHORIZED, **PATIENT).json()["journal"]["pending"] == 0)


def messages(folder: Path, **settings: str) -> set[str]:
    listed = receiver(folder, "messages", "list", "--size", "1000", "--json", **settings)
    assert listed.returncode == 0, listed.stderr
    return {message["id"] for message in json.loads(listed.stdout)}


@pytest.mark.slow
def test_backup_under_load_is_restored_elsewhere_and_serves(tmp_path: Path) -> None:
    accepted: list[str] = []
    ending = threading.Event()

    def load() -> None:
        while not ending.is_set() and len(accepted) < 900:
            post(server, message_id := f"m{len(accepted)}")
            accepted.append(message_id)

    with serving(tmp_path, settings=SETTINGS) as server:
        thread = threading.Thread(target=load)
        thread.start()
        try:
            until(lambda: len(accepted) > 20)
            before = list(accepted)
            made = receiver(tmp_path, "backup", "backup", **SETTINGS)
            assert made.returncode == 0, made.stderr
            after = len(accepted)
            until(lambda: len(accepted) > after)
        finally:
            ending.set()
            thread.join()
        refused = receiver(tmp_path, "restore", "backup", **SETTINGS)
        assert (refused.returncode, f"process {server.process.pid} already serves" in refused.stderr.decode()) == (
            1,
            True,
        )
        assert server.stop() == 0
    elsewhere = {**SETTINGS, "DATA_DIR": "elsewhere"}
    restored = receiver(tmp_path, "restore", "backup", **elsewhere)
    assert restored.returncode == 0, restored.stderr
    with serving(tmp_path, settings=elsewhere) as server:
        settle(server)
        assert set(before) <= messages(tmp_path, **elsewhere) <= set(accepted)
        rebuilt = receiver(tmp_path, "rebuild", "--dry-run", **elsewhere)
        assert b" 0 rows differ" in rebuilt.stdout
        post(server, "after")
        settle(server)
        assert "after" in messages(tmp_path, **elsewhere)
        assert server.stop() == 0


@pytest.mark.parametrize("command", ["backup", "restore"])
def test_backup_and_restore_refuse_postgresql(tmp_path: Path, command: str) -> None:
    refused = receiver(tmp_path, command, "backup", DATABASE_URL="postgresql://postgres@127.0.0.1:1/none")
    assert refused.returncode == 2
    assert refused.stderr.decode().splitlines() == [
        "receiver: backup and restore are for SQLite; with PostgreSQL use pg_dump or pg_basebackup"
    ]


@pytest.mark.slow
def test_migrate_new_journal_continues_after_a_lost_journal(tmp_path: Path) -> None:
    with serving(tmp_path, settings=SETTINGS) as server:
        post(server, "m1")
        settle(server)
        assert server.stop() == 0
    for file in (tmp_path / "receiver-data").glob("callbacks.db*"):
        file.unlink()
    refused = receiver(tmp_path, "serve", "--port", "0", **SETTINGS)
    [line] = [line for line in refused.stderr.decode().splitlines() if line.startswith("receiver:")]
    assert refused.returncode == 1
    assert "callbacks.db is missing" in line
    assert "receiver migrate --new-journal" in line
    checked = receiver(tmp_path, "check", **{**SETTINGS, "PORT": "0"})
    assert (checked.returncode, b"callbacks.db is missing" in checked.stdout) == (1, True)
    assert receiver(tmp_path, "migrate", "--check", **SETTINGS).returncode == 1
    assert receiver(tmp_path, "migrate", "--new-journal", **SETTINGS).returncode == 0
    checked = receiver(tmp_path, "check", **{**SETTINGS, "PORT": "0"})
    assert (checked.returncode, b"callbacks.db is not damaged" in checked.stdout) == (0, True)
    with serving(tmp_path, settings=SETTINGS) as server:
        post(server, "m2")
        settle(server)
        assert messages(tmp_path, **SETTINGS) == {"m1", "m2"}
