"""`/docs`: the documentation topics and the API reference as web pages, without JavaScript and without a token.

All links are relative, so that the pages work under any path where the application is mounted, and behind a proxy
that removes a prefix.
"""

import hashlib
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import cache
from html import escape
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from string import Template
from typing import Any, Final

from anyio import CapacityLimiter, to_thread
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from receiver import documents
from receiver.api.openapi import api_reference
from receiver.documents import Anchors, Hit, Topic

API_REFERENCE: Final = "openapi"
IMAGES: Final = ("message.png", "overview.png")

_FILES: Final = Path(__file__).with_name("docs_pages")
_HEADERS: Final = {
    # A browser revalidates each time; the answer is 304 until another version is installed.
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_TOPIC_LINK: Final = re.compile(r"([\w-]+)\.md(#.*)?")
_ABSOLUTE: Final = re.compile(r"[a-z]+:", re.IGNORECASE)


def routes(openapi: Callable[[], dict[str, Any]]) -> list[BaseRoute]:
    """The routes of the documentation; `openapi` returns the OpenAPI document."""
    pages = Pages(openapi)
    return [
        Route("/docs", pages.one_at_a_time(pages.index), name="docs"),
        Route("/docs/", pages.redirect),
        Route("/docs/style.css", pages.style),
        *(Route(f"/docs/{name}", pages.image) for name in IMAGES),
        Route("/docs/{topic}", pages.one_at_a_time(pages.topic)),
    ]


_MAX_WAITING: Final = 50


class Pages:
    """The endpoints. Pages are made in a thread, and only one at a time, because they must not delay callbacks.

    Anybody may request them, without a token, and a search takes as much CPU time as a thousand callbacks.
    """

    def __init__(self, openapi: Callable[[], dict[str, Any]]) -> None:
        self._openapi = openapi
        self._making = CapacityLimiter(1)

    def one_at_a_time(self, page: Callable[[Request], Response]) -> Callable[[Request], Awaitable[Response]]:
        """The endpoint of a page; answers 503 if many requests wait already."""

        async def endpoint(request: Request) -> Response:
            if self._making.statistics().tasks_waiting >= _MAX_WAITING:
                return PlainTextResponse("too many pages are requested at once\n", 503, {"Retry-After": "2"})
            return await to_thread.run_sync(page, request, limiter=self._making)

        return endpoint

    def index(self, request: Request) -> Response:
        """All topics, or the results of a search."""
        query = request.query_params.get("q", "").strip()
        if not query:
            return _answer(request, _page("Documentation", _index(self._topics()), self._topics(), docs="docs/"))
        content = _results(query, documents.search(query, self._topics()))
        return _answer(request, _page(f"Search: {query}", content, self._topics(), docs="docs/", query=query))

    def topic(self, request: Request) -> Response:
        name = request.path_params["topic"]
        topics = self._topics()
        for topic in topics:
            if topic.name == name:
                return _answer(request, _page(topic.title, _rendered(topic), topics, current=topic))
        return _answer(request, _page("Not found", _not_found(name, topics), topics), status=404)

    def redirect(self, _: Request) -> Response:
        return RedirectResponse("../docs", 308)

    def style(self, request: Request) -> Response:
        return _answer(request, _file("style.css"), media_type="text/css")

    def image(self, request: Request) -> Response:
        """A picture of a topic; the names are those of `IMAGES`."""
        content = (documents.FOLDER / request.url.path.rpartition("/")[2]).read_bytes()
        return _answer(request, content, media_type="image/png")

    def _topics(self) -> tuple[Topic, ...]:
        return _topics(self._openapi)


@cache
def _topics(openapi: Callable[[], dict[str, Any]]) -> tuple[Topic, ...]:
    """The topics of the package and the API reference."""
    return *documents.topics(), Topic(API_REFERENCE, api_reference(openapi()))


def _answer(request: Request, content: str | bytes, *, status: int = 200, media_type: str = "text/html") -> Response:
    body = content.encode() if isinstance(content, str) else content
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {**_HEADERS, "ETag": etag}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if status == 200 and (etag in known or "*" in known):
        return Response(status_code=304, headers=headers)
    return Response(body, status, headers, media_type)


@cache
def _version() -> str:
    return version("bandwidth-receiver")


@cache
def _file(name: str) -> str:
    return (_FILES / name).read_text("utf-8")


def _page(
    title: str, content: str, topics: Sequence[Topic], *, docs: str = "", query: str = "", current: Topic | None = None
) -> str:
    """A whole page. `docs` is the relative path from the page to the pages of the topics."""
    return Template(_file("page.html")).substitute(
        title=escape(f"{title} - receiver"),
        docs=docs,
        index="docs" if docs else "../docs",
        root="./" if docs else "../",
        version=escape(_version()),
        query=escape(query),
        content=content,
        navigation=_navigation(topics, docs, current),
    )


def _navigation(topics: Sequence[Topic], docs: str, current: Topic | None) -> str:
    """Links to all topics; below the current topic, links to its sections."""
    return _list(
        _link(f"{docs}{topic.name}", topic.title, current=topic is current)
        + (_list(_section_links(topic)) if topic is current else "")
        for topic in topics
    )


def _section_links(topic: Topic) -> Iterator[str]:
    for section in topic.sections:
        if section.level == 2:
            yield _link(f"#{section.anchor}", section.heading)


def _list(items: Iterator[str]) -> str:
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"


def _link(address: str, text: str, *, current: bool = False) -> str:
    marker = ' aria-current="page"' if current else ""
    return f'<a href="{escape(address)}"{marker}>{escape(text)}</a>'


def _index(topics: Sequence[Topic]) -> str:
    items = (f"<dt>{_link(f'docs/{topic.name}', topic.title)}</dt><dd>{escape(topic.summary)}</dd>" for topic in topics)
    return f"<h1>Documentation</h1><dl>{''.join(items)}</dl>"


def _results(query: str, hits: Sequence[Hit]) -> str:
    if not hits:
        return f"<h1>Search</h1><p>No topic mentions <q>{escape(query)}</q>.</p>"
    items = (
        _link(f"docs/{hit.topic.name}#{hit.section.anchor}", _hit_title(hit))
        + f"<p>{_highlighted(hit.snippet, query)}</p>"
        for hit in hits
    )
    return f'<h1>Search</h1><div class="results">{_list(items)}</div>'


def _hit_title(hit: Hit) -> str:
    if hit.section.level == 1:
        return hit.topic.title
    return f"{hit.topic.title}: {hit.section.heading}"


def _highlighted(text: str, query: str) -> str:
    parts = documents.marked(text, query)
    return "".join(f"<mark>{escape(part)}</mark>" if matches else escape(part) for part, matches in parts)


def _not_found(name: str, topics: Sequence[Topic]) -> str:
    similar = documents.suggestions(name, topics)
    titles = {topic.name: topic.title for topic in topics}
    links = " or ".join(_link(topic, titles[topic]) for topic in similar)
    question = f" Did you mean {links}?" if links else ""
    return f"<h1>Not found</h1><p>There is no topic <q>{escape(name)}</q>.{question}</p>"


@cache
def _rendered(topic: Topic) -> str:
    """The HTML of a topic. HTML within the Markdown is shown as text."""
    # The import takes 50 ms of CPU time, which only a process that serves these pages spends.
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(topic.markdown)
    _adapt(tokens)
    html: str = parser.renderer.render(tokens, parser.options, {})
    # What may scroll sideways must be reachable by keys. Texts are escaped: each <pre> is an element.
    return html.replace("<pre>", '<pre tabindex="0">')


def _adapt(tokens: list[Any]) -> None:
    """Gives headings their anchors, turns links into links between pages, and keeps styles out of the HTML."""
    from markdown_it.token import Token

    anchors = Anchors()
    for place in reversed(range(len(tokens))):
        token = tokens[place]
        match token.type:
            case "table_open":
                tokens.insert(place, Token("html_block", "", 0, content='<div class="table" tabindex="0">'))
            case "table_close":
                tokens.insert(place + 1, Token("html_block", "", 0, content="</div>"))
            case "th_open" | "td_open" if style := token.attrs.pop("style", None):
                token.attrSet("class", f"align-{str(style).rpartition(':')[2]}")
            case "inline":
                _adapt_links(token.children)
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open":
            anchor = anchors.add("".join(child.content for child in inline.children))
            opening.attrSet("id", anchor)
            link = f'<a class="anchor" href="#{escape(anchor)}" aria-label="Link to this section">#</a>'
            inline.children.append(Token("html_inline", "", 0, content=link))


def _adapt_links(tokens: list[Any]) -> None:
    leads_out = False
    for token in tokens:
        if token.type == "link_open":
            address = _page_address(str(token.attrGet("href")))
            leads_out = address is None
            token.attrSet("href", address or "")
        if leads_out and token.type in ("link_open", "link_close"):
            # The target is not installed: the text of the link stays.
            token.type, token.tag, token.nesting, token.content = "text", "", 0, ""


def _page_address(address: str) -> str | None:
    """The address of a link in a topic, relative to the page of the topic; None for a file that has no page."""
    if address.startswith("#") or _ABSOLUTE.match(address):
        return address
    if address.startswith("/"):
        return f"..{address}"
    found = _TOPIC_LINK.fullmatch(address)
    return f"{found[1]}{found[2] or ''}" if found else None
