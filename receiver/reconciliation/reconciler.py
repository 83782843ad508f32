"""The loop that looks up, at one API, the messages of which nothing final was heard.

One worker at a time queries an API: its lease is in the database, as that of the processor. It makes one request at a
time. An answer with a final status is appended to the journal, and the processor does the rest.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, Protocol

import structlog

from receiver import failpoints
from receiver.domain.events import RECONCILED, Api, Callback
from receiver.domain.reconciliation import Answer, ApiHealth, ReconciliationPolicy, next_day
from receiver.errors import StorageUnavailable
from receiver.intake.endpoint import new_callback_id
from receiver.providers import PROVIDERS
from receiver.providers.bandwidth_lookups import query_of
from receiver.providers.base import Lookup
from receiver.reconciliation.client import Client, NoAnswer, Response
from receiver.reconciliation.settings import Account
from receiver.reconciliation.settings import Reconciliation as Settings
from receiver.sinks.egress import Network
from receiver.storage import reconciliation
from receiver.storage.database import Database
from receiver.storage.journal import JournalWriter, journal_writer
from receiver.storage.leases import Held, Leasing
from receiver.storage.reconciliation import Claimed, Outcome, ReconcilerLease, ReconcilerLeaseLost
from receiver.storage.status import read_backlog
from receiver.waiting import wait_for

LEASE_SECONDS: Final = 30.0
POLL_SECONDS: Final = 5.0
# While older callbacks wait to be processed, a message may have its final event without our seeing it.
_BEHIND_SECONDS: Final = 10.0
_LOG_EVERY_SECONDS: Final = 60.0
_FORGET_EVERY_SECONDS: Final = 600.0
_SETTINGS: Final = {Api.V1: "V1_CREDENTIALS", Api.V2: "V2_CREDENTIALS"}
_HEADERS: Final = {"content-type": "application/json"}

log = structlog.get_logger("receiver.reconciliation")


class ReconciliationObserver(Protocol):
    """Receives the measurements of reconciliation."""

    def message_looked_up(self, api: str, answer: str) -> None: ...

    def reconciliation_paused(self, api: str, is_paused: bool) -> None: ...


class Reconciliation:
    """The reconcilers of all accounts in the settings, with one writer of the journal."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        *,
        observer: ReconciliationObserver,
        clock: Callable[[], datetime],
        random_fraction: Callable[[], float],
        on_append: Callable[[], None],
        holder: str | None = None,
    ) -> None:
        self._writer = journal_writer(database)
        self._reconcilers = [
            Reconciler(
                database,
                account,
                settings.policy,
                writer=self._writer,
                observer=observer,
                clock=clock,
                random_fraction=random_fraction,
                on_append=on_append,
                allowed=settings.egress_allow,
                holder=holder,
            )
            for account in settings.accounts.values()
        ]

    async def start(self) -> None:
        for reconciler in self._reconcilers:
            await reconciler.start()

    async def stop(self) -> None:
        await asyncio.gather(*(reconciler.stop() for reconciler in self._reconcilers))
        await self._writer.close()


