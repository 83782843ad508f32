"""One request of a page: who visits, the operations of the API on their behalf, and the page that answers.

All links of a page are relative, so that pages work under any path where the application is mounted, and behind a proxy
that removes a prefix.
"""

import hashlib
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, quote, urlencode

from starlette.requests import Request
from starlette.responses import Response

from receiver.api.operations import ApiContext, Call, Listed, Operation, no_pending_callbacks
from receiver.api.problems import ProblemError, as_problem
from receiver.api.routing import MOUNTED_AT, absolute_times, decoded_segment, parse_query
from receiver.domain.cloudevents import rfc3339
from receiver.domain.counts import count_text, count_texts
from receiver.errors import TooMuch, TooSlow
from receiver.explanation.words import duration_text
from receiver.models.parameters import NumberContext
from receiver.models.queries import Query
from receiver.pages.session import Session
from receiver.pages.shared import SharedResults
from receiver.providers.fields import storable
from receiver.storage.message_search import FOR_PROGRAMS, Patience

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

FILES: Final = Path(__file__).parent
_STATIC: Final = FILES / "static"
_SETTLE_SECONDS: Final = 0.1
_MAX_FORM_BYTES: Final = 64 * 1024
_MAX_FIELDS: Final = 100
_NO_CHANGES: Final[Mapping[str, str]] = {}

