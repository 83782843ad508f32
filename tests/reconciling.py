"""Reconciliation for tests: the sandbox's API behind a server that records the requests, and reconcilers for it."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from ipaddress import ip_network
from typing import Any
from urllib.parse import parse_qs

import httpx2
from pydantic import SecretStr
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from receiver.domain.events import REGISTERED, Api
from receiver.domain.reconciliation import ReconciliationPolicy
from receiver.intake.endpoint import new_callback_id
from receiver.metrics import WorkerMetrics
from receiver.reconciliation.reconciler import Reconciler
from receiver.reconciliation.settings import Account
from receiver.sandbox.app import application
from receiver.sandbox.settings import SandboxSettings
from receiver.storage import journal, reconciliation
from receiver.storage.database import Database
from receiver.storage.leases import Held
from receiver.storage.reconciliation import ReconcilerLease
from tests.factories import callback
from tests.processes import PATIENT
from tests.processing import append, drain, now
from tests.sandboxes import SECRET, TOKEN, USER, V1, V2, v1_message, v2_message
from tests.web import serving

LOOPBACK = (ip_network("127.0.0.0/8"),)
AFTER = timedelta(hours=3)
SILENT = "+15552090006"
MISSING = "+15552090005"


@dataclass
class Recorder:
    """Records the GET requests of an application by message id; `answers` come in place of its own.

    No answer comes before `answering` is set, which it is at first.
    """

    app: Any
    lookups: Counter[str] = field(default_factory=Counter)
    answers: list[Response] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    forbidden: set[str] = field(default_factory=set)
    answering: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.answering.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET" or "/messages" not in scope["path"]:
            await self.app(scope, receive, send)
            return
        [id_] = parse_qs(scope["query_string"].decode()).get("messageId", [scope["path"].rpartition("/")[2]])
        self.lookups[id_] += 1
        await self.answering.wait()
        answer = self.answers.pop(0) if self.answers else self._answer(id_)
        await answer(scope, receive, send)

    def _answer(self, id_: str) -> Any:
        if id_ in self.broken:
            return Response(status_code=500)
        return Response(status_code=403) if id_ in self.forbidden else self.app


@dataclass
class Bandwidth:
    """A sandbox that sends no callbacks, and the look-ups there."""

    url: str
    recorder: Recorder
    client: httpx2.AsyncClient

    async def send(self, api: Api, *recipients: str) -> list[str]:
        """Sends a message to each of these; returns their ids."""
        return [await self._send(api, to) for to in recipients]

    async def _send(self, api: Api, to: str) -> str:
        if api is Api.V2:
            answer = await self.client.post(V2, json=v2_message(to=to))
            id_: str = answer.json()["id"]
            return id_
        answer = await self.client.post(V1, json=v1_message(to=to, receiptRequested="all"))
        return answer.headers["Location"].rpartition("/")[2]

    def account(self, api: Api, password: str = SECRET) -> Account:
        path = "/v1" if api is Api.V1 else "/api/v2"
        return Account(api=api, id=USER, credentials=SecretStr(f"{TOKEN}:{password}"), url=self.url + path)


@asynccontextmanager
async def bandwidth(**settings: Any) -> AsyncIterator[Bandwidth]:
    defaults = {"speed": 100_000, "messages_per_second": 0, "credentials": [f"{TOKEN}:{SECRET}"]}
    recorder = Recorder(application(SandboxSettings(**{**defaults, **settings})))
    async with (
        serving(recorder) as url,
        httpx2.AsyncClient(base_url=url, auth=(TOKEN, SECRET), **PATIENT) as client,
    ):
        yield Bandwidth(url, recorder, client)


async def register(database: Database, api: Api, *ids: str, age: timedelta = AFTER * 2, to: str = SILENT) -> None:
    """Registers sends that are this old, and processes that."""
    time = (now() - age).isoformat()
    more = {"receiptRequested": "all"} if api is Api.V1 else {}
    sends = [{"api": api, "id": id_, "to": [to], "time": time, **more} for id_ in ids]
    # Received now: the pruner of a process would remove the events of an old one.
    entry = callback(sends, id=new_callback_id(now()), received_at=now(), api=api, route=REGISTERED)
    await append(database, entry)
    await drain(database)


@dataclass
class Clock:
    """The clock of a reconciler, which a test moves."""

    ahead: timedelta = timedelta(0)

    def __call__(self) -> datetime:
        return now() + self.ahead

    def advance(self, **span: float) -> None:
        self.ahead += timedelta(**span)


@dataclass
class Stepped:
    """A reconciler and its lease: `step` looks up the next messages."""

    reconciler: Reconciler
    held: Held[ReconcilerLease]
    metrics: WorkerMetrics

    async def step(self) -> float:
        return await self.reconciler.step(self.held)

    async def drain(self) -> None:
        """Steps until nothing is due."""
        while not await self.step():
            pass


def policy(**more: Any) -> ReconciliationPolicy:
    values = {"after": AFTER, "give_up_after": AFTER * 24, "per_second": 1000.0, "per_day": 1000, **more}
    return ReconciliationPolicy(**values)


@asynccontextmanager
async def reconciler(
    database: Database, account: Account, *, clock: Any = now, metrics: WorkerMetrics | None = None, **more: Any
) -> AsyncIterator[Reconciler]:
    """A reconciler that is not started; keywords that a policy has go to the policy."""
    limits = {name: more.pop(name) for name in ("after", "give_up_after", "per_second", "per_day") if name in more}
    writer = journal.journal_writer(database)
    made = Reconciler(
        database,
        account,
        policy(**limits),
        **{
            "writer": writer,
            "observer": metrics or WorkerMetrics(),
            "clock": clock,
            "random_fraction": lambda: 0.0,
            "allowed": LOOPBACK,
            "poll_seconds": 0.05,
            **more,
        },
    )
    try:
        yield made
    finally:
        await made.stop()
        await writer.close()


@asynccontextmanager
async def stepping(database: Database, account: Account, **more: Any) -> AsyncIterator[Stepped]:
    """A reconciler with the lease of its API, for single steps."""
    metrics = more.setdefault("metrics", WorkerMetrics())
    until = time.monotonic() + 60
    lease = await reconciliation.acquire(database, account.api, holder="test", seconds=60)
    assert lease is not None
    async with reconciler(database, account, **more) as made:
        made.begin(lease)
        yield Stepped(made, Held(lease, until), metrics)
