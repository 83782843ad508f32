"""The routes of the pages: every request is checked, becomes a visit, and is answered with a page, also in an error.

A page needs a session where the API needs a token. A form must come from a page of this site, and contain the secret of
its session.
"""

import hmac
import re
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from http import HTTPStatus
from ipaddress import ip_address
from typing import Final
from urllib.parse import quote, unquote, urlsplit

import structlog
from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route, Router

from receiver.api import problems
from receiver.api.operations import ApiContext
from receiver.api.problems import ProblemError, as_problem, invalid_values_problem
from receiver.api.routing import EncodedMount, invalid_values
from receiver.logs import Sampled
from receiver.pages import alerts, callbacks, messages, setup, sinks, statistics
from receiver.pages.session import COOKIE, LIFETIME, Session, Throttle, read_session, start_session
from receiver.pages.shared import SharedResults
from receiver.pages.visit import HEADERS, Rate, SiteSettings, Visit, read_form, static_files

log = structlog.get_logger("receiver.pages")
_failed = Sampled(log, "sign-ins fail")

Handler = Callable[[Visit], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Page:
    """A page: its path, what answers a GET, and what answers the forms that are sent to it."""

    path: str
    show: Handler | None = None
    act: Handler | None = None


PAGES: Final[Sequence[Page]] = (
    Page("/", statistics.overview),
    Page("/statistics", statistics.statistics_page),
    Page("/statistics.csv", statistics.export),
    Page("/messages", messages.list_page),
    Page("/messages.csv", messages.export),
    Page("/messages/{id}", messages.message_page),
    Page("/callbacks", callbacks.list_page, callbacks.reprocess_chosen),
    Page("/callbacks/{id}", callbacks.callback_page, callbacks.reprocess),
    Page("/callbacks/{id}/body", callbacks.raw_body),
    Page("/sinks", sinks.list_page),
    Page("/sinks/{name}", sinks.sink_page, sinks.act),
    Page("/alerts", alerts.list_page),
    Page("/alerts/{id}", alerts.alert_page, alerts.act),
    Page("/dead-letters", sinks.dead_letters_page, sinks.act_on_dead_letters),
    Page("/setup", setup.setup_page),
    Page("/tags", setup.tags_page, setup.use_tag),
)

# What browsers say about where a request comes from: https://www.w3.org/TR/fetch-metadata/
_OWN_SITES: Final = frozenset({"same-origin", "none"})
_MAX_NEXT: Final = 2000
# An address as a browser sends it: everything else is percent-encoded.
_ADDRESS: Final = re.compile(r"[A-Za-z0-9\-._~%/?&=+:@!$'()*,;]*")


class SiteState:
    """What the pages of one web process remember, also when its settings change."""

    def __init__(self) -> None:
        self.throttle = Throttle()
        self.rate = Rate()
        self.shared = SharedResults()
        self.exports: set[object] = set()


class Site:
    """The pages of one web process."""

    def __init__(self, context: ApiContext, state: SiteState, settings: SiteSettings) -> None:
        self._context = context
        self._state = state
        self._settings = settings

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/static/{name}", _static),
            Route("/login", self._login, methods=["GET", "POST"]),
            Route("/logout", self._endpoint(Page("/logout", act=_log_out)), methods=["POST"]),
            *self._page_routes(),
        ]

    async def problem(self, request: Request, error: Exception) -> Response:
        """The answer to an unknown address or a wrong method: a page for a person, problem details for a program."""
        visit = self._visit(request, self._session(request))
        if _is_person(visit):
            return _error_page(visit, error)
        return await problems.answer(request, error)

    def _page_routes(self) -> Iterator[BaseRoute]:
        below: defaultdict[str, list[BaseRoute]] = defaultdict(list)
        for page in PAGES:
            prefix, brace, rest = page.path.partition("/{")
            endpoint, methods = self._endpoint(page), _methods(page)
            if brace:
                below[prefix].append(Route(f"{brace}{rest}", endpoint, methods=methods))
            else:
                yield Route(page.path, endpoint, methods=methods)
        for prefix, routes in below.items():
            yield EncodedMount(prefix, Router(routes, redirect_slashes=False))

    def _endpoint(self, page: Page) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            visit = self._visit(request, self._session(request))
            if page.path == "/" and not _is_browser(request):
                return _start(visit)
            if visit.session is None and not _is_person(visit):
                # A program with a wrong callback URL must get an error, whatever it accepts, and never a page.
                raise ProblemError(404)
            if self._context.tokens is not None and visit.session is None:
                return _sign_in_first(visit)
            try:
                self._refuse_foreign_name(request)
                if request.method != "POST":
                    assert page.show is not None  # noqa: S101
                    return await page.show(visit)
                assert page.act is not None  # noqa: S101
                visit.form = await self._own_form(request, visit.session)
                return await page.act(visit)
            except ClientDisconnect:
                return Response(status_code=400)
            except Exception as error:
                return _error_page(visit, error)

        return endpoint

    def _visit(self, request: Request, session: Session | None) -> Visit:
        return Visit(
            request=request,
            context=self._context,
            settings=self._settings,
            rate=self._state.rate,
            shared=self._state.shared,
            exports=self._state.exports,
            session=session,
        )

    def _session(self, request: Request) -> Session | None:
        tokens = self._context.tokens
        if tokens is None:
            return None
        # A browser also sends the cookies of another receiver of the same host, in an order of its own.
        sessions = (read_session(tokens, cookie, self._context.clock()) for cookie in _cookies(request))
        return next((session for session in sessions if session is not None), None)

    def _refuse_foreign_name(self, request: Request) -> None:
        """Without tokens, refuses a name that is not known to be ours: any site may give its own name our address.

        Raises ProblemError.
        """
        if self._context.tokens is None and not _is_own_name(request.url.hostname, self._context.public_url):
            raise ProblemError(403, "This name is not known here: set RECEIVER_PUBLIC_URL to the address that you use.")

    async def _own_form(self, request: Request, session: Session | None) -> dict[str, str]:
        """The fields of a form of this site. Raises ProblemError if another site may have sent it."""
        if not _is_own(request, self._context.public_url):
            raise ProblemError(403, f"Another site sent this form. Nothing was changed. {_OWN_ADDRESS}")
        form = await read_form(request)
        if session is not None and not hmac.compare_digest(form.pop("csrf", "").encode(), session.csrf.encode()):
            raise ProblemError(403, "This form is older than your session. Nothing was changed; send it again.")
        return form

    async def _login(self, request: Request) -> Response:
        visit = self._visit(request, None)
        try:
            return await self._sign_in(visit)
        except ClientDisconnect:
            return Response(status_code=400)
        except Exception as error:
            return _error_page(visit, error)

    async def _sign_in(self, visit: Visit) -> Response:
        request, tokens = visit.request, self._context.tokens
        if tokens is None:
            return visit.redirect("")
        if request.method != "POST":
            return visit.page("login.html", next=_local(request.query_params.get("next", "")), problem=None)
        try:
            if not _is_own(request, self._context.public_url):
                raise ProblemError(403, f"Another site sent this form. {_OWN_ADDRESS}")
            form = await read_form(request)
        except ProblemError as error:
            return visit.page("login.html", status=error.status, next="", problem=error.detail)
        address = request.client.host if request.client is not None else ""
        goal = _local(form.get("next", ""))
        if seconds := self._state.throttle.seconds_to_wait(address):
            problem = f"Too many sign-ins failed. Wait {seconds} seconds, then try again."
            response = visit.page("login.html", status=429, next=goal, problem=problem)
            response.headers["Retry-After"] = str(seconds)
            return response
        cookie = start_session(tokens, form.get("token", "").strip(), visit.now)
        if cookie is None:
            self._state.throttle.failed(address)
            _failed.add(address=address)
            problem = "This token is not accepted. The start of the receiver prints where the tokens are."
            return visit.page("login.html", status=401, next=goal, problem=problem)
        return visit.redirect(goal, headers={"Set-Cookie": _cookie(visit, cookie, int(LIFETIME.total_seconds()))})


