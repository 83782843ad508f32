"""The composition root: settings in, the ASGI application and its workers out."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from receiver import metrics, reread, tags
from receiver.intake import Intake, Judge
from receiver.metrics import Metrics
from receiver.settings import Settings
from receiver.sinks import registry
from receiver.sinks.registry import ConfiguredSink
from receiver.storage.database import Database
from receiver.web import api, callbacks, problems
from receiver.web.auth import TokenAuth, Tokens
from receiver.web.callbacks import Callbacks, Credentials
from receiver.web.health import Health
from receiver.web.operations import Api
from receiver.workers.dispatcher import Dispatchers
from receiver.workers.pruner import Pruner
from receiver.workers.wakeup import Wakeup

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


def now() -> datetime:
    return datetime.now(UTC)


class Receiver:
    """Everything one process runs, joined: an ASGI application that starts and stops its own workers."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = Database(settings.database)
        self.metrics = Metrics()
        wakeup = Wakeup()
        self.intake = Intake(
            self.database,
            judge=judge(settings),
            conflict=settings.final_conflict,
            observer=self.metrics,
            clock=now,
            on_commit=wakeup.set,
        )
        sinks = configured_sinks(settings)
        self.dispatchers = Dispatchers(self.database, sinks, clock=now, wakeup=wakeup, observer=self.metrics)
        names = [sink.name for sink in sinks]
        self.pruner = Pruner(self.database, settings.retention.ages, clock=now, sinks=names)
        self._build_web()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Callbacks past all routing: they are what there is most of."""
        if scope["type"] == "http" and scope["path"] in callbacks.ROUTES:
            await self._callbacks(scope, receive, send)
        else:
            await self._pages(scope, receive, send)

    async def start(self) -> None:
        await self.intake.start()
        await self.dispatchers.start()
        await self.pruner.start()

    async def stop(self) -> None:
        """Finishes what was accepted, then lets go of the database."""
        await self.intake.stop()
        await self.dispatchers.stop()
        await self.pruner.stop()
        await self.database.close()

    async def reload(self, settings: Settings) -> None:
        """Takes over what may change while it runs; raises SettingsError, and changes nothing, if that is wrong.

        Requests under way are judged by what held when they came.
        """
        sinks = configured_sinks(settings)
        judged = judge(settings)
        self.settings = self.settings.model_copy(update={name: getattr(settings, name) for name in RELOADED})
        self.intake.judge_by(judged)
        self._build_web()
        self.pruner.sinks = frozenset(sink.name for sink in sinks)
        await self.dispatchers.reload(sinks)

    def _build_web(self) -> None:
        self._callbacks = self._callback_application()
        self._pages = Starlette(
            routes=self._routes(), lifespan=self._lifespan, exception_handlers=problems.APPLICATION_HANDLERS
        )
        self._pages.router.redirect_slashes = False

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        await self.start()
        try:
            yield
        finally:
            await self.stop()

    def _callback_application(self) -> Callbacks:
        settings = self.settings
        pairs = [credential.get_secret_value() for credential in settings.callback_credentials]
        return Callbacks(
            self.intake,
            credentials=Credentials(pairs) if settings.callback_auth == "basic" else None,
            networks=settings.callback_networks,
            max_body_bytes=settings.max_body_bytes,
            observer=self.metrics,
            clock=now,
        )

    def _routes(self) -> list[BaseRoute]:
        tokens = Tokens(token.get_secret_value() for token in self.settings.api_tokens)
        guard = [Middleware(TokenAuth, tokens=tokens)] if self.settings.metrics_auth == "token" else []
        return [
            *Health(self.database.probe).routes(),
            Route("/metrics", self._metrics, middleware=guard),
            *api.routes(self._api(tokens if self.settings.api_auth == "token" else None)),
        ]

    def _api(self, tokens: Tokens | None) -> Api:
        keys = _tag_keys(self.settings)
        return Api(
            database=self.database,
            reread=self._reread,
            tokens=tokens,
            tag_key=next(iter(keys.items()), None),
            public_url=self.settings.public_url,
            clock=now,
            sinks={table["name"]: table for table in self.settings.sinks},
        )

    async def _reread(self, ids: Sequence[str]) -> object:
        return await reread.reread_ids(self.database, self.intake, ids)

    async def _metrics(self, request: Request) -> Response:
        return Response(self.metrics.exposition(), media_type=metrics.CONTENT_TYPE)


def configured_sinks(settings: Settings) -> list[ConfiguredSink]:
    """The sinks of the settings; none may publish to where callbacks come in."""
    addresses = {settings.base_url, settings.listen_url}
    return registry.configure(settings.sinks, {address + path for address in addresses for path in callbacks.ROUTES})


def judge(settings: Settings) -> Judge:
    return Judge(keys=_tag_keys(settings), policy=settings.tag_policy)


def _tag_keys(settings: Settings) -> dict[str, str]:
    return tags.parse_keys([key.get_secret_value() for key in settings.tag_keys])


def behind_proxies(receiver: Receiver) -> Any:
    """The ASGI application, behind the proxies that are trusted."""
    application: Any = receiver
    if not receiver.settings.trusted_proxies:
        return application
    trusted = [str(network) for network in receiver.settings.trusted_proxies]
    return ProxyHeadersMiddleware(application, trusted_hosts=trusted)
