"""Rules of alerts on the real thing: a server, the sandbox that sends, a sink and a person who hear of the alert.

Every trial has all rules in force. It plays one trouble until its alert fires, kills all processes and starts them
again in the middle, ends the trouble, and waits until the alert is resolved. Windows are short, but no limit of the
settings is bent for it: `tests/shifted_clock` sets the clock of the server ahead in steps, and SIGHUP begins the round
of evaluation that would come half a minute later. A step is as long as three rounds, so that no round counts as missed.

`receipts-stopped` and `sink-behind` are not played here: `tests/integration/test_alert_facts.py` has them.
"""

import json
import os
import re
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from receiver import tags
from receiver.testing.sandbox import Sandbox, running_sandbox
from tests.alerting import HookServer, hook_server
from tests.brokers.own import free_port
from tests.processes import PATIENT, Foreground, foreground, until
from tests.sandboxes import API_TOKEN, PAIR, V1, V2, v1_message, v2_message
from tests.servers import on_postgres

SHIFTED_CLOCK = Path(__file__).parents[1] / "shifted_clock"
STEP = 100
KEY = ("k1", "correct-horse-battery-staple")

pytestmark = pytest.mark.slow

RULES: dict[str, dict[str, Any]] = {
    "failure-rate": {"window": "1m", "by": "applicationId"},
    "code-spike": {"window": "1m"},
    "slow-delivery": {"window": "1m", "longer_than": "1s"},
    "receipts-stopped": {"window": "1m"},
    "awaiting-receipt": {"window": "10m", "longer_than": "1m"},
    "contradictions": {"window": "1m", "above": 3},
    "forged-tags": {"window": "1m"},
    "quarantine": {"window": "1m"},
    "fallback-used": {"window": "1m"},
    "wrong-credentials": {"window": "1m"},
    "processor-behind": {"for": "0s"},
    "sink-down": {"for": "30s"},
    "sink-behind": {"for": "30s", "longer_than": "1m"},
    "dead-letters": {"window": "1m"},
    "storage": {"for": "0s", "above": 0.08},
}