HEADERS: Final = {
    # Pages show message texts and numbers, which no cache may store.
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSettings:
    """The settings that pages show and operations do not need.

    `callback_user` are the user and the password for Bandwidth (None: callbacks need none), `tag_keys` the secrets of
    all tag keys by kid.
    """

    callback_user: tuple[str, str] | None = field(default=None, repr=False)
    tag_keys: Mapping[str, str] = field(default_factory=dict, repr=False)


_RATE_SPAN: Final = timedelta(seconds=60)


class Rate:
    """How many callbacks per second came in lately, from counts that the overview reads while somebody looks at it."""

    def __init__(self) -> None:
        self._counts: deque[tuple[datetime, int]] = deque()

    def add(self, now: datetime, callbacks: int) -> float | None:
        """Takes a count; returns callbacks per second since the oldest count of the last minute, None for the first."""
        counts = self._counts
        if counts and callbacks < counts[-1][1]:
            # The database was replaced by another one.
            counts.clear()
        counts.append((now, callbacks))
        while now - counts[0][0] > _RATE_SPAN:
            counts.popleft()
        first_at, first = counts[0]
        seconds = (now - first_at).total_seconds()
        return (callbacks - first) / seconds if seconds > 0 else None


@dataclass(slots=True, kw_only=True)
class Visit:
    """A request of a page. `session` is None where the API needs no token: then everybody may do everything."""

    request: Request
    context: ApiContext
    settings: SiteSettings
    rate: Rate
    shared: SharedResults
    exports: set[object]
    session: Session | None = None
    form: Mapping[str, str] = field(default_factory=dict)
    pending: int = 0
    _is_settled: bool = False

    @property
    def is_admin(self) -> bool:
        return self.session is None or self.session.is_admin

    @property
    def mounted_at(self) -> str:
        """The path under which another application mounts this one."""
        scope = self.request.scope
        return str(scope.get(MOUNTED_AT, scope.get("root_path", "")))

    @property
    def place(self) -> str:
        """The path of this page below the start page, undecoded: `%2F` is part of an id and not a separator."""
        scope = self.request.scope
        raw = scope.get("raw_path")
        given = raw.decode("latin-1") if raw else quote(scope["path"])
        return str(given.removeprefix(self.mounted_at).removeprefix("/"))

    @property
    def root(self) -> str:
        """The relative path from this page to the start page."""
        return "../" * self.place.count("/") or "./"

    @property
    def base_url(self) -> str:
        """The address of the start page for other programs: the public URL, else the one that the browser uses."""
        if self.context.public_url is not None:
            return self.context.public_url.rstrip("/")
        return f"{self.request.url.scheme}://{self.request.url.netloc}{self.mounted_at}"

    @property
    def numbers(self) -> NumberContext:
        """How numbers of a query are read that were typed without a country code."""
        return {"country_code": lambda: self.context.country_code}

    def segment(self, name: str) -> str:
        """A value in the path. Raises ProblemError if it cannot be an id."""
        return decoded_segment(self.request.path_params[name])

    @property
    def now(self) -> datetime:
        return self.context.clock()

    def query(self, model: type[Query], **changes: str) -> Any:
        """The query string as the parameters of an operation; empty fields of a form are left out.

        Raises ProblemError with every value that is refused.
        """
        given = {**dict(self.parameters), **changes}
        text = urlencode([(name, value.strip()) for name, value in given.items() if value.strip()])
        return parse_query(model, text.encode(), self.context.country_code)

    @property
    def parameters(self) -> list[tuple[str, str]]:
        """The parameters of the query string; the last one wins where a name is repeated."""
        text = self.request.scope["query_string"].decode("utf-8", "replace")
        try:
            return list(dict(parse_qsl(text, keep_blank_values=True, max_num_fields=_MAX_FIELDS)).items())
        except ValueError:
            raise ProblemError(400, f"The address has more than {_MAX_FIELDS} parameters.") from None

    async def perform(
        self,
        operation: Operation,
        *,
        query: Query | None = None,
        path: Mapping[str, str] | None = None,
        body: Any = None,
        patience: Patience = FOR_PROGRAMS,
    ) -> Any:
        """The result of an operation, as the API would answer the same visitor. Raises what the operation raises."""
        if operation.method != "GET" and not self.is_admin:
            raise ProblemError(403, "Your token may only read. Sign in with an admin token to change anything.")
        call = Call(
            # The callbacks that came before the visit need to be waited for only once.
            context=replace(self.context, settle=no_pending_callbacks if self._is_settled else self._settle),
            query=query if query is not None else operation.query(),
            path=path or {},
            body=body,
            is_admin=self.is_admin,
            token=self.session.digest if self.session is not None else None,
            patience=patience,
        )
        try:
            return await operation(call)
        finally:
            self._is_settled = self._is_settled or operation.reads_processed
            self.pending = max(self.pending, call.pending)

    async def _settle(self, _: float | None) -> int:
        """Waits for the processor, but not so long that the page would be late: it says how many are pending."""
        return await self.context.settle(_SETTLE_SECONDS)

    async def filtered(
        self,
        operation: Operation,
        changes: Mapping[str, str] = _NO_CHANGES,
        *,
        shared_seconds: float | None = None,
        patience: Patience = FOR_PROGRAMS,
        narrowed: Callable[[Any], Any] = lambda query: query,
    ) -> tuple[Any, ProblemError | None]:
        """What the filters in the address choose; None, and the problem, if one of them is wrong, or too much matches.

        With `shared_seconds` all visitors with the same filters see the same result for so long, and while it is read.
        `narrowed` changes the query once its parameters are known to be right.
        """
        try:
            query = narrowed(self.query(operation.query, **changes))
            read = partial(self.perform, operation, query=query, patience=patience)
            if shared_seconds is None:
                return await read(), None
            given = sorted({**dict(self.parameters), **changes}.items())

            async def read_with_few() -> Any:
                async with self.shared.few:
                    return await read()

            return await self.shared.get(f"{operation.name} {given}", shared_seconds, read_with_few), None
        except (TooMuch, TooSlow) as error:
            return None, as_problem(error)
        except ProblemError as problem:
            if problem.status != HTTPStatus.BAD_REQUEST:
                raise
            return None, problem

    async def filtered_page(self, template: str, problem: ProblemError | None, **values: Any) -> Response:
        """A page of what filters choose, with the problem of each filter at its field."""
        errors = {error.parameter: error.detail for error in problem.errors} if problem is not None else {}
        status = problem.status if problem is not None else HTTPStatus.OK
        response = await self.long_page(template, status=status, problem=problem, errors=errors, **values)
        if problem is not None and problem.headers:
            response.headers.update(problem.headers)
        return response

    async def long_page(self, template: str, *, status: int = 200, **values: Any) -> Response:
        """A page with up to a thousand rows, rendered in a thread, one at a time: callbacks must not wait for it."""
        return await self.shared.in_thread(partial(self.page, template, status=status, **values))

    def page(self, template: str, *, status: int = 200, **values: Any) -> Response:
        """The page that a template makes of these values."""
        text = (
            environment()
            .get_template(template)
            .render(
                visit=self,
                root=self.root,
                version=_version(),
                static=_static_address,
                **values,
            )
        )
        return Response(text, status, HEADERS, "text/html; charset=utf-8")

    def redirect(self, address: str, *, headers: Mapping[str, str] | None = None) -> Response:
        """Sends the browser to another page, relative to the start page."""
        return Response(status_code=303, headers={**HEADERS, **(headers or {}), "Location": f"{self.root}{address}"})

    def next_page(self, found: Listed[Any] | None, /, **changes: str | None) -> str | None:
        """The query string of the next page of a list, with other changes; None if this is the last page."""
        if found is None or found.next_page is None:
            return None
        # A number of a page counts from the cursor.
        return self.address(**{"page": None, **absolute_times(self.request), **found.next_page, **changes})

    def address(self, **changes: str | None) -> str:
        """The query string of this page with some parameters changed; None removes one."""
        given = {**dict(self.parameters), **changes}
        return "?" + urlencode([(name, value) for name, value in given.items() if value])


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form; raises ProblemError if it is too large or none."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MAX_FORM_BYTES:
            raise ProblemError(413, "The form is too large.", headers={"Connection": "close"})
    try:
        fields = parse_qsl(body.decode("utf-8"), keep_blank_values=True, max_num_fields=_MAX_FIELDS)
        return {name: storable(value) for name, value in fields}
    except ValueError:
        raise ProblemError(400, "The form cannot be read.") from None


# --- templates ---


@cache
def environment() -> "Environment":
    # Imported when the first page is made: a process that serves callbacks alone does not need it.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(FILES / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters |= {
        "duration": duration,
        "utc": utc_text,
        "rfc3339": rfc3339,
        "number": number_text,
        "count": count_text,
        "counts": count_texts,
        "segment": path_segment,
        "times": with_times,
    }
    return made


