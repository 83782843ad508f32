"""Targets with an Apprise URL: chats, mail, push services and more than a hundred others.

Apprise is synchronous, connects by itself, and logs URLs with their secrets at the level debug. Each notification runs
in a thread of its own, of which a target has two at most, so that a service that hangs delays no other. The results
are put into a few fixed words: what Apprise says about a failure may contain an address or a URL.
"""

import asyncio
import logging
import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from importlib import import_module
from threading import Thread
from typing import Any, ClassVar, Final

from receiver.alerts.hooks import SECONDS, Context, InvalidTarget
from receiver.alerts.http import Failure
from receiver.domain.alerts import Severity
from receiver.domain.notifications import Notification

EXTRA: Final = "alerts"
_MAX_THREADS: Final = 2
_MAX_TEXT: Final = 8192
_STATUS: Final = re.compile(r"error[= ]([1-5]\d\d)\b")
_NO_CONNECTION: Final = re.compile(r"connection error|socket exception|could not connect", re.IGNORECASE)
# Apprise says of all errors of a mail server that there was no connection; its line about the exception has the answer.
_EXCEPTION: Final = "Socket Exception: "
_MAIL_ANSWERS: Final[tuple[tuple[re.Pattern[str], str], ...]] = tuple(
    (re.compile(pattern, re.DOTALL), reason)
    for pattern, reason in (
        (r"\((454|53[0-8]), b['\"]", "the mail server refused the login: status {}"),
        (r"\{.*\(([245]\d\d), b['\"]", "the mail server refused a recipient: status {}"),
        (r"SMTP recipient .* was refused: ([245]\d\d) ", "the mail server refused a recipient: status {}"),
        (r"\(([245]\d\d), b(?:'.*'|\".*\"), '", "the mail server refused the sender: status {}"),
        (r"\(([245]\d\d), b['\"]", "the mail server refused it: status {}"),
        (r"AUTH extension not supported|No suitable authentication", "the mail server takes no such login"),
        (r"STARTTLS extension not supported", "the mail server offers no encryption"),
        (r"CERTIFICATE_VERIFY_FAILED", "the certificate of the mail server is not valid"),
    )
)
_KINDS: Final = {Severity.CRITICAL: "failure", Severity.WARNING: "warning", Severity.INFO: "info"}
# These log URLs, which contain secrets, and texts.
_REVEALING_LOGGERS: Final = ("apprise", "requests", "urllib3", "requests_oauthlib", "oauthlib")


_exceptions: Final[ContextVar[list[str] | None]] = ContextVar("receiver_apprise_exceptions", default=None)


def _only_warnings(record: logging.LogRecord) -> bool:
    """Lets no handler have a line below the level warning, and collects those about exceptions of the notification."""
    if record.levelno >= logging.WARNING:
        return True
    found = _exceptions.get()
    if found is not None and (text := record.getMessage()).startswith(_EXCEPTION):
        found.append(text)
    return False


def _apprise() -> Any:
    """The package, with its log switched off; raises InvalidTarget if the extra is not installed."""
    try:
        package = import_module("apprise")
    except ModuleNotFoundError:
        raise InvalidTarget(f"needs the extra {EXTRA}: pip install 'bandwidth-receiver[{EXTRA}]'") from None
    for name in _REVEALING_LOGGERS:
        logger = logging.getLogger(name)
        logger.propagate = False
        # Apprise records what it logs at this level in its results. What it logs below, the filter alone gets.
        logger.setLevel(logging.DEBUG if name == "apprise" else logging.WARNING)
        if name == "apprise":
            logger.addFilter(_only_warnings)
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())
    return package


class AppriseTarget:
    """A target that Apprise sends to."""

    closes: ClassVar[bool] = False

    def __init__(self, url: str, context: Context) -> None:
        package = _apprise()
        self._context = context
        # Nothing is stored, redirects are not followed, and no picture of another server is linked.
        asset = package.AppriseAsset(
            app_id="receiver",
            app_desc="receiver",
            app_url=context.base_url,
            image_url_mask="",
            image_url_logo="",
            storage_mode="memory",
            secure_logging=True,
            http_redirects=False,
        )
        self._client = package.Apprise(asset=asset)
        try:
            with warnings.catch_warnings():
                # The first URL loads all plug-ins; what they warn of is nothing that an operator could change.
                warnings.simplefilter("ignore")
                is_valid = len(url) <= _MAX_TEXT and self._client.add(url)
        except Exception:
            # The text of the exception may contain the URL.
            is_valid = False
        if not is_valid or len(self._client) != 1:
            raise InvalidTarget("is not a URL that Apprise understands, or lacks a part")
        self._running = 0

    async def send(self, notification: Notification) -> Failure | None:
        if self._running >= _MAX_THREADS:
            return Failure(reason="earlier notifications still wait for an answer", overloaded=True)
        alert, templates = notification.alert, self._context.templates
        kind = "success" if notification.is_resolved else _KINDS[alert.severity]
        title, body = templates.render_title(notification), templates.render_body(notification)

        def notify() -> Failure | None:
            # As text: Apprise escapes it for services that take HTML or Markdown.
            # Its own threads get this list too, with the context of this one.
            exceptions: list[str] = []
            _exceptions.set(exceptions)
            result = self._client.notify(title=title, body=body, notify_type=kind, body_format="text")
            return None if result else _failure(result, exceptions)

        self._running += 1
        try:
            # The thread counts until it ends, also if nobody waits for it any more.
            running = asyncio.ensure_future(_in_thread(notify))
            running.add_done_callback(self._ended)
            return await asyncio.wait_for(asyncio.shield(running), SECONDS)
        except TimeoutError:
            return Failure(reason="timeout", overloaded=True)

    def _ended(self, running: "asyncio.Future[Any]") -> None:
        self._running -= 1
        if not running.cancelled():
            running.exception()


def _failure(result: Any, exceptions: Sequence[str]) -> Failure:
    """Why Apprise could not send, from what it logged."""
    texts = [str(getattr(entry, "message", entry)) for one in result for entry in one.logs()]
    if any("mail" in text for text in texts):
        for text in (*exceptions, *texts):
            for pattern, reason in _MAIL_ANSWERS:
                if (found := pattern.search(text)) is not None:
                    return Failure(reason=reason.format(*found.groups()))
    for text in texts:
        if (found := _STATUS.search(text)) is not None:
            return Failure(reason=f"status {found[1]}", overloaded=found[1] == "429")
    if any(_NO_CONNECTION.search(text) for text in texts):
        return Failure(reason="no connection")
    return Failure(reason="the service did not accept it")


async def _in_thread(function: Callable[[], Failure | None]) -> Failure | None:
    """Runs a function in a daemon thread: the end of the process does not wait for it."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Failure | None] = loop.create_future()

    def finish(result: Failure | None) -> None:
        if not done.done():
            done.set_result(result)

    def run() -> None:
        try:
            result = function()
        except Exception as error:
            # The text of the exception may contain the URL.
            result = Failure(reason=f"unexpected {type(error).__name__}")
        # The event loop may be closed by now.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(finish, result)

    Thread(target=run, name="receiver-apprise", daemon=True).start()
    return await done