@dataclass
class Installation:
    """A receiver whose clock the test sets, a sandbox that sends to it, and who hears of alerts."""

    folder: Path
    database_url: str
    port: int
    sandbox: Sandbox
    ops: HookServer
    people: HookServer
    crm: HookServer
    ahead: int = 0
    starts: int = 0
    processes: ExitStack = field(default_factory=ExitStack)
    running: Foreground | None = None
    sent: list[str] = field(default_factory=list)
    client: httpx2.Client = field(default_factory=lambda: httpx2.Client(**PATIENT))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def callbacks(self) -> str:
        return f"{self.url}/callbacks/bandwidth"

    def now(self) -> datetime:
        """The time of the server."""
        return datetime.now(UTC) + timedelta(seconds=self.ahead)

    def request(self, method: str, path: str, **more: Any) -> Any:
        headers = {"Authorization": f"Bearer {API_TOKEN}"}
        answer = self.client.request(method, f"{self.url}{path}", headers=headers, **more)
        assert answer.is_success, answer.text
        return answer.json()

    # --- processes and their clock ---

    def start(self) -> None:
        self.starts += 1
        folder = self.folder / f"start-{self.starts}"
        folder.mkdir()
        serving = foreground(folder, "serve", "--port", str(self.port), **self._variables())
        self.running = self.processes.enter_context(serving)
        self.running.address("receiver")

    def kill(self) -> None:
        """Ends all processes of the server with SIGKILL: the worker first, which is in a group of its own."""
        if self.running is not None:
            for process in children(self.running.process.pid):
                os.kill(process, signal.SIGKILL)
        self.processes.close()

    def _variables(self) -> dict[str, str]:
        hook = {"type": "webhook", "egress_allow": ["127.0.0.0/8"]}
        sinks = [
            {**hook, "name": "ops", "url": f"http://{self.ops.address}/", "events": ["alert.fired", "alert.resolved"]},
            {**hook, "name": "crm", "url": f"http://{self.crm.address}/", "concurrency": 2},
        ]
        settings = {
            "DATABASE_URL": self.database_url,
            "CALLBACK_CREDENTIALS": json.dumps([PAIR]),
            "API_TOKENS": json.dumps([API_TOKEN]),
            "TAG_KEYS": json.dumps([":".join(KEY)]),
            "SINKS": json.dumps(sinks),
            "ALERTS": json.dumps([{"rule": rule, **fields} for rule, fields in RULES.items()]),
            "ALERT_TO": json.dumps([f"json://{self.people.address}/"]),
        }
        self._set_clock()
        clock = {"PYTHONPATH": str(SHIFTED_CLOCK), "TEST_CLOCK_AHEAD": str(self.folder / "ahead")}
        return clock | {f"RECEIVER_{name}": value for name, value in settings.items()}

    def _set_clock(self) -> None:
        # Renamed, so that no process reads an empty file.
        written = self.folder / "ahead.new"
        written.write_text(str(self.ahead))
        written.rename(self.folder / "ahead")

    def step(self) -> None:
        """Sets the clock ahead, and evaluates."""
        self.ahead += STEP
        self._set_clock()
        self.evaluate()

    def evaluate(self) -> None:
        """Begins a round of evaluation and waits for it."""
        assert self.running is not None
        before = self.now()
        os.kill(self.running.process.pid, signal.SIGHUP)
        until(lambda: self._evaluated_at() >= before.timestamp())

    def _evaluated_at(self) -> float:
        """When the last round began that has ended."""
        page = self.client.get(f"{self.url}/metrics", headers={"Authorization": f"Bearer {API_TOKEN}"}).text
        found = re.search(r"^receiver_alert_evaluation_timestamp_seconds (\S+)$", page, re.MULTILINE)
        return float(found[1]) if found else 0.0

    # --- traffic ---

    def send(self, number: int = 1, *, to: str = "+19195551213", sandbox: Sandbox | None = None, **more: Any) -> None:
        """Sends messages of v2, and waits for their callbacks."""
        used = sandbox or self.sandbox
        for _ in range(number):
            answer = self.client.post(used.url + V2, json=v2_message(to=[to], **more), auth=used.auth)
            self.sent.append(answer.raise_for_status().json()["id"])

    def usual(self) -> None:
        """Sends usual messages: they are delivered at once, and signed."""
        known = len(self.sent)
        message = v2_message()
        tag = tags.sign("o-1", KEY[1], kid=KEY[0], sender=message["from"], recipients=message["to"])
        self.send(25, tag=tag)
        del self.sent[known:]
        self.settle()

    def settle(self) -> None:
        """Waits until every callback is sent, processed, and published: a step of the clock would make it late."""
        self.sandbox.wait_until_idle(45)
        until(lambda: self.request("GET", "/api/status")["journal"]["pending"] == 0)
        until(lambda: all(sink["oldestTime"] is None for sink in self.request("GET", "/api/sinks")))

    # --- alerts ---

    def alerts(self, **query: str) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = self.request("GET", "/api/alerts", params=query)
        return listed

    def heard(self, type_: str) -> list[dict[str, Any]]:
        """The alerts of the events of a type that the sink got."""
        return [posted.json["data"] for posted in self.ops.posted if posted.json["type"] == type_]


def children(parent: int) -> list[int]:
    """The processes that a process has started."""
    listed = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(child) for child in listed.read_text().split()] if listed.exists() else []


@contextmanager
def installation(folder: Path, database_url: str) -> Iterator[Installation]:
    port = free_port()
    url = f"http://127.0.0.1:{port}/callbacks/bandwidth/v2"
    with (
        running_sandbox(outbound_url=url, callback_credentials=PAIR) as sandbox,
        hook_server() as ops,
        hook_server() as people,
        hook_server() as crm,
    ):
        here = Installation(folder, database_url, port, sandbox, ops, people, crm)
        try:
            yield here
        finally:
            here.kill()
            here.client.close()


# --- troubles ---


@dataclass(frozen=True)
class Trouble:
    """What is played for a rule. `play` begins the trouble and sends; the block of its context manager is the trouble.

    `steps`: the steps of the clock until the alert must fire. `also` are rules that rightly fire with it.
    `group` and `words` are those of the alert; `names_messages`: it names those that were sent.
    """

    play: Callable[[Installation], AbstractContextManager[None]]
    steps: int = 0
    group: str | None = None
    words: str = ""
    also: tuple[str, ...] = ()
    names_messages: bool = True


def sending(number: int, *, to: str, **more: Any) -> Callable[[Installation], AbstractContextManager[None]]:
    """Sends messages that bring trouble."""

    @contextmanager
    def play(here: Installation) -> Iterator[None]:
        here.send(number, to=to, **more)
        here.sandbox.wait_until_idle(45)
        yield

    return play


@contextmanager
def slow_carrier(here: Installation) -> Iterator[None]:
    with running_sandbox(outbound_url=f"{here.callbacks}/v2", callback_credentials=PAIR, speed=0.5) as slow:
        here.send(25, sandbox=slow)
        slow.wait_until_idle(45)
        yield


