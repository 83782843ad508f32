"""Alerts, their rows, and servers that notifications are sent to, for tests."""

import ipaddress
import json
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self, cast

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from sqlalchemy import select

from receiver.alerts.notifier import Notifier
from receiver.alerts.targets import Targets, configure, make_context
from receiver.domain.alerts import Alert, AlertChange, AlertStatus, Evidence, Rule, RuleType, Severity, Transition
from receiver.domain.notifications import Notification
from receiver.models.alerts import NOTIFICATIONS, alert_read
from receiver.storage import alerts
from receiver.storage.database import Database
from tests.brokers.own import free_port
from tests.factories import EPOCH

BASE_URL = "https://receiver.example"
LOOPBACK = ["127.0.0.0/8"]


def make_rule(*to: str, **changes: Any) -> Rule:
    fields: dict[str, Any] = {
        "type": RuleType.SINK_DOWN,
        "name": "sink-down",
        "window": EPOCH - EPOCH,
        "above": 0,
        "to": to,
    }
    return Rule(**{**fields, **changes})


def make_alert(**changes: Any) -> Alert:
    fields: dict[str, Any] = {
        "id": "a-1",
        "rule": RuleType.FAILURE_RATE,
        "name": "t-mobile blocks",
        "severity": Severity.WARNING,
        "status": AlertStatus.FIRING,
        "group": "T-Mobile",
        "summary": "31 % of 120 deliveries failed within 15 minutes.",
        "evidence": Evidence(value=0.31, threshold=0.2, volume=120, before=0.02),
        "messages": ("m-1", "m-2"),
        "began_at": EPOCH,
        "fired_at": EPOCH,
        "updated_at": EPOCH,
    }
    return Alert(**{**fields, **changes})


def made(alert: Alert, transition: Transition = Transition.FIRED, **changes: Any) -> Notification:
    shown = alert_read(alert, BASE_URL)
    return Notification(alert=alert, transition=transition, link=shown.link, runbook=shown.runbook, **changes)


def targets(*to: str, **changes: Any) -> Targets:
    """The targets of one rule, which may connect to this machine."""
    return configured([make_rule(*to)], **changes)


def configured(
    rules: Iterable[Rule], *, sinks: Iterable[str] = (), default_to: tuple[str, ...] = (), **context: Any
) -> Targets:
    options: dict[str, Any] = {"base_url": BASE_URL, "egress_allow": _networks()}
    made = make_context(**{**options, **context})
    return configure(rules, sinks=tuple(sinks), context=made, default_to=default_to)


def _networks() -> list[Any]:
    return [ipaddress.ip_network(network) for network in LOOPBACK]


# --- rows ---


async def write(database: Database, change: AlertChange, configured: Targets, now: datetime) -> None:
    """Writes an alert and its notifications, as the evaluation does, in one transaction."""
    async with database.appending() as transaction:
        await alerts.write(
            transaction,
            [change],
            now=now,
            base_url=BASE_URL,
            sinks=configured.sinks_of,
            further=configured.further(now),
        )


async def fire(database: Database, configured: Targets, *, now: datetime | None = None, **changes: Any) -> Alert:
    alert = make_alert(to=configured.rules[0].to, **changes)
    change = AlertChange(transition=Transition.FIRED, alert=alert)
    await write(database, change, configured, now or datetime.now(UTC))
    return alert


async def resolve(database: Database, configured: Targets, alert: Alert, *, now: datetime | None = None) -> Alert:
    now = now or datetime.now(UTC)
    resolved = replace(alert, status=AlertStatus.RESOLVED, resolved_at=now)
    await write(database, AlertChange(transition=Transition.RESOLVED, alert=resolved), configured, now)
    return resolved


async def rows(database: Database) -> list[Any]:
    async with database.reading() as connection:
        return list((await connection.execute(select(NOTIFICATIONS).order_by(NOTIFICATIONS.c.id))).all())


async def states(database: Database) -> list[tuple[str, str]]:
    """The transition and the state of each notification."""
    return [(row.transition, row.state) for row in await rows(database)]


# --- the notifier ---


class Outcomes(list[str]):
    def notified(self, outcome: str) -> None:
        self.append(outcome)


class People:
    """People who are notified within `async with`: a notifier for their targets, by a clock that a test moves."""

    def __init__(self, database: Database, targets: Targets) -> None:
        self.now = EPOCH
        self.monotonic = 0.0
        self.outcomes = Outcomes()
        self._database, self._targets = database, targets
        self.notifier = Notifier(
            database,
            targets,
            clock=lambda: self.now,
            observer=self.outcomes,
            random_fraction=lambda: 0.0,
            monotonic=lambda: self.monotonic,
            poll_seconds=0.05,
        )

    async def __aenter__(self) -> Self:
        await self.notifier.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.notifier.stop()

    def advance(self, **span: float) -> None:
        self.now += timedelta(**span)

    async def fire(self, **changes: Any) -> Alert:
        return await fire(self._database, self._targets, now=self.now, **changes)

    async def resolve(self, alert: Alert) -> None:
        await resolve(self._database, self._targets, alert, now=self.now)


# --- servers ---


@dataclass(frozen=True, slots=True)
class Posted:
    """A request that a server got."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class HookServer:
    """An HTTP server that answers each POST with `status`, after `seconds`; `location` redirects."""

    status: int = 200
    seconds: float = 0.0
    location: str | None = None
    answer: bytes = b"ok"
    posted: list[Posted] = field(default_factory=list)
    port: int = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@contextmanager
def hook_server(**fields: Any) -> Iterator[HookServer]:
    state = HookServer(**fields)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            state.posted.append(Posted(self.path, headers, body))
            time.sleep(state.seconds)
            try:
                self.send_response(state.status)
                if state.location is not None:
                    self.send_header("location", state.location)
                self.send_header("content-length", str(len(state.answer)))
                self.end_headers()
                self.wfile.write(state.answer)
            except OSError:
                # The client did not wait for the answer.
                return

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Mailbox:
    """Takes mail that is neither from nor to an address that begins with `refused`."""

    def __init__(self) -> None:
        self.messages: list[EmailMessage] = []

    async def handle_MAIL(self, _server: Any, _session: Any, envelope: Any, address: str, options: list[str]) -> str:
        if address.startswith("refused"):
            return "550 5.7.1 canary is not a sender"
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 OK"

    async def handle_RCPT(self, _server: Any, _session: Any, envelope: Any, address: str, options: list[str]) -> str:
        if address.startswith("refused"):
            return "551 5.1.1 canary is not a recipient"
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(options)
        return "250 OK"

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:
        message = cast("EmailMessage", BytesParser(policy=default).parsebytes(envelope.content))
        if envelope.mail_from.startswith("spam"):
            return "554 5.7.1 canary is spam"
        self.messages.append(message)
        return "250 OK"


def _is_login(_server: Any, _session: Any, _envelope: Any, _mechanism: str, login: Any) -> AuthResult:
    return AuthResult(success=(login.login, login.password) == (b"sms", b"secret"), handled=False)


@contextmanager
def smtp_server(*, login: bool = False, **more: Any) -> Iterator[tuple[str, list[EmailMessage]]]:
    """The address of an SMTP server, and the messages that it got; `login`: from `sms` with the password `secret`."""
    mailbox = _Mailbox()
    more |= {"authenticator": _is_login, "auth_required": True, "auth_require_tls": False} if login else {}
    controller = Controller(mailbox, hostname="127.0.0.1", port=free_port(), ready_timeout=60, **more)
    controller.start()
    try:
        yield f"127.0.0.1:{controller.port}", mailbox.messages
    finally:
        controller.stop()