class Reconciler:
    """Queries the API of one account while this worker holds its lease."""

    def __init__(
        self,
        database: Database,
        account: Account,
        policy: ReconciliationPolicy,
        *,
        writer: JournalWriter,
        observer: ReconciliationObserver,
        clock: Callable[[], datetime],
        random_fraction: Callable[[], float],
        on_append: Callable[[], None] = lambda: None,
        allowed: Collection[Network] = (),
        holder: str | None = None,
        lease_seconds: float = LEASE_SECONDS,
        poll_seconds: float = POLL_SECONDS,
        request_seconds: float = 10.0,
    ) -> None:
        lookup = PROVIDERS[account.api].lookup
        assert lookup is not None, f"messages of {account.api} cannot be looked up"  # noqa: S101
        self._lookup: Lookup = lookup
        self._database = database
        self._account = account
        self._policy = policy
        self._writer = writer
        self._observer = observer
        self._clock = clock
        self._random_fraction = random_fraction
        self._on_append = on_append
        self._claim_seconds = policy.claim_seconds(request_seconds)
        self._client = Client(account, allowed, seconds=request_seconds)
        self._leasing = Leasing(
            database,
            reconciliation.acquire,
            reconciliation.renew,
            reconciliation.release,
            seconds=lease_seconds,
            holder=holder,
            take_over=False,
        )
        self._poll_seconds = poll_seconds
        self._health = ApiHealth()
        self._is_first_lease = True
        self._is_exhausted = False
        self._began_at = float("-inf")
        self._forgot_at = time.monotonic()
        self._answers: Counter[str] = Counter()
        self._logged_at = time.monotonic()
        self._failed_at = float("-inf")
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Ends a running request, records the answers, and releases the lease."""
        self._stopping.set()
        if self._task is not None:
            await self._task
        await self._client.close()

    # --- the lease ---

    async def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                async with self._leasing.hold(api=self._account.api) as held:
                    if held is not None:
                        await self._work(held)
            except ReconcilerLeaseLost as error:
                log.warning("reconciliation lease lost", api=self._account.api, error=str(error))
            except Exception as error:
                if time.monotonic() - self._failed_at >= _LOG_EVERY_SECONDS:
                    self._failed_at = time.monotonic()
                    named = str(error) if isinstance(error, StorageUnavailable) else repr(error)
                    log.error("reconciliation cannot work", api=self._account.api, error=named)
            await wait_for(self._stopping, self._poll_seconds)
        self._log_answers()

    async def _work(self, held: Held[ReconcilerLease]) -> None:
        """Claims messages and looks them up while this worker holds the lease."""
        self.begin(held.lease)
        log.info("reconciliation has begun", api=self._account.api, url=self._account.url)
        while not self._stopping.is_set():
            held.check()
            await wait_for(self._stopping, await self.step(held))

    def begin(self, lease: ReconcilerLease) -> None:
        """Takes over the health of the API that the previous holder of the lease has recorded."""
        self._health = lease.health
        if self._is_first_lease and self._health.answer is Answer.REFUSED:
            # The start of a process is when somebody corrects credentials.
            self._health = replace(self._health, until=None)
        self._is_first_lease = False

    # --- steps ---

    async def step(self, held: Held[ReconcilerLease]) -> float:
        """Looks up the next messages; returns the seconds until the next step.

        Raises ReconcilerLeaseLost, or StorageUnavailable.
        """
        self._log_answers_now_and_then()
        now = self._clock()
        if self._health.is_paused(now) or await self._is_behind(now):
            return self._poll_seconds
        await self._forget_now_and_then(held.lease, now)
        claim = await reconciliation.claim(
            self._database,
            held.lease,
            self._policy,
            now=now,
            limit=self._policy.claim_size,
            seconds=self._claim_seconds,
        )
        self._set_exhausted(claim.is_exhausted, now)
        if not claim.messages:
            return self._poll_seconds
        failpoints.reach("claimed")
        await self._look_up_all(held, claim.messages)
        return 0.0

    async def _is_behind(self, now: datetime) -> bool:
        backlog = await read_backlog(self._database)
        return backlog.oldest_seconds(now) > _BEHIND_SECONDS

    async def _look_up_all(self, held: Held[ReconcilerLease], claimed: Sequence[Claimed]) -> None:
        """Looks up claimed messages until an answer pauses the API."""
        outcomes: list[Outcome] = []
        for one in claimed:
            if self._health.is_paused(self._clock()) or not await self._turn(held):
                outcomes.append(Outcome(claimed=one, due_at=None, was_sent=False))
                continue
            answer = await self._look_up(one.message_id)
            due_at = self._policy.due_at(self._clock(), one.tries + 1, answer) if answer is not None else None
            outcomes.append(Outcome(claimed=one, due_at=due_at, was_sent=answer is not Answer.UNREACHABLE))
        failpoints.reach("looked_up")
        await reconciliation.record(self._database, held.lease, outcomes, self._health, now=self._clock())
        if not held.is_held:
            raise ReconcilerLeaseLost(f"the lease of the API {held.lease.api} has lapsed")

    async def _turn(self, held: Held[ReconcilerLease]) -> bool:
        """Waits until the rate allows another request; False if there is to be none: `stop`, or a lost lease."""
        if held.is_held:
            await wait_for(self._stopping, self._began_at + self._policy.gap - time.monotonic())
        if self._stopping.is_set() or not held.is_held:
            return False
        self._began_at = time.monotonic()
        return True

    async def _look_up(self, message_id: str) -> Answer | None:
        """Looks up one message; None if `stop` ended the request.

        An answer with a final status is in the journal when this returns.
        """
        answer, error, response = Answer.UNREACHABLE, None, None
        try:
            response = await self._unless_stopped(self._client.get(self._lookup.target(self._account.id, message_id)))
        except NoAnswer as failure:
            error = str(failure)
            answer = Answer.UNREACHABLE if failure.is_unreachable else Answer.FAILED
        else:
            if response is None:
                return None
            entry = self._entry(message_id, response)
            answer = self._lookup.answer(response.status, entry)
            error = f"status {response.status}" if response.status != 200 else "the answer cannot be read"
            if answer is Answer.FINAL:
                failpoints.reach("answered")
                await self._writer.append([entry])
                self._on_append()
        self._note(message_id, answer, error, response)
        return answer

    async def _unless_stopped(self, getting: Coroutine[Any, Any, Response]) -> Response | None:
        """The answer to a request; None if `stop` comes first."""
        request, stopping = asyncio.create_task(getting), asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({request, stopping}, return_when=asyncio.FIRST_COMPLETED)
            return request.result() if request.done() else None
        finally:
            for task in (request, stopping):
                task.cancel()
            await asyncio.gather(request, stopping, return_exceptions=True)

    def _entry(self, message_id: str, response: Response) -> Callback:
        now = self._clock()
        return Callback(
            id=new_callback_id(now),
            received_at=now,
            api=self._account.api,
            route=RECONCILED,
            method="GET",
            query=query_of(message_id),
            headers=_HEADERS,
            body=response.body,
        )

    async def _forget_now_and_then(self, lease: ReconcilerLease, now: datetime) -> None:
        if time.monotonic() - self._forgot_at >= _FORGET_EVERY_SECONDS:
            self._forgot_at = time.monotonic()
            oldest, _ = self._policy.ages(now)
            await reconciliation.forget(self._database, lease, before=oldest)

    # --- reports ---

    def _note(self, message_id: str, answer: Answer, error: str | None, response: Response | None) -> None:
        """Counts an answer, and reports when the API begins or ends to be paused."""
        now, before = self._clock(), self._health
        self._answers[answer] += 1
        self._observer.message_looked_up(self._account.api, answer)
        after = self._health = before.after(
            answer,
            error,
            now,
            message_id=message_id,
            retry_after=response.retry_after if response is not None else None,
            fraction=self._random_fraction(),
        )
        self._observer.reconciliation_paused(self._account.api, after.failures > 0)
        api = self._account.api
        if not after.failures:
            if before.failures:
                log.info("reconciliation goes on", api=api, failures=before.failures)
            return
        seconds = round((after.until - now).total_seconds()) if after.until is not None else 0
        if after.answer is Answer.REFUSED:
            log.error(
                "reconciliation is refused: Bandwidth does not accept the credentials",
                api=api,
                error=error,
                setting=f"RECEIVER_RECONCILIATION__{_SETTINGS[api]}",
                next_try_seconds=seconds,
            )
        else:
            log.warning("reconciliation is paused", api=api, error=error, seconds=seconds, failures=after.failures)

    def _set_exhausted(self, is_exhausted: bool, now: datetime) -> None:
        if is_exhausted and not self._is_exhausted:
            seconds = round((next_day(now) - now).total_seconds())
            log.warning(
                "the budget of reconciliation is used up",
                api=self._account.api,
                requests_per_day=self._policy.per_day,
                next_day_seconds=seconds,
            )
        self._is_exhausted = is_exhausted

    def _log_answers_now_and_then(self) -> None:
        if time.monotonic() - self._logged_at >= _LOG_EVERY_SECONDS:
            self._log_answers()

    def _log_answers(self) -> None:
        self._logged_at = time.monotonic()
        if self._answers:
            log.info("messages without a final event were looked up", api=self._account.api, **self._answers)
            self._answers.clear()