@contextmanager
def late_receipts(here: Installation) -> Iterator[None]:
    """Final receipts come hours late; the sends are registered, as v2 says nothing of a message before its receipt."""
    with running_sandbox(outbound_url=f"{here.callbacks}/v2", callback_credentials=PAIR, speed=1) as late:
        here.send(15, to="+15552090004", sandbox=late)
        late.register_sends(here.url, API_TOKEN)
        here.settle()
        yield
        late.advance(21 * 3600)
        late.wait_until_idle(45)


def execute(url: str, statement: str) -> None:
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), timeout=30)) as connection, connection:
            connection.execute(statement)
    else:
        on_postgres(url, statement)


@contextmanager
def forged_tags(here: Installation) -> Iterator[None]:
    message = v2_message()
    tag = tags.sign("o-1", "a guessed secret of somebody", kid="k1", sender=message["from"], recipients=message["to"])
    here.send(3, tag=tag)
    here.sandbox.wait_until_idle(45)
    yield


@contextmanager
def primary_url_gone(here: Installation) -> Iterator[None]:
    callbacks = f"http://{PAIR}@127.0.0.1:{here.port}/callbacks/bandwidth/v1"
    urls = {"callbackUrl": f"http://127.0.0.1:{free_port()}/", "fallbackUrl": f"{callbacks}/fallback"}
    for _ in range(2):
        body = v1_message(receiptRequested="all", **urls)
        answer = here.client.post(here.sandbox.url + V1, json=body, auth=here.sandbox.auth)
        here.sent.append(answer.raise_for_status().headers["location"].rpartition("/")[2])
    here.sandbox.wait_until_idle(45)
    yield


@contextmanager
def wrong_password(here: Installation) -> Iterator[None]:
    wrong = f"{PAIR.partition(':')[0]}:old"
    with running_sandbox(outbound_url=f"{here.callbacks}/v2", callback_credentials=wrong, speed=1) as outdated:
        here.send(30, sandbox=outdated)
        until(lambda: len({post["messageId"] for post in outdated.posts() if post["withCredentials"]}) == 30)
        yield


@contextmanager
def broken_table(here: Installation) -> Iterator[None]:
    """A table is missing, as after a migration that somebody broke off."""
    execute(here.database_url, "ALTER TABLE deliveries RENAME TO gone")
    here.send(3)
    here.sandbox.wait_until_idle(45)
    yield
    execute(here.database_url, "ALTER TABLE gone RENAME TO deliveries")


def crm_answers(
    status: int, *, until_: Callable[[dict[str, Any]], bool]
) -> Callable[[Installation], AbstractContextManager[None]]:
    """A destination refuses events, until the state of its sink says so."""

    @contextmanager
    def play(here: Installation) -> Iterator[None]:
        here.crm.status = status
        here.send(12)
        until(lambda: until_(here.request("GET", "/api/sinks/crm")))
        yield
        here.crm.status = 200

    return play


@contextmanager
def long_reader(here: Installation) -> Iterator[None]:
    """Somebody reads for very long, and much is written meanwhile: the write-ahead log cannot be emptied."""
    file = here.database_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(file, isolation_level=None, timeout=30)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM events").fetchone()
        execute(here.database_url, "CREATE TABLE archive (body BLOB)")
        for _ in range(10):
            execute(here.database_url, "INSERT INTO archive VALUES (randomblob(10000000))")
        yield
        reader.execute("ROLLBACK")


TROUBLES = {
    "failure-rate": Trouble(sending(25, to="+15552024720"), group="app-1", words="ended with 4720"),
    "code-spike": Trouble(sending(25, to="+15552024770"), words="ended with 4770", also=("failure-rate",)),
    "slow-delivery": Trouble(slow_carrier, words="took longer than 1 second"),
    "awaiting-receipt": Trouble(late_receipts, words="wait longer than 1 minute", steps=1),
    "contradictions": Trouble(sending(5, to="+15552090007"), words="contradicted"),
    "forged-tags": Trouble(forged_tags, words="3 events had a forged tag"),
    "quarantine": Trouble(sending(8, to="+15552090008"), words="most of them as unknown-type"),
    "fallback-used": Trouble(primary_url_gone, words="came by a fallback route"),
    "wrong-credentials": Trouble(wrong_password, words="wrong credentials", names_messages=False),
    "processor-behind": Trouble(broken_table, words="cannot be processed", steps=1, names_messages=False),
    "sink-down": Trouble(
        crm_answers(503, until_=lambda sink: sink["downSince"] is not None),
        group="crm",
        words="is down",
        steps=2,
        names_messages=False,
        also=("sink-behind",),
    ),
    "dead-letters": Trouble(
        crm_answers(422, until_=lambda sink: sink["deadLetters"] == {"refused": 12}),
        group="crm",
        words="12 new dead letters",
    ),
    "storage": Trouble(long_reader, words="write-ahead logs", names_messages=False),
}


