"""The web process: an ASGI application whose lifespan starts the journal and the worker."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Final

import structlog
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from receiver import credentials, exposition, logs
from receiver.alerts.targets import Targets
from receiver.api import problems, routes
from receiver.api.auth import Tokens, token_guard
from receiver.api.health import Health
from receiver.api.operations import ApiContext
from receiver.api.streams import Streams
from receiver.clock import now
from receiver.explanation.installation import Findings, disk_problems
from receiver.intake.endpoint import REASONS, Admission, CallbackEndpoints, Credentials, UnknownPaths
from receiver.intake.journal import Journal
from receiver.intake.refusals import Refusals
from receiver.intake.request_ids import RequestIds
from receiver.intake.server import Closed
from receiver.intake.transfer import Reprocessing
from receiver.metrics import WebMetrics
from receiver.monitoring import Monitor
from receiver.pages.site import Site, SiteState
from receiver.pages.visit import SiteSettings
from receiver.providers.registry import URLS
from receiver.settings import Settings, load
from receiver.settings_sources import PREFIX
from receiver.storage import journal, refusals, schema, sqlite_file
from receiver.storage.database import Database, is_sqlite, weaknesses
from receiver.storage.processor import Settling
from receiver.storage.status import StatusReader
from receiver.supervisor import supervisor
from receiver.tracing.recorder import configured_tracing, refuse_other_process
from receiver.worker import configured_rules, configured_sinks, configured_targets, tag_checker, tag_keys

RELOADED: Final = (
    "callback_credentials",
    "callback_keys",
    "callback_networks",
    "api_tokens",
    "tag_keys",
    "tag_policy",
    "max_body_bytes",
    "sinks",
    "alerts",
    "alerts_every",
    "alert_to",
    "alert_title",
    "alert_body",
    "alert_egress_allow",
)
"""The settings that a running receiver applies on SIGHUP; the others need a restart."""

# A scrape must not wait for a database that does not answer.
_SCRAPE_SECONDS: Final = 1.0
_STORAGE_LOG_SECONDS: Final = 3600.0
_WORKER_START_SECONDS: Final = 5.0

log = structlog.get_logger("receiver.app")


def create_app(settings: Settings | None = None) -> Starlette:
    """Makes the application. Without settings it reads them as `receiver serve` does: environment, file, secrets.

    Its lifespan must run: uvicorn runs it, and an application that mounts this one has to run it (see `receiver help
    mounting`). The worker runs in a thread, unless the setting `worker` is set.
    """
    logs.use_logging()
    given = settings or load()
    # Before any file is made.
    configured_sinks(given)
    configured_rules(given)
    if is_sqlite(given.database) and given.database_url is None:
        credentials.make_data_dir(given)
    secured = credentials.secure(given).settings
    if "worker" not in given.model_fields_set:
        secured = secured.model_copy(update={"worker": "inline"})
    return Receiver(secured, in_application=True).app


class _Application(Starlette):
    """The callback routes, and an application with all other routes and an error handling of its own.

    Callback routes answer every error themselves. Starlette's error handling consists of two layers that each wrap
    `send`, and took a seventh of the CPU time of a callback.
    """

    def build_middleware_stack(self) -> ASGIApp:
        app: ASGIApp = self.router
        for middleware, arguments, options in reversed(self.user_middleware):
            app = middleware(app, *arguments, **options)
        return app


class Receiver:
    """Everything that the web process runs; `in_application`: within somebody's application."""

    def __init__(self, settings: Settings, *, in_application: bool = False) -> None:
        self.settings = settings
        # Before anything is opened, so that a wrong table of a sink or a rule prevents the start.
        configured_sinks(settings)
        refuse_other_process(settings.tracing, settings.worker)
        targets = configured_targets(settings)
        self.database = Database(settings.database)
        routes = [(provider.api, url.route) for provider, url in URLS]
        self.metrics = WebMetrics(reasons=REASONS, closed=Closed, routes=routes)
        self._monitor = Monitor(
            self.metrics,
            message="callbacks came in",
            totals=lambda: self.metrics.totals,
            check=self._check_storage,
        )
        self._storage = logs.Sampled(log, "the database needs room", seconds=_STORAGE_LOG_SECONDS)
        self.worker = supervisor(settings, in_application=in_application)
        self._status = StatusReader(self.database)
        self._settling = Settling(self.database)
        self._streams = Streams()
        self._site = SiteState()
        self.journal = Journal(journal.journal_writer(self.database), observer=self.metrics, on_append=self.worker.wake)
        self._tracing = configured_tracing(settings.tracing)
        self._refusals = Refusals(self.metrics, partial(refusals.add, self.database), clock=now)
        self._endpoints = CallbackEndpoints(
            self._tracing.journal(self.journal) if self._tracing is not None else self.journal,
            admission=_admission(settings),
            observer=self._refusals,
            clock=now,
            id_header=settings.request_id_header,
        )
        self._pages, other_routes = self._surface(settings, targets)
        handlers = {**problems.APPLICATION_HANDLERS, **problems.handlers(self._problem)}
        self._other = Starlette(routes=other_routes, exception_handlers=handlers)
        self._other.router.redirect_slashes = False
        others = RequestIds(UnknownPaths(self._other, self._refusals), settings.request_id_header)
        self.app = _Application(
            routes=[*self._endpoints.routes(), Mount("", others)],
            lifespan=self._lifespan,
            middleware=_middleware(settings),
        )
        self.app.router.redirect_slashes = False
        # A path with a line feed matches no route, not even that of everything.
        self.app.router.default = others
        self.app.state.receiver = self

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Opens the database and runs journal and worker. At the end all accepted callbacks are committed."""
        async with AsyncExitStack() as stack:
            if is_sqlite(self.settings.database):
                file = sqlite_file.prepare(self.settings.database)
                stack.enter_context(sqlite_file.held(file))
                sqlite_file.refuse_unfit(file)
                sqlite_file.close(file)
            stack.push_async_callback(self.database.close)
            stack.push_async_callback(self._site.shared.close)
            if self._tracing is not None:
                self._tracing.start()
                stack.push_async_callback(self._tracing.stop)
            await prepare_database(self.database)
            await self.journal.start()
            stack.push_async_callback(self.journal.stop)
            await self.worker.start()
            stack.push_async_callback(self.worker.stop)
            await self._monitor.start()
            stack.push_async_callback(self._monitor.stop)
            await self._refusals.start()
            stack.push_async_callback(self._refusals.stop)
            log_open_doors(self.settings, *_OPEN_DOORS)
            yield

    async def reload(self, settings: Settings) -> None:
        """Applies the settings in RELOADED; raises ReceiverError, and changes nothing, if one of them is wrong.

        Requests that have begun use the settings of their start.
        """
        # Every step that may fail comes before the first that changes something. The worker does the same.
        changed = self.settings.model_copy(update={name: getattr(settings, name) for name in RELOADED})
        configured_sinks(changed)
        tag_checker(changed)
        admission = _admission(changed)
        # In a thread: the first target of Apprise loads all its plug-ins for a second, and callbacks are answered here.
        targets = await asyncio.to_thread(configured_targets, changed)
        pages, new_routes = self._surface(changed, targets)
        await self.worker.reload(changed)
        self.settings = changed
        self._endpoints.admission = admission
        self._pages, self._other.router.routes[:] = pages, new_routes
        tokens = _tokens(changed) if changed.api_auth == "token" else None
        self._streams.revoke(lambda digest: tokens is None or (digest is not None and tokens.has(digest)))

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        async with self.running():
            yield

    def _surface(self, settings: Settings, targets: Targets) -> tuple[Site, list[BaseRoute]]:
        """The pages, and all routes but the callback routes."""
        tokens = _tokens(settings)
        guard = [token_guard(tokens)] if settings.metrics_auth == "token" else []
        context = self._api(settings, targets, tokens if settings.api_auth == "token" else None)
        pages = Site(context, self._site, _site_settings(settings))
        return pages, [
            *Health(self.journal.probe).routes(),
            Route("/metrics", self._metrics, middleware=guard),
            *pages.routes(),
            *routes.routes(context),
        ]

    async def _problem(self, request: Request, error: Exception) -> Response:
        return await self._pages.problem(request, error)

    def _api(self, settings: Settings, targets: Targets, tokens: Tokens | None) -> ApiContext:
        return ApiContext(
            database=self.database,
            reprocess=self._reprocess,
            tokens=tokens,
            tag_key=next(iter(tag_keys(settings).items()), None),
            public_url=settings.public_url,
            base_url=settings.base_url,
            targets=targets,
            source=settings.source,
            country_code=settings.country_code,
            clock=now,
            sinks={table["name"]: table for table in settings.sinks},
            append=self.journal.append,
            settle=self._settle,
            findings=self._findings,
            streams=self._streams,
        )

    async def _settle(self, seconds: float | None) -> int:
        # The first callbacks often come before the worker has started, and those who sent them look for them at once.
        return await self._settling.wait(_WORKER_START_SECONDS if self.worker.is_starting else seconds)

    async def _findings(self) -> Findings:
        """The state of this installation, from its database and from this process."""
        types = {table["name"]: str(table.get("type")) for table in self.settings.sinks}
        found = await self._status.findings(types, clock=now)
        return replace(found, worker=self.worker.view(), waiting=self.journal.waiting)

    async def _reprocess(self, ids: Sequence[str]) -> object:
        return await Reprocessing(
            database=self.database,
            checker=tag_checker(self.settings),
            conflict=self.settings.final_conflict,
            clock=now,
        ).ids(ids)

    async def _check_storage(self) -> None:
        """Logs what `receiver status` says of disk and write-ahead logs: not everybody looks there."""
        found = await self._status.measured(seconds=_SCRAPE_SECONDS)
        if problems := list(disk_problems(found.database)):
            self._storage.add(problem=" ".join(problems))

    async def _metrics(self, request: Request) -> Response:
        found = await self._status.measured(seconds=_SCRAPE_SECONDS)
        if found.backlog is not None:
            self.metrics.backlog_measured(found.backlog.pending, found.backlog.oldest_seconds(now()))
        if found.database is not None:
            self.metrics.database_measured(found.database)
        for name, moment in found.last_callbacks.items():
            api, route = name.split("/", 1)
            self.metrics.last_callback(api, route, moment.timestamp())
        self.metrics.worker_seen(self.worker.view().state == "running")
        self.metrics.log_lines_dropped(logs.dropped())
        self.metrics.event_streams(len(self._streams))
        if self._tracing is not None:
            self.metrics.spans_dropped(self._tracing.dropped)
        own = exposition.families(self.metrics.registry)
        return metrics_answer(request, own, self.worker.metrics())


def metrics_answer(request: Request, *processes: exposition.Families) -> Response:
    """The page `/metrics` of these processes, in the form that the client prefers."""
    content, content_type = exposition.page(*processes, accept=request.headers.get("accept", ""))
    return Response(content, headers={"Content-Type": content_type, "Vary": "Accept"})


async def prepare_database(database: Database) -> None:
    """Migrates an embedded database. A PostgreSQL database is only checked: other processes may use it."""
    await (schema.migrate(database) if database.is_sqlite else schema.check(database))
    for weakness in await weaknesses(database):
        log.warning(weakness)


def log_open_doors(settings: Settings, *names: str) -> None:
    """Logs, at every start, which of these settings switch authentication off: they may be older than their reason."""
    for name in names:
        if getattr(settings, name) == "none":
            log.warning("authentication is switched off", setting=f"{PREFIX}{name.upper()}", effect=_OPEN_DOORS[name])


_OPEN_DOORS: Final = {
    "callback_auth": "whoever reaches this address can post callbacks",
    "api_auth": "whoever reaches this address can read and change everything",
    "metrics_auth": "whoever reaches this address can read the metrics",
}


def _tokens(settings: Settings) -> Tokens:
    return Tokens(token.get_secret_value() for token in settings.api_tokens)


def _site_settings(settings: Settings) -> SiteSettings:
    user = None
    if settings.callback_auth == "basic" and settings.callback_credentials:
        name, _, password = settings.callback_credentials[0].get_secret_value().partition(":")
        user = name, password
    return SiteSettings(callback_user=user, tag_keys=tag_keys(settings))


def _admission(settings: Settings) -> Admission:
    pairs = [credential.get_secret_value() for credential in settings.callback_credentials]
    return Admission(
        credentials=Credentials(pairs) if settings.callback_auth == "basic" else None,
        networks=settings.callback_networks,
        max_body_bytes=settings.max_body_bytes,
        keys={api: key.get_secret_value() for api, key in settings.callback_keys.items()},
    )


def _middleware(settings: Settings) -> list[Middleware]:
    """The middleware that takes the address of the client from the headers of trusted proxies."""
    if not settings.trusted_proxies:
        return []
    trusted = [str(network) for network in settings.trusted_proxies]
    return [Middleware(_ForwardedHeaders, trusted_hosts=trusted)]


class _ForwardedHeaders:
    """uvicorn's middleware for the headers of trusted proxies, which reads no chain in `X-Forwarded-Proto`.

    Two proxies in a row make `https, http` of it. The first is what the client used: links that begin with `http:`
    would have it send its token in the clear. The callback is stored with the header as it came.
    """

    def __init__(self, app: ASGIApp, trusted_hosts: list[str]) -> None:
        self._app = app
        self._proxied: Any = ProxyHeadersMiddleware(self._restored, trusted_hosts=trusted_hosts)  # type: ignore[arg-type]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and any(_is_chain(name, value) for name, value in scope["headers"]):
            scope[_AS_RECEIVED] = scope["headers"]
            scope["headers"] = [_first_protocol(name, value) for name, value in scope["headers"]]
        await self._proxied(scope, receive, send)

    async def _restored(self, scope: Scope, receive: Receive, send: Send) -> None:
        if _AS_RECEIVED in scope:
            scope["headers"] = scope.pop(_AS_RECEIVED)
        await self._app(scope, receive, send)


_AS_RECEIVED: Final = "receiver.headers"


def _first_protocol(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    return name, value.partition(b",")[0] if _is_chain(name, value) else value


def _is_chain(name: bytes, value: bytes) -> bool:
    return name == b"x-forwarded-proto" and b"," in value
