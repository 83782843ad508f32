"""Alerts to people with the installed command: the server, `receiver alerts test`, `receiver check`."""

import json
from pathlib import Path
from typing import Any

import httpx2

from tests.alerting import hook_server
from tests.processes import PATIENT, receiver, serving, until
from tests.unit.test_alertmanager import POSTED


def settings(*to: str, **more: str) -> dict[str, str]:
    return {
        "ALERTS": json.dumps([{"rule": "external", "to": list(to)}]),
        "ALERT_EGRESS_ALLOW": '["127.0.0.0/8"]',
        "API_TOKENS": '["token"]',
        **more,
    }


TOKEN = {"Authorization": "Bearer token"}


def post(url: str, **alert: Any) -> int:
    body = {**POSTED, "alerts": [{**POSTED["alerts"][0], **alert}]}
    return httpx2.post(f"{url}/api/alerts/alertmanager", json=body, headers=TOKEN, **PATIENT).status_code


def get(url: str, path: str) -> httpx2.Response:
    return httpx2.get(url + path, headers=TOKEN, **PATIENT)


def test_alert_of_another_program_reaches_people_through_the_server(tmp_path: Path) -> None:
    with hook_server() as hook:
        (tmp_path / "target").write_text(f"json://{hook.address}/CANARY\n")
        with serving(tmp_path, settings=settings("file:target", LOG_LEVEL="debug")) as server:
            assert post(server.url) == 200
            until(lambda: len(hook.posted) == 1)
            assert post(server.url, status="resolved") == 200
            until(lambda: len(hook.posted) == 2)
            # One line for each, once it is stored that it was accepted.
            until(lambda: server.errors.read_text().count("notification sent") == 2)
            # The worker reports its metrics once a second.
            until(lambda: 'receiver_notifications_total{outcome="sent"} 2.0\n' in get(server.url, "/metrics").text)
            [alert] = get(server.url, "/api/alerts").json()
            listed = receiver(tmp_path, "alerts", "notifications", alert["id"]).stdout.decode().splitlines()
            assert [line.split()[2:5] for line in listed[1:]] == [["fired", "sent", "1"], ["resolved", "sent", "1"]]
            assert listed[1].startswith("json://*** (file:target)")
            assert server.stop() == 0
        titles = [one.json["title"] for one in hook.posted]
        assert titles == [
            "Critical: ProbeFailure (instance=https://server.example.org, job=http_checks, monitor=master)",
            "Resolved: ProbeFailure (instance=https://server.example.org, job=http_checks, monitor=master)",
        ]
        # The log at the level debug has no part of the URL.
        assert "CANARY" not in server.errors.read_text()


def test_alerts_test_reports_each_target_and_fails_if_one_does(tmp_path: Path) -> None:
    with hook_server() as good, hook_server(status=403) as bad:
        both = settings(f"json://{good.address}/", f"alertmanager+http://{bad.address}/CANARY")
        found = receiver(tmp_path, "alerts", "test", **both)
        assert found.returncode == 1
        heading, first, second = found.stdout.decode().splitlines()
        assert heading.split() == ["TARGET", "RESULT", "TIME"]
        assert first.startswith("json://*** (")
        assert "accepted" in first
        assert "status 403" in second
        assert b"CANARY" not in found.stdout + found.stderr
        answer = receiver(tmp_path, "alerts", "test", "--json", "--rule", "external", **both)
        assert [(one["ok"], one["error"]) for one in json.loads(answer.stdout)] == [(True, None), (False, "status 403")]
        one = receiver(tmp_path, "alerts", "test", "--to", f"json://{good.address}/other", **settings())
        assert (one.returncode, good.posted[-1].path) == (0, "/other")
    wrong = receiver(tmp_path, "alerts", "test", "--to", "nonsense", **settings())
    assert (wrong.returncode, wrong.stderr.decode().strip()) == (
        2,
        "receiver: --to: there is no sink nonsense (see: receiver help alerts)",
    )
    unknown = receiver(tmp_path, "alerts", "test", "--rule", "nonsense", **settings())
    assert (unknown.returncode, unknown.stderr.decode().strip()) == (1, "receiver: there is no rule nonsense")
    nothing = receiver(tmp_path, "alerts", "test", **settings())
    assert (nothing.returncode, nothing.stdout.decode().strip()) == (0, "no rule has a target for people")


def test_check_names_a_target_that_cannot_be_used(tmp_path: Path) -> None:
    found = receiver(tmp_path, "check", **settings("slack://CANARY"))
    assert found.returncode != 0
    output = (found.stdout + found.stderr).decode()
    assert "RECEIVER_ALERTS: external: to: entry 1: the slack:// target is not a URL that Apprise understands" in output
    assert "CANARY" not in output


def test_settings_command_shows_no_target(tmp_path: Path) -> None:
    found = receiver(tmp_path, "settings", **settings("json://h/CANARY", ALERT_TO='["json://h/CANARY"]'))
    assert found.returncode == 0
    assert b"CANARY" not in found.stdout