@pytest.mark.parametrize("rule", TROUBLES)
def test_trouble_fires_its_rule_once_and_is_resolved(tmp_path: Path, sqlite_url: str, rule: str) -> None:
    play(tmp_path, sqlite_url, rule)


# The queries of all rules have tests on both databases: here the way of an alert is what counts.
@pytest.mark.parametrize("rule", ["failure-rate", "sink-down"])
def test_trouble_fires_its_rule_once_and_is_resolved_on_postgresql(
    tmp_path: Path, postgres_url: str, rule: str
) -> None:
    play(tmp_path, postgres_url, rule)


def play(tmp_path: Path, database_url: str, rule: str) -> None:
    """Plays the trouble of a rule from its beginning until its alert is resolved."""
    trouble = TROUBLES[rule]
    expected = sorted((rule, *trouble.also))
    with installation(tmp_path, database_url) as here, ExitStack() as playing:
        here.start()
        # Rules that know silence and lateness say nothing until their window has been watched.
        here.step()
        here.usual()
        here.evaluate()
        assert here.alerts() == []

        began = here.now()
        playing.enter_context(trouble.play(here))
        for _ in range(trouble.steps):
            here.step()
        alert = fired_alert(here, rule, expected)
        assert alert["group"] == trouble.group
        assert trouble.words in alert["summary"]
        [evidence] = [one["evidence"] for one in here.heard("alert.fired") if one["rule"] == rule]
        assert evidence["value"] >= evidence["threshold"]
        named = set(alert["messages"])
        assert named <= set(here.sent)
        assert len(named) == (min(len(here.sent), 10) if trouble.names_messages else 0)
        took = datetime.fromisoformat(alert["firedTime"]) - began
        assert took < timedelta(seconds=60 + trouble.steps * STEP)

        # All processes are killed in the middle: nobody hears of it again.
        until(lambda: is_recorded(here, len(expected)))
        here.kill()
        here.start()
        here.evaluate()
        here.evaluate()
        assert [one["status"] for one in here.alerts(rule=rule)] == ["firing"]

        playing.close()
        ended = here.now()
        while here.alerts(status="firing"):
            here.usual()
            here.step()
            assert here.now() - ended < timedelta(minutes=25), here.alerts(status="firing")
        assert_heard_once(here, expected)
        [resolved] = here.alerts(rule=rule)
        assert resolved["id"] == alert["id"]
        here.settle()
        here.step()
        assert_heard_once(here, expected)
        assert len(here.alerts()) == len(expected)


def fired_alert(here: Installation, rule: str, expected: list[str]) -> dict[str, Any]:
    """The alert of a rule, which has fired with the expected others, and of which everybody has heard."""
    try:
        until(lambda: (here.evaluate(), len(here.alerts()) >= len(expected))[1], 30)
        until(lambda: len(here.heard("alert.fired")) >= len(expected))
        until(lambda: len(here.people.posted) >= len(expected))
    except AssertionError as error:
        state = here.alerts(), here.request("GET", "/api/status"), here.request("GET", "/api/sinks")
        raise AssertionError(json.dumps(state)) from error
    alerts = here.alerts(status="firing")
    assert sorted(alert["rule"] for alert in alerts) == expected, json.dumps(alerts)
    assert sorted(alert["rule"] for alert in here.heard("alert.fired")) == expected
    return next(alert for alert in alerts if alert["rule"] == rule)


def is_recorded(here: Installation, expected: int) -> bool:
    """Whether the database knows who has heard of the alerts; else the next start would say it again."""
    sent = [
        notification
        for alert in here.alerts()
        for notification in here.request("GET", f"/api/alerts/{alert['id']}/notifications")
        if notification["state"] == "sent"
    ]
    ops = here.request("GET", "/api/sinks/ops")
    return len(sent) == expected and ops["oldestTime"] is None


def assert_heard_once(here: Installation, expected: list[str]) -> None:
    """The sink and people have heard once of each alert that it fires, and once that it is resolved."""
    until(lambda: len(here.heard("alert.resolved")) >= len(expected))
    until(lambda: len(here.people.posted) >= 2 * len(expected))
    for type_ in ("alert.fired", "alert.resolved"):
        assert sorted(alert["rule"] for alert in here.heard(type_)) == expected, json.dumps(here.heard(type_))
    titles = [posted.json["title"] for posted in here.people.posted]
    assert len(titles) == len(set(titles)) == 2 * len(expected), titles
