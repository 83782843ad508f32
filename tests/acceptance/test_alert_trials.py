"""Rules of alerts on the real thing: a server, the sandbox that sends, sinks and a person who hear of the alerts.

A trial has all rules in force, and three weeks of history. It plays the troubles of some rules, one after the other,
until the alert of each has fired, kills all processes and starts them again, ends the troubles, and waits until all
alerts are resolved. Windows are short, but no limit of the settings is bent for it: `tests/shifted_clock` sets the
clock of the server ahead in steps, and SIGHUP begins the round of evaluation that would come half a minute later. A
step is as long as three rounds, so that no round counts as missed. The clock of the sandbox moves with it.
"""

import json
import os
import re
import signal
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from receiver import tags
from receiver.alerts.rules import configure
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

# Numbers are looked at for as long as all troubles of a trial are played: on a busy machine that takes minutes.
RULES: dict[str, dict[str, Any]] = {
    "failure-rate": {"window": "5m", "by": "applicationId"},
    "code-spike": {"window": "5m"},
    "slow-delivery": {"window": "1m", "longer_than": "1s"},
    "receipts-stopped": {"window": "10m"},
    "awaiting-receipt": {"window": "10m", "longer_than": "1m"},
    "contradictions": {"window": "5m", "above": 3},
    "forged-tags": {"window": "5m"},
    "quarantine": {"window": "5m"},
    "fallback-used": {"window": "5m"},
    "wrong-credentials": {"window": "5m"},
    "processor-behind": {"for": "0s"},
    "sink-down": {"for": "30s"},
    "sink-behind": {"for": "30s", "longer_than": "1m"},
    "dead-letters": {"window": "5m"},
    "storage": {"for": "0s", "above": 0.08},
}
WEEK = 7 * 24 * 3600
REGULAR = "app-regular"
"""The application that has history: it sends in every hour."""
REGULAR_HOURLY = 150


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
    erp: HookServer
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
        hook = {"type": "webhook", "egress_allow": ["127.0.0.0/8"], "concurrency": 2}
        ends = ["message.delivered", "message.failed"]
        sinks = [
            {**hook, "name": "ops", "url": f"http://{self.ops.address}/", "events": ["alert.fired", "alert.resolved"]},
            {**hook, "name": "crm", "url": f"http://{self.crm.address}/", "events": ends},
            {**hook, "name": "erp", "url": f"http://{self.erp.address}/", "events": ends},
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

    def set_clock(self, ahead: int) -> None:
        """Sets the clock so many seconds ahead of that of the machine."""
        self.ahead = ahead
        self._set_clock()

    def step(self) -> None:
        """Sets the clocks ahead, and evaluates; right before, too, or the step and the time since were too long."""
        self.evaluate()
        self.set_clock(self.ahead + STEP)
        self.sandbox.advance(STEP)
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
        self.send(8, tag=tag, applicationId=REGULAR)
        del self.sent[known:]
        self.settle()

    def regular_weeks(self) -> None:
        """Three weeks in which an application got receipts, at the hours of this trial and those beside them.

        Alerts were evaluated meanwhile.
        """
        self.evaluate()
        for week in (3, 2, 1):
            for hour in range(-3, 4):
                self.set_clock(hour * 3600 - week * WEEK)
                self._receipts(f"{week}-{hour}", REGULAR_HOURLY)
        self.set_clock(0)
        until(lambda: self.request("GET", "/api/status")["journal"]["pending"] == 0)
        self.evaluate()

    def _receipts(self, name: str, number: int) -> None:
        """Posts receipts as Bandwidth would at this time, several in a callback."""
        time = self.now().isoformat()
        message = {**v2_message(applicationId=REGULAR), "time": time, "direction": "out", "owner": "+19195551212"}
        events = [
            {
                "type": "message-sending",
                "time": time,
                "description": "Message is sending",
                "to": "+19195551213",
                "message": {**message, "id": f"history-{name}-{place}"},
            }
            for place in range(number)
        ]
        for place in range(0, number, 50):
            body, auth = events[place : place + 50], tuple(PAIR.split(":"))
            self.client.post(f"{self.callbacks}/v2", json=body, auth=auth).raise_for_status()

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
        hook_server() as erp,
    ):
        here = Installation(folder, database_url, port, sandbox, ops, people, crm, erp)
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
    `group` and `words` are those of the alert. It names messages that were sent: ten, or at least `names`.
    `is_measured`: its value is at least the threshold. A processor that is stuck is behind at once; the dispatcher of a
    sink takes a step of the clock for one that was set, and moves the beginning of an outage with it.
    """

    play: Callable[[Installation], AbstractContextManager[None]]
    steps: int = 0
    group: str | None = None
    words: str = ""
    also: tuple[str, ...] = ()
    names: int = 10
    is_measured: bool = True


def sending(number: int, *, to: str, **more: Any) -> Callable[[Installation], AbstractContextManager[None]]:
    """Sends messages that bring trouble."""

    @contextmanager
    def play(here: Installation) -> Iterator[None]:
        here.send(number, to=to, **more)
        here.sandbox.wait_until_idle(45)
        yield

    return play


@contextmanager
def another_sandbox(here: Installation, *, credentials: str = PAIR, url: str = "", **more: Any) -> Iterator[Sandbox]:
    """A sandbox that calls back in another way."""
    outbound = url or f"{here.callbacks}/v2"
    with running_sandbox(outbound_url=outbound, callback_credentials=credentials, **more) as sandbox:
        sandbox.advance(here.ahead)
        yield sandbox


@contextmanager
def slow_carrier(here: Installation) -> Iterator[None]:
    with another_sandbox(here, speed=0.5) as slow:
        here.send(25, sandbox=slow, applicationId="app-slow")
        slow.wait_until_idle(45)
        yield


@contextmanager
def wrong_callback_url(here: Installation) -> Iterator[None]:
    """An application sends on, but its callbacks lead nowhere; the sends are registered."""
    with another_sandbox(here, url=f"http://127.0.0.1:{free_port()}/") as mistaken:
        for _ in range(8):
            here.step()
            mistaken.advance(STEP)
            here.send(1, sandbox=mistaken, applicationId=REGULAR)
            mistaken.register_sends(here.url, API_TOKEN)
        yield


@contextmanager
def late_receipts(here: Installation) -> Iterator[None]:
    """Final receipts come hours late; the sends are registered, as v2 says nothing of a message before its receipt."""
    with another_sandbox(here, speed=1) as late:
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
    with another_sandbox(here, credentials=wrong, speed=1) as outdated:
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
def paused_sink(here: Installation) -> Iterator[None]:
    """Somebody pauses a sink, and forgets it."""
    here.request("POST", "/api/sinks/erp/pause")
    published = len(here.erp.posted)
    here.send(5)
    here.sandbox.wait_until_idle(45)
    yield
    assert len(here.erp.posted) == published
    here.request("POST", "/api/sinks/erp/resume")


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
    "code-spike": Trouble(sending(25, to="+15552024770"), words="ended with 4770"),
    "slow-delivery": Trouble(slow_carrier, words="took longer than 1 second"),
    "contradictions": Trouble(sending(5, to="+15552090007"), words="contradicted"),
    "forged-tags": Trouble(forged_tags, words="3 events had a forged tag"),
    "quarantine": Trouble(sending(8, to="+15552090008"), words="most of them as unknown-type"),
    "fallback-used": Trouble(primary_url_gone, words="came by a fallback route"),
    "wrong-credentials": Trouble(wrong_password, words="wrong credentials", names=0),
    "dead-letters": Trouble(
        crm_answers(422, until_=lambda sink: sink["deadLetters"] == {"refused": 12}),
        group="crm",
        words="12 new dead letters",
    ),
    "storage": Trouble(long_reader, words="write-ahead logs", names=0),
    # It fires before all eight are sent, and those of its window count.
    "receipts-stopped": Trouble(
        wrong_callback_url, group=REGULAR, words="at this hour of the weekday at least 25 do", names=3
    ),
    "awaiting-receipt": Trouble(late_receipts, words="wait longer than 1 minute", steps=1),
    "sink-behind": Trouble(paused_sink, group="erp", words="It is paused.", steps=2, names=0),
    "sink-down": Trouble(
        crm_answers(503, until_=lambda sink: sink["downSince"] is not None),
        group="crm",
        words="is down",
        steps=2,
        names=0,
        is_measured=False,
        also=("sink-behind",),
    ),
    "processor-behind": Trouble(broken_table, words="cannot be processed", names=0, is_measured=False),
}

AT_ONCE = list(TROUBLES)[:10]
WAITING = list(TROUBLES)[10:]


@pytest.mark.parametrize("rules", [AT_ONCE, WAITING], ids=["at-once", "waiting"])
def test_troubles_fire_their_rules_once_and_are_resolved(tmp_path: Path, database_url: str, rules: list[str]) -> None:
    # The space of a PostgreSQL server is not known here.
    play(tmp_path, database_url, [rule for rule in rules if rule != "storage" or database_url.startswith("sqlite")])


def play(tmp_path: Path, database_url: str, rules: Sequence[str]) -> None:
    """Plays the troubles of these rules until all their alerts are resolved."""
    expected: list[str] = []
    fired: dict[str, dict[str, Any]] = {}
    with installation(tmp_path, database_url) as here, ExitStack() as playing:
        here.set_clock(-3 * WEEK - 24 * 3600)
        here.start()
        here.regular_weeks()
        here.usual()
        # Rules that know silence and lateness say nothing until their window has been watched.
        here.step()
        assert here.alerts() == []

        for rule in rules:
            trouble, began = TROUBLES[rule], here.now()
            here.sent.clear()
            playing.enter_context(trouble.play(here))
            for _ in range(trouble.steps):
                here.step()
            expected = sorted((*expected, rule, *trouble.also))
            fired[rule] = fired_alert(here, rule, trouble, expected, began)

        # All processes are killed in the middle: nobody hears of it again.
        until(lambda: is_recorded(here, len(expected)))
        here.kill()
        here.start()
        here.evaluate()
        here.evaluate()
        assert sorted(alert["rule"] for alert in here.alerts(status="firing")) == expected

        playing.close()
        ended = here.now()
        while here.alerts(status="firing"):
            here.usual()
            here.step()
            assert here.now() - ended < timedelta(minutes=25), here.alerts(status="firing")
        assert_heard_once(here, expected)
        here.settle()
        here.step()
        assert_heard_once(here, expected)
        alerts = {alert["id"] for alert in here.alerts()}
        assert len(alerts) == len(expected)
        assert alerts >= {alert["id"] for alert in fired.values()}


def fired_alert(
    here: Installation, rule: str, trouble: Trouble, expected: list[str], began: datetime
) -> dict[str, Any]:
    """The alert of a rule, which has fired as it should, with the expected others; everybody has heard of it."""
    try:
        until(lambda: (here.evaluate(), len(here.alerts()) >= len(expected))[1], 30)
        until(lambda: len(here.heard("alert.fired")) >= len(expected))
        until(lambda: len(here.people.posted) >= len(expected))
    except AssertionError as error:
        state = here.alerts(), here.request("GET", "/api/status"), here.request("GET", "/api/sinks")
        raise AssertionError(rule, json.dumps(state)) from error
    alerts = here.alerts(status="firing")
    assert sorted(alert["rule"] for alert in alerts) == expected, json.dumps(alerts)
    assert sorted(alert["rule"] for alert in here.heard("alert.fired")) == expected
    [alert] = [one for one in alerts if (one["rule"], one["group"]) == (rule, trouble.group)]
    assert trouble.words in alert["summary"]
    [evidence] = [one["evidence"] for one in here.heard("alert.fired") if one["id"] == alert["id"]]
    assert evidence["value"] >= evidence["threshold"] or not trouble.is_measured
    named = set(alert["messages"])
    assert named <= set(here.sent), (rule, named, here.sent)
    assert len(named) >= min(len(here.sent), trouble.names)
    assert trouble.names or not named
    [table] = configure([{"rule": rule, **RULES[rule]}])
    window = table.window if "window" in RULES[rule] else timedelta(0)
    # Two steps and a minute: the rounds, and what the machine takes for the trouble.
    limit = window + table.holds_for + (table.longer_than or timedelta(0)) + timedelta(seconds=2 * STEP + 60)
    assert datetime.fromisoformat(alert["firedTime"]) - began < limit
    return alert


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