def utc_text(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


_INSTANT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


def with_times(sentence: str) -> "Markup":
    """A sentence whose times a browser shows in its own time zone."""
    from markupsafe import Markup, escape

    def element(found: re.Match[str]) -> str:
        try:
            return f'<time datetime="{found[0]}">{utc_text(datetime.fromisoformat(found[0]))}</time>'
        except ValueError:
            # Something like a time, in the answer of a stranger.
            return found[0]

    return Markup(_INSTANT.sub(element, str(escape(sentence))))  # noqa: S704


def duration(seconds: float) -> str:
    return duration_text(timedelta(seconds=seconds))


def number_text(value: float) -> str:
    return f"{value:,}"


def path_segment(value: str) -> str:
    """A value as one segment of a path."""
    return quote(value, safe="")


@cache
def _version() -> str:
    return version("bandwidth-receiver")


# --- files ---

_MEDIA_TYPES: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@cache
def static_files() -> dict[str, tuple[bytes, str]]:
    """The files that pages load, by name: content and media type."""
    return {file.name: (file.read_bytes(), _MEDIA_TYPES[file.suffix]) for file in _static_paths()}


def _static_paths() -> Iterator[Path]:
    yield from (file for file in sorted(_STATIC.iterdir()) if file.suffix in _MEDIA_TYPES)


@cache
def _static_address(name: str) -> str:
    """The address of a file, relative to the start page. It changes with the content, so browsers may keep the file."""
    content, _ = static_files()[name]
    return f"static/{name}?v={hashlib.sha256(content).hexdigest()[:16]}"
