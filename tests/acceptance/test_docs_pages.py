"""`/docs`: pages whose links all lead somewhere, without a token, under any prefix, with a strict policy."""

import asyncio
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag, urljoin

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from receiver import documents
from receiver.app import create_app
from receiver.settings import GivenSettings
from tests import web
from tests.processes import PATIENT, serving

POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


class Page(HTMLParser):
    """What a page has: the links, the anchors, the names of its elements and attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: list[str] = []
        self.names: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names |= {tag, *(name for name, _ in attrs)}
        given = dict(attrs)
        self.links += [value for name in ("href", "src", "action") if (value := given.get(name))]
        if anchor := given.get("id"):
            self.anchors.append(anchor)

    def handle_data(self, data: str) -> None:
        self.text += data


def crawl(start: str) -> tuple[dict[str, Page], set[str]]:
    """All pages that links lead to from a page of the same server, by URL, and the links with their anchors."""
    host = urljoin(start, "/")
    pages: dict[str, Page] = {}
    links: set[str] = set()
    waiting = [start]
    with httpx2.Client(**PATIENT) as client:
        while waiting:
            url = waiting.pop()
            if url in pages:
                continue
            answer = client.get(url)
            assert answer.status_code == 200, url
            is_page = answer.headers["content-type"] == "text/html; charset=utf-8"
            pages[url] = page = Page(answer.text if is_page else "")
            found = {urljoin(url, link) for link in page.links}
            links |= {link for link in found if link.startswith(host)}
            waiting += [urldefrag(link).url for link in found if link.startswith(host)]
    return pages, links


def assert_links_lead_somewhere(pages: dict[str, Page], links: set[str]) -> None:
    for link in links:
        page, anchor = urldefrag(link)
        assert not anchor or anchor in pages[page].anchors, link
    for url, read in pages.items():
        assert len(read.anchors) == len(set(read.anchors)), url


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of /docs on a server that asks for a token."""
    with serving(tmp_path_factory.mktemp("docs")) as server:
        yield f"{server.url}/docs"


def get(url: str, **more: Any) -> httpx2.Response:
    return httpx2.get(url, **PATIENT, **more)


def test_every_link_leads_to_a_page_and_an_anchor_without_a_token(docs: str) -> None:
    pages, links = crawl(docs)
    topics = {f"{docs}/{topic.name}" for topic in documents.topics()}
    assert topics | {f"{docs}/openapi", f"{docs}/style.css", docs.removesuffix("docs") + "openapi.json"} <= pages.keys()
    assert_links_lead_somewhere(pages, links)


@pytest.mark.parametrize("path", ["", "?q=retry", "/sinks", "/openapi", "/no-such-topic", "/style.css"])
def test_pages_have_and_obey_a_strict_content_security_policy(docs: str, path: str) -> None:
    answer = get(docs + path)
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    names = Page(answer.text).names
    assert not names & {"script", "style", "img", "iframe"}
    assert not [name for name in names if name.startswith("on")]


def test_a_page_has_a_title_a_viewport_and_links_to_all_topics(docs: str) -> None:
    answer = get(f"{docs}/sinks")
    assert "<title>Sinks - receiver</title>" in answer.text
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in answer.text
    assert {topic.name for topic in documents.topics()} | {"openapi"} <= set(Page(answer.text).links)


def test_a_page_leads_back_to_the_overview(docs: str) -> None:
    for path in ("", "/pages"):
        [_, _, home, overview, *_] = Page(get(docs + path).text).links
        assert {urljoin(docs + path, link) for link in (home, overview)} == {docs.removesuffix("docs")}


def test_a_page_has_pictures(docs: str) -> None:
    pictures = [link for link in Page(get(f"{docs}/pages").text).links if link.endswith(".png")]
    assert len(pictures) == 2
    for picture in pictures:
        answer = get(urljoin(f"{docs}/pages", picture))
        assert answer.headers["content-type"] == "image/png"
        assert answer.content.startswith(b"\x89PNG")
        assert len(answer.content) < 100_000


def test_the_stylesheet_has_a_dark_mode(docs: str) -> None:
    answer = get(f"{docs}/style.css")
    assert answer.headers["content-type"] == "text/css; charset=utf-8"
    assert "prefers-color-scheme: dark" in answer.text


def test_head_is_answered_like_get_without_a_body(docs: str) -> None:
    head, whole = httpx2.head(f"{docs}/sinks", **PATIENT), get(f"{docs}/sinks")
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-length", "content-type", "etag", "content-security-policy"):
        assert head.headers[name] == whole.headers[name]


def test_an_unchanged_page_is_answered_304(docs: str) -> None:
    etag = get(f"{docs}/sinks").headers["etag"]
    for known in (etag, f'"other", W/{etag}'):
        again = get(f"{docs}/sinks", headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
        assert again.headers["cache-control"] == "no-cache"
    assert get(f"{docs}/sinks", headers={"If-None-Match": '"other"'}).status_code == 200


def test_search_finds_sections_and_marks_the_words(docs: str) -> None:
    answer = get(docs, params={"q": "dead letter"})
    assert '<form role="search" action="docs">' in answer.text
    assert 'name="q" value="dead letter"' in answer.text
    assert "<mark>dead</mark>" in answer.text.lower()
    assert any(link.startswith("docs/sinks#") for link in Page(answer.text).links)


def test_search_covers_the_api_reference(docs: str) -> None:
    page = Page(get(docs, params={"q": "tagVerdict GET /api/messages"}).text)
    assert "docs/openapi#get-apimessages" in page.links


def test_a_query_is_shown_as_text(docs: str) -> None:
    answer = get(docs, params={"q": '"><script>alert(1)</script>'})
    assert answer.status_code == 200
    assert "script" not in Page(answer.text).names
    assert "No topic mentions" in answer.text


def test_an_unknown_topic_is_404_with_a_suggestion(docs: str) -> None:
    answer = get(f"{docs}/sinsk")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert 'Did you mean <a href="sinks">Sinks</a>' in answer.text
    strange = get(f"{docs}/%3Cscript%3E")
    assert strange.status_code == 404
    assert "script" not in Page(strange.text).names


def test_a_path_cannot_leave_the_documentation(docs: str) -> None:
    for path in ("/..%2Fsettings.py", "/%2e%2e%2fsettings.py", "/sinks.md"):
        assert get(docs + path).status_code == 404


def test_a_trailing_slash_is_redirected(docs: str) -> None:
    answer = get(f"{docs}/", follow_redirects=False)
    assert (answer.status_code, urljoin(f"{docs}/", answer.headers["location"])) == (308, docs)


def test_the_documentation_is_read_only(docs: str) -> None:
    assert httpx2.post(docs, **PATIENT).status_code == 405


@pytest.mark.anyio
async def test_links_of_a_mounted_application_stay_under_its_prefix(tmp_path: Path) -> None:
    receiver = create_app(GivenSettings(data_dir=tmp_path))
    app = Starlette(routes=[Mount("/sms", receiver)], lifespan=lambda _: receiver.router.lifespan_context(receiver))
    async with web.serving(app) as base:
        pages, links = await asyncio.to_thread(crawl, f"{base}/sms/docs")
    assert_links_lead_somewhere(pages, links)
    assert {page for page in pages if not page.startswith(f"{base}/sms/")} == set()
    assert f"{base}/sms/docs/openapi" in pages