_OWN_ADDRESS: Final = "If it was this site, set RECEIVER_PUBLIC_URL to the address that you use."


def _start(visit: Visit) -> Response:
    """What this server is, in a line with links, for a program that requests its address."""
    url = visit.base_url
    line = f"This is receiver: documentation {url}/docs, API {url}/docs/openapi, health {url}/healthz\n"
    return PlainTextResponse(line, headers={"X-Content-Type-Options": "nosniff"})


def _methods(page: Page) -> list[str]:
    return [*(["GET"] if page.show is not None else []), *(["POST"] if page.act is not None else [])]


async def _log_out(visit: Visit) -> Response:
    return visit.redirect("login", headers={"Set-Cookie": _cookie(visit, "", 0)})


def _cookie(visit: Visit, value: str, seconds: int) -> str:
    secure = "; Secure" if _is_secure(visit.request, visit.context.public_url) else ""
    path = visit.mounted_at or "/"
    return f"{COOKIE}={value}; Max-Age={seconds}; Path={quote(path)}; HttpOnly; SameSite=Lax{secure}"


def _is_secure(request: Request, public_url: str | None) -> bool:
    """Whether the browser uses https, perhaps only as far as a proxy that is not trusted."""
    if request.url.scheme == "https" or request.headers.get("origin", "").startswith("https:"):
        return True
    public = urlsplit(public_url or "")
    return public.scheme == "https" and public.hostname == request.url.hostname


