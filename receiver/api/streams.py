"""The clients that stay connected to the event log: how many there may be, what wakes them, what ends them."""

import asyncio
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from receiver.errors import Busy, StorageUnavailable
from receiver.storage import event_log
from receiver.storage.database import Database
from receiver.waiting import wait_for

# Each holds a connection and reads the log by itself; all together read it at most 5 times a second while it grows.
MAX_STREAMS: Final = 64
MAX_STREAMS_OF_A_TOKEN: Final = 16
_POLL_SECONDS: Final = 0.2


class Subscription:
    """One client: `grown` is set when the log has grown, `ended` when the client has to go.

    `token` is the digest of its token, None if none is required.
    """

    def __init__(self, token: bytes | None) -> None:
        self.token = token
        self.grown = asyncio.Event()
        self.ended = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        """Waits until the log has grown or the client has to go, at most for so many seconds."""
        await wait_for(self.grown, seconds)
        self.grown.clear()

    def end(self) -> None:
        self.ended.set()
        self.grown.set()


def _any_token(_: bytes | None) -> bool:
    """What is accepted until tokens are revoked: the middleware has checked the token."""
    return True


class Streams:
    """The subscriptions of one web process. While there are any, one task looks whether the log has grown."""

    def __init__(self) -> None:
        self._open: set[Subscription] = set()
        self._watching: asyncio.Task[None] | None = None
        self._accepts: Callable[[bytes | None], bool] = _any_token

    def __len__(self) -> int:
        return len(self._open)

    def accepts(self, token: bytes | None) -> bool:
        """Whether a token is accepted now: it may have been revoked since its request was let in."""
        return self._accepts(token)

    def open(self, database: Database, token: bytes | None) -> Subscription:
        """A new subscription, which `close` has to close; raises Busy at the limits."""
        of_tokens = Counter(one.token for one in self._open)
        if len(self._open) >= MAX_STREAMS:
            raise Busy(f"there are {MAX_STREAMS} streams already, as many as there may be")
        if token is not None and of_tokens[token] >= MAX_STREAMS_OF_A_TOKEN:
            raise Busy(f"this token has {MAX_STREAMS_OF_A_TOKEN} streams already, as many as it may have")
        subscription = Subscription(token)
        self._open.add(subscription)
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch(database))
        return subscription

    def close(self, subscription: Subscription) -> None:
        self._open.discard(subscription)
        if not self._open and self._watching is not None:
            self._watching.cancel()
            self._watching = None

    def revoke(self, is_accepted: Callable[[bytes | None], bool]) -> None:
        """Ends the streams whose token is not accepted any more; those that are being opened ask `accepts`."""
        self._accepts = is_accepted
        for subscription in self._open:
            if not is_accepted(subscription.token):
                subscription.end()

    async def _watch(self, database: Database) -> None:
        last = -1
        while True:
            if _server_stops():
                for subscription in self._open:
                    subscription.end()
            with suppress(StorageUnavailable):
                async with database.reading() as connection:
                    _, newest = await event_log.bounds(connection)
                if newest != last:
                    last = newest
                    for subscription in self._open:
                        subscription.grown.set()
            await asyncio.sleep(_POLL_SECONDS)


def _server_stops() -> bool:
    """Whether uvicorn has got the signal to stop. It then waits for all responses, and calls the lifespan only after.

    uvicorn's handler is a method of the server, also where somebody else's uvicorn serves an application that mounts
    this one. Another server has another handler, and ends connections in its own way.
    """
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return getattr(server, "should_exit", False) is True
