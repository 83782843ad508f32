"""`receiver work`: a separate worker, beside a server without one."""

import signal
from pathlib import Path

import httpx2
import pytest

from tests.brokers.own import free_port
from tests.factories import v2_event
from tests.processes import PATIENT, Foreground, Server, foreground, receiver, serving, until, whole_lines

CREDENTIALS, TOKEN = ("bandwidth", "secret"), "token"
SETTINGS = {"CALLBACK_CREDENTIALS": '["bandwidth:secret"]', "API_TOKENS": f'["{TOKEN}"]'}
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}


def post(server: Server, message_id: str) -> None:
    url = f"{server.url}/callbacks/bandwidth/v2"
    answer = httpx2.post(url, json=[v2_event(message_id)], auth=CREDENTIALS, **PATIENT)
    assert answer.status_code == 200


def status(server: Server) -> dict[str, object]:
    found: dict[str, object] = httpx2.get(f"{server.url}/api/status", headers=AUTHORIZED, **PATIENT).json()
    return found


def is_known(server: Server, message_id: str) -> bool:
    url = f"{server.url}/api/messages/{message_id}"
    return httpx2.get(url, headers=AUTHORIZED, **PATIENT).status_code == 200


def until_working(worker: Foreground) -> None:
    until(lambda: "working" in worker.errors.read_text() or worker.process.poll() is not None)
    assert worker.process.poll() is None, worker.errors.read_text()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")
    return found


def test_work_processes_the_journal_of_a_server_with_worker_none(url: str, tmp_path: Path) -> None:
    settings = {**SETTINGS, "DATABASE_URL": url, "WORKER": "none"}
    (folder := tmp_path / "worker").mkdir()
    with serving(tmp_path, settings=settings) as server:
        post(server, "m1")
        found = status(server)
        assert found["processor"]["state"] == "missing"  # type: ignore[index]
        assert found["worker"]["state"] == "elsewhere"  # type: ignore[index]
        # without callback credentials and API tokens
        with foreground(folder, "work", RECEIVER_DATABASE_URL=url) as worker:
            until_working(worker)
            until(lambda: is_known(server, "m1"))
            until(lambda: status(server)["status"] == "ok")
            assert worker.stop(signal.SIGTERM) == 0
        post(server, "m2")
        assert status(server)["journal"]["pending"] == 1  # type: ignore[index]
        assert server.stop() == 0


@pytest.mark.slow
def test_second_worker_of_sqlite_is_refused_with_the_process_id(sqlite_url: str, tmp_path: Path) -> None:
    with foreground(tmp_path, "work", RECEIVER_DATABASE_URL=sqlite_url) as first:
        until_working(first)
        second = receiver(tmp_path, "work", DATABASE_URL=sqlite_url)
        assert second.returncode == 1
        assert f"receiver: process {first.process.pid} already works for the database" in second.stderr.decode()
        assert first.stop() == 0


@pytest.mark.slow
def test_work_refuses_a_database_without_schema(tmp_path: Path, postgres_url: str) -> None:
    without = receiver(tmp_path, "work")
    assert (without.returncode, b"there is no database" in without.stderr) == (1, True)
    other = receiver(tmp_path, "work", DATABASE_URL=postgres_url.rpartition("/")[0] + "/postgres")
    assert (other.returncode, b"run: receiver migrate" in other.stderr) == (1, True)


def write(folder: Path, *lines: str) -> None:
    (folder / "new.toml").write_text("\n".join(lines))
    (folder / "new.toml").replace(folder / "receiver.toml")


def test_work_sighup_reloads_sinks_and_keeps_them_on_error(sqlite_url: str, tmp_path: Path) -> None:
    (folder := tmp_path / "worker").mkdir()
    published = folder / "events.jsonl"
    write(folder, "")
    with (
        serving(tmp_path, settings={**SETTINGS, "DATABASE_URL": sqlite_url, "WORKER": "none"}) as server,
        foreground(folder, "work", RECEIVER_DATABASE_URL=sqlite_url) as worker,
    ):
        until_working(worker)
        write(folder, "[[sinks]]", 'name = "file"', 'type = "jsonl"', f'path = "{published}"')
        worker.process.send_signal(signal.SIGHUP)
        until(lambda: "settings reloaded" in worker.errors.read_text())
        write(folder, "[[sinks]]", 'name = "file"', 'type = "pulsar"')
        worker.process.send_signal(signal.SIGHUP)
        until(lambda: "settings not reloaded" in worker.errors.read_text())
        assert "there is no 'pulsar'" in worker.errors.read_text()
        post(server, "m1")
        until(lambda: len(whole_lines(published)) == 1)
        assert worker.stop() == 0


def test_work_metrics_need_a_token_and_healthz_does_not(sqlite_url: str, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    variables = {"RECEIVER_DATABASE_URL": sqlite_url, "RECEIVER_API_TOKENS": f'["{TOKEN}"]'}
    with foreground(tmp_path, "work", "--metrics", address, **variables) as worker:
        until_working(worker)
        assert httpx2.get(f"http://{address}/healthz", **PATIENT).text == "ok\n"
        assert httpx2.get(f"http://{address}/metrics", **PATIENT).status_code == 401
        page = httpx2.get(f"http://{address}/metrics", headers=AUTHORIZED, **PATIENT)
        assert "receiver_processor_stuck 0.0" in page.text
        assert worker.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("address", "auth", "error"),
    [("8080", "none", b"is not HOST:PORT"), ("127.0.0.1:0", "token", b"RECEIVER_API_TOKENS")],
)
def test_metrics_without_an_address_or_a_token_are_refused(
    postgres_url: str, tmp_path: Path, address: str, auth: str, error: bytes
) -> None:
    refused = receiver(tmp_path, "work", "--metrics", address, DATABASE_URL=postgres_url, METRICS_AUTH=auth)
    assert (refused.returncode, error in refused.stderr) == (2, True)