def _cookies(request: Request) -> Iterator[str]:
    """The values of all cookies of sessions."""
    for header in request.headers.getlist("cookie"):
        for pair in header.split(";"):
            name, _, value = pair.strip().partition("=")
            if name == COOKIE:
                yield value


def _is_person(visit: Visit) -> bool:
    """Whether a person requests an address. Below `/callbacks` that must be certain: some programs accept HTML, too."""
    request, headers = visit.request, visit.request.headers
    if visit.place.partition("/")[0] != "callbacks":
        return _is_browser(request)
    is_navigation = headers.get("sec-fetch-mode") == "navigate" or "hx-request" in headers
    # Browsers do not send it to other hosts over plain http: there a link on a page of ours leads here.
    return _is_browser(request) and (is_navigation or _names_own_host(headers.get("referer"), request))


def _names_own_host(address: str | None, request: Request) -> bool:
    return address is not None and _host_and_port(address) == _host_and_port(str(request.url))


def _is_browser(request: Request) -> bool:
    if request.method == "POST":
        return request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded")
    return "text/html" in request.headers.get("accept", "") or "hx-request" in request.headers


def _sign_in_first(visit: Visit) -> Response:
    request = visit.request
    if request.headers.get("hx-request"):
        # The part of a page that refreshes itself: the whole page has to be loaded again.
        return Response(status_code=401, headers={**HEADERS, "HX-Refresh": "true"})
    if request.method == "POST":
        return visit.redirect("login")
    query = f"?{request.url.query}" if request.url.query else ""
    goal = f"{visit.place}{query}"
    return visit.redirect(f"login?next={quote(goal, safe='')}" if goal and len(goal) <= _MAX_NEXT else "login")


def _local(goal: str) -> str:
    """An address within this site, relative to its start page; the start page for anything else."""
    try:
        parts = urlsplit(goal)
    except ValueError:
        return ""
    is_local = not parts.scheme and not parts.netloc and not goal.startswith(("/", "\\", "."))
    return goal if is_local and _ADDRESS.fullmatch(goal) and len(goal) <= _MAX_NEXT else ""


def _is_own(request: Request, public_url: str | None) -> bool:
    """Whether a browser sent a form from a page of this site; clients that are no browsers say nothing about it."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        # The browser has compared both itself, whatever a proxy made of the name.
        return site in _OWN_SITES
    origin = request.headers.get("origin")
    if origin is None:
        return True
    own = {_host_and_port(str(request.url)), _host_and_port(public_url) if public_url else None}
    return _host_and_port(origin) in own - {None}


def _host_and_port(url: str) -> tuple[str, int] | None:
    """The host and the port of an address; None if it has none."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    except ValueError:
        return None
    return (parts.hostname, port) if parts.hostname else None


def _is_own_name(host: str | None, public_url: str | None) -> bool:
    if host is None:
        return False
    try:
        ip_address(host)
    except ValueError:
        return host in ("localhost", urlsplit(public_url or "").hostname)
    return True


def _error_page(visit: Visit, error: Exception) -> Response:
    problem = invalid_values_problem(invalid_values(error)) if isinstance(error, ValidationError) else as_problem(error)
    if problem.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        log.exception("page failed", path=visit.request.url.path)
    title = _TITLES.get(problem.status, HTTPStatus(problem.status).phrase)
    similar = _similar_page(visit.place) if problem.status == HTTPStatus.NOT_FOUND and problem.detail is None else None
    response = visit.page("error.html", status=problem.status, title=title, problem=problem, similar=similar)
    response.headers.update(problem.headers or {})
    return response


# What the phrases of HTTP mean for a person.
_TITLES: Final = {
    400: "This cannot be done as it is",
    401: "This needs a token",
    403: "This is not allowed",
    404: "Nothing is here",
    405: "This address is not a page",
    413: "This is too large",
    500: "Something went wrong",
    503: "This cannot be shown now",
}


def _similar_page(place: str) -> str | None:
    """The page whose address looks most like an unknown one: `messages` for `message/` and `Messages/x/y`."""
    first = unquote(place).strip("/").partition("/")[0].lower()
    names = [page.path.removeprefix("/") for page in PAGES if page.show is not None and page.path.count("/") == 1]
    found = get_close_matches(first, [name for name in names if name and "." not in name], n=1, cutoff=0.7)
    return found[0] if found else None


async def _static(request: Request) -> Response:
    found = static_files().get(request.path_params["name"])
    if found is None:
        raise ProblemError(404)
    content, media_type = found
    headers = {"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}
    return Response(content, 200, headers, media_type)
