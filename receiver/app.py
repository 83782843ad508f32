"""The web process: settings in, an ASGI application out whose lifespan starts the journal and the worker."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, replace
from datetime import datetime
from typing import Final

import structlog
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from receiver import credentials, metrics
from receiver.api import problems, routes
from receiver.api.auth import TokenAuth, Tokens
from receiver.api.health import Health
from receiver.api.operations import Api
from receiver.domain.installation import Findings, WorkerRecord
from receiver.intake.endpoint import Admission, CallbackEndpoints, Credentials
from receiver.intake.journal import Journal
from receiver.intake.reprocessing import Reprocessing
from receiver.metrics import WebMetrics
from receiver.settings import Settings, load
from receiver.storage import journal, schema, sqlite_file
from receiver.storage.database import Database, is_sqlite, weaknesses
from receiver.storage.processor import Settling
from receiver.storage.status import StatusReader
from receiver.supervisor import WorkerView, supervisor
from receiver.worker import configured_sinks, now, tag_checker, tag_keys

RELOADED: Final = (
    "callback_credentials",
    "callback_networks",
    "api_tokens",
    "tag_keys",
    "tag_policy",
    "max_body_bytes",
    "sinks",
)
"""The settings that a running receiver takes over; the others wait for a restart."""

# A scrape must not wait for a database that does not answer.
_BACKLOG_SECONDS: Final = 1.0

log = structlog.get_logger("receiver.app")


def create_app(settings: Settings | None = None) -> Starlette:
    """The application. Without settings it reads them as `receiver serve` does: environment, file, secrets.

    Its lifespan must run: uvicorn does that, and an application that mounts it has to (README, "Inside your own
    application"). The worker then runs in a thread, unless `RECEIVER_WORKER` says otherwise.
    """
    given = settings or load()
    if is_sqlite(given.database) and given.database_url is None:
        credentials.make_data_dir(given)
    secured = credentials.secure(given).settings
    if "worker" not in given.model_fields_set:
        secured = secured.model_copy(update={"worker": "inline"})
    return Receiver(secured).app


class _Application(Starlette):
    """Callback routes, and behind them an application with everything else, which handles its own errors.

    Callback routes answer every error themselves. Starlette's error handling, two layers that each wrap `send`, took a
    seventh of a callback's CPU time.
    """

    def build_middleware_stack(self) -> ASGIApp:
        app: ASGIApp = self.router
        for middleware, arguments, options in reversed(self.user_middleware):
            app = middleware(app, *arguments, **options)
        return app


class Receiver:
    """Everything the web process runs, joined."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        # Before anything is opened: a wrong setting is an error of the start.
        configured_sinks(settings)
        self.database = Database(settings.database)
        self.metrics = WebMetrics()
        self.worker = supervisor(settings)
        self._status = StatusReader(self.database)
        self._settling = Settling(self.database)
        self.journal = Journal(journal.journal_writer(self.database), observer=self.metrics, on_append=self.worker.wake)
        self._endpoints = CallbackEndpoints(
            self.journal, admission=_admission(settings), observer=self.metrics, clock=now
        )
        self._beside = Starlette(routes=self._routes(), exception_handlers=problems.APPLICATION_HANDLERS)
        self._beside.router.redirect_slashes = False
        self.app = _Application(
            routes=[*self._endpoints.routes(), Mount("", self._beside)],
            lifespan=self._lifespan,
            middleware=_middleware(settings),
        )
        self.app.router.redirect_slashes = False
        self.app.state.receiver = self

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Opens the database and runs journal and worker; at the end finishes what was accepted."""
        async with AsyncExitStack() as stack:
            if is_sqlite(self.settings.database):
                file = sqlite_file.prepare(self.settings.database)
                stack.enter_context(sqlite_file.held(file))
                sqlite_file.refuse_unfit(file)
            stack.push_async_callback(self.database.close)
            await prepare_database(self.database)
            await self.journal.start()
            stack.push_async_callback(self.journal.stop)
            await self.worker.start()
            stack.push_async_callback(self.worker.stop)
            yield

    async def reload(self, settings: Settings) -> None:
        """Takes over what may change while it runs; raises ReceiverError, and changes nothing here, if that is wrong.

        Requests under way are answered by what held when they came.
        """
        changed = self.settings.model_copy(update={name: getattr(settings, name) for name in RELOADED})
        configured_sinks(changed)
        tag_checker(changed)
        admission = _admission(changed)
        await self.worker.reload(changed)
        self.settings = changed
        self._endpoints.admission = admission
        self._beside.router.routes[:] = self._routes()

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        async with self.running():
            yield

    def _routes(self) -> list[BaseRoute]:
        """The routes beside the callbacks."""
        tokens = Tokens(token.get_secret_value() for token in self.settings.api_tokens)
        guard = [Middleware(TokenAuth, tokens=tokens)] if self.settings.metrics_auth == "token" else []
        return [
            *Health(self.journal.probe).routes(),
            Route("/metrics", self._metrics, middleware=guard),
            *routes.routes(self._api(tokens if self.settings.api_auth == "token" else None)),
        ]

    def _api(self, tokens: Tokens | None) -> Api:
        return Api(
            database=self.database,
            reprocess=self._reprocess,
            tokens=tokens,
            tag_key=next(iter(tag_keys(self.settings).items()), None),
            public_url=self.settings.public_url,
            clock=now,
            sinks={table["name"]: table for table in self.settings.sinks},
            settle=self._settling.wait,
            findings=self._findings,
        )

    async def _findings(self) -> Findings:
        """How this installation is doing, by its database and by what this process knows."""
        types = {table["name"]: str(table.get("type")) for table in self.settings.sinks}
        found = await self._status.findings(types, clock=now)
        return replace(found, worker=_worker_record(self.worker.view()), waiting=self.journal.waiting)

    async def _reprocess(self, ids: Sequence[str]) -> object:
        return await Reprocessing(
            database=self.database,
            checker=tag_checker(self.settings),
            conflict=self.settings.final_conflict,
            clock=now,
        ).ids(ids)

    async def _metrics(self, _: Request) -> Response:
        backlog = await self._status.backlog(seconds=_BACKLOG_SECONDS)
        if backlog is not None:
            self.metrics.backlog_measured(backlog.pending, backlog.oldest_seconds(now()))
        self.metrics.worker_seen(self.worker.view().state == "running")
        page = self.metrics.exposition() + self.worker.metrics()
        return Response(page, media_type=metrics.CONTENT_TYPE)


async def prepare_database(database: Database) -> None:
    """Brings an embedded database up to date; a PostgreSQL must be so already, for others may be using it."""
    await (schema.migrate(database) if database.is_sqlite else schema.check(database))
    for weakness in await weaknesses(database):
        log.warning(weakness)


def _worker_record(view: WorkerView) -> WorkerRecord:
    """What the supervisor knows of the worker. A report crosses a socket, so its time is text."""
    known = asdict(view)
    since = known.pop("failing_since")
    return WorkerRecord(**known, failing_since_at=datetime.fromisoformat(since) if since else None)


def _admission(settings: Settings) -> Admission:
    pairs = [credential.get_secret_value() for credential in settings.callback_credentials]
    return Admission(
        credentials=Credentials(pairs) if settings.callback_auth == "basic" else None,
        networks=settings.callback_networks,
        max_body_bytes=settings.max_body_bytes,
    )


def _middleware(settings: Settings) -> list[Middleware]:
    """The proxies that are trusted to name the caller's address."""
    if not settings.trusted_proxies:
        return []
    trusted = [str(network) for network in settings.trusted_proxies]
    return [Middleware(ProxyHeadersMiddleware, trusted_hosts=trusted)]
