"""Attacks on the query API and mistakes of its users: no response reveals more than it must."""

import asyncio
import re
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest
from httpx2 import AsyncClient, Response

from receiver.app import Receiver
from receiver.settings import Settings
from receiver.storage.database import Database
from tests.rows import callback, insert, insert_callbacks, message, minutes, problem
from tests.web import ADMIN, AUTHORIZED, READER, TAG_KEY, application, basic, client, serving

pytestmark = pytest.mark.anyio

CANARY = "canary-4f1d"
SECRETS = (ADMIN, READER, TAG_KEY[1], CANARY)


@pytest.fixture
async def api(database: Database) -> AsyncIterator[AsyncClient]:
    async with client(application(database), {}) as opened:
        yield opened


@pytest.fixture
async def small(sqlite_url: str) -> AsyncIterator[AsyncClient]:
    """The API on SQLite alone, for tests that do not depend on the database."""
    database = Database(sqlite_url)
    async with client(application(database), {}) as opened:
        yield opened
    await database.close()


def is_problem(answer: Response, status: int) -> bool:
    """Whether a response is the problem with this status, without a secret."""
    assert answer.status_code == status, answer.text
    assert not any(secret in answer.text or secret in str(answer.headers) for secret in SECRETS)
    assert answer.headers["cache-control"] == "no-store"
    body = answer.json()
    return answer.headers["content-type"] == "application/problem+json" and body["status"] == status


@pytest.mark.parametrize(
    "authorization",
    [
        pytest.param(None, id="none"),
        pytest.param("", id="empty"),
        pytest.param("Bearer", id="no token"),
        pytest.param("Bearer ", id="empty token"),
        pytest.param(f"Bearer {CANARY}", id="wrong token"),
        pytest.param(f"Bearer {ADMIN}x", id="too long"),
        pytest.param(f"Bearer {ADMIN[:-1]}", id="too short"),
        pytest.param(f"Bearer {ADMIN.upper()}", id="other case"),
        pytest.param(f"Bearer reporting:read:{READER}", id="the whole entry"),
        pytest.param(f"Token {ADMIN}", id="another scheme"),
        pytest.param(ADMIN, id="no scheme"),
        pytest.param(basic(ADMIN), id="basic, which is for the Catapult routes"),
    ],
)
async def test_every_address_without_a_token_is_401(small: AsyncClient, authorization: str | None) -> None:
    headers = {"Authorization": authorization} if authorization is not None else {}
    for path in ("/api/messages", "/api/messages/m?x=1", "/api/events", "/api/no-such-thing"):
        answer = await small.get(path, headers=headers)
        assert is_problem(answer, 401)
        assert answer.headers["www-authenticate"].startswith("Bearer ")


async def test_two_authorization_headers_are_401(small: AsyncClient) -> None:
    headers = [("Authorization", f"Bearer {ADMIN}"), ("Authorization", "Bearer other")]
    assert is_problem(await small.get("/api/messages", headers=headers), 401)


async def test_token_in_the_query_string_is_401(small: AsyncClient) -> None:
    assert is_problem(await small.get(f"/api/messages?access_token={ADMIN}"), 401)


async def test_read_token_is_403_for_post(api: AsyncClient, database: Database) -> None:
    await insert_callbacks(database, callback("01", body=b"{", problems=[problem("unreadable")]))
    reader = {"Authorization": f"Bearer {READER}"}
    assert (await api.get("/api/messages", headers=reader)).status_code == 200
    assert (await api.head("/api/messages", headers=reader)).status_code == 200
    for path in ("/api/callbacks/01/reprocess", "/api/callbacks/reprocess", "/api/tags", "/api/messages"):
        assert is_problem(await api.post(path, headers=reader, json={"value": "v"}), 403)
    assert (await api.get("/api/callbacks/01", headers=reader)).json()["outcome"] == "quarantined"


async def test_api_auth_none_needs_no_token(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    async with client(application(database, tokens=None), {}) as api:
        assert (await api.get("/api/messages")).status_code == 200
        assert (await api.get("/v1/users/u/messages")).status_code == 200
    await database.close()


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/api/messages", {"GET", "HEAD", "POST"}),
        ("DELETE", "/api/messages/m", {"GET", "HEAD"}),
        ("PUT", "/api/callbacks/01", {"GET", "HEAD"}),
        ("GET", "/api/callbacks/01/reprocess", {"POST"}),
        ("GET", "/api/tags", {"POST"}),
        ("OPTIONS", "/api/messages", {"GET", "HEAD", "POST"}),
        ("TRACE", "/api/messages", {"GET", "HEAD", "POST"}),
        ("PROPFIND", "/api/events", {"GET", "HEAD"}),
        ("POST", "/openapi.json", {"GET", "HEAD"}),
    ],
)
async def test_other_method_is_405_with_allow(small: AsyncClient, method: str, path: str, allow: set[str]) -> None:
    answer = await small.request(method, path, headers=AUTHORIZED)
    assert is_problem(answer, 405)
    assert set(answer.headers["allow"].split(", ")) == allow


@pytest.mark.parametrize(
    "path",
    [
        "/api",
        "/api/",
        "/api/messages/",
        "/api//messages",
        "//api/messages",
        "/api/%6Dessages",
        "/%61pi/messages",
        "/api/messages%2F",
        "/api/messages%3Fsize=1",
        "/API/messages",
        "/api/..;/api/messages",
        "/callbacks/..;/api/messages",
        "/api/codes/%2e%2e/messages",
        "/api/messages/m/events/",
        "/api/callbacks/01/",
        "/v1/users//messages",
        "/v1/users/a%2Fb/messages/",
        "/api/messages/%00",
        "/api/messages/%FF",
        "/api/messages/" + "x" * 50_000,
        "/api/callbacks/%00",
        "/api/codes/%00",
        "/api/codes/99999999999999999999",
        "/nowhere",
    ],
)
async def test_no_path_has_a_second_spelling(small: AsyncClient, path: str) -> None:
    password = path.startswith("/v1")
    headers = {"Authorization": basic(ADMIN)} if password else AUTHORIZED
    answer = await small.get(path, headers=headers)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == ("application/json" if password else "application/problem+json")


async def raw(
    url: str, target: bytes, method: bytes = b"GET", *, authorization: str = AUTHORIZED["Authorization"]
) -> bytes:
    """The response to a request line that a client library refuses to send."""
    reader, writer = await asyncio.open_connection(*urlsplit(url).netloc.split(":"))
    head = b"%b %b HTTP/1.1\r\nHost: receiver.example\r\nConnection: close\r\nAuthorization: %b\r\n\r\n"
    writer.write(head % (method, target, authorization.encode()))
    async with asyncio.timeout(30):
        answer = await reader.read()
    writer.close()
    return answer


async def test_a_real_server_routes_by_the_same_spelling(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    await insert(database, message("a/b"))
    async with serving(application(database)) as url:
        for target in (
            b"/api/./messages",
            b"/api/x/../messages",
            b"/api/messages/a/b",
            b"/api/\xffmessages",
            b"/api/%",
        ):
            assert (await raw(url, target)).split(b"\r\n")[0] in (
                b"HTTP/1.1 404 Not Found",
                b"HTTP/1.1 400 Bad Request",
            )
        for target in (b"/api/messages", b"/api/messages/a%2Fb", b"/api/messages/a%2fb/events"):
            assert (await raw(url, target)).startswith(b"HTTP/1.1 200 OK")
        absolute = await raw(url, b"http://other.example/api/messages?size=0")
        assert absolute.startswith(b"HTTP/1.1 400 Bad Request")
        head, _, body = (await raw(url, b"/api/messages", b"HEAD")).partition(b"\r\n\r\n")
        assert (head.split(b"\r\n")[0], body) == (b"HTTP/1.1 200 OK", b"")
    await database.close()


PAYLOADS = (
    "' OR '1'='1",
    "'; DROP TABLE messages; --",
    '" OR ""="',
    "%' OR 1=1 --",
    "{0.__class__}",
    "%s%s%n",
    "${jndi:ldap://x}",
    "\\' OR 1=1 --",
    "<script>alert(1)</script>",
    "a\r\nSet-Cookie: x=1",
    "\u202e\u0000",
)
TEXTS = ("q", "tag", "tagPrefix", "applicationId")
NUMBERS = ("from", "to", "number")
CHOICES = ("sortOrder", "state", "deliveryState", "status", "direction", "tagVerdict", "contradicted", "cursor", "size")


@pytest.mark.parametrize("payload", PAYLOADS)
async def test_sql_injection_in_parameters(api: AsyncClient, database: Database, payload: str) -> None:
    await insert(database, message("m-1", tag="t"))
    for name in TEXTS:
        answer = await api.get("/api/messages", params={name: payload}, headers=AUTHORIZED)
        assert (answer.status_code, answer.json()) == (200, [])
    for name in NUMBERS:
        answer = await api.get("/api/messages", params={name: payload}, headers=AUTHORIZED)
        assert answer.json() == [] if answer.status_code == 200 else is_problem(answer, 400)
    for name in (*CHOICES, payload):
        answer = await api.get("/api/messages", params={name: payload}, headers=AUTHORIZED)
        assert is_problem(answer, 400)
        assert len(answer.json()["errors"]) == 1
    for name in ("outcome", "reason"):
        assert is_problem(await api.get("/api/callbacks", params={name: payload}, headers=AUTHORIZED), 400)
    assert len((await api.get("/api/messages", headers=AUTHORIZED)).json()) == 1


@pytest.mark.parametrize("payload", PAYLOADS[:-1])
async def test_stored_text_is_returned_unchanged_as_json(api: AsyncClient, database: Database, payload: str) -> None:
    await insert(
        database,
        message(
            payload,
            sender=payload,
            to=(payload,),
            text=payload,
            tag=payload,
            application_id=payload,
            carrier_name=payload,
            deliveries=({"delivery_description": payload},),
        ),
    )
    for name in TEXTS:
        answer = await api.get("/api/messages", params={name: payload}, headers=AUTHORIZED)
        assert [one["id"] for one in answer.json()] == [payload]
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "set-cookie" not in answer.headers


async def test_an_id_cannot_break_out_of_the_link(api: AsyncClient, database: Database) -> None:
    await insert(database, message('>; rel="evil"\r\nX: y', at=minutes(1)), message("b"))
    answer = await api.get("/api/messages", params={"size": 1, "tagVerdict": "unchecked"}, headers=AUTHORIZED)
    assert list(answer.links) == ["next"]
    assert "x" not in answer.headers


async def test_forged_host_header_cannot_break_out_of_the_link(api: AsyncClient, database: Database) -> None:
    await insert(database, message("a"), message("b"))
    for host in ('evil>; rel="x", <http://evil', "a b", "[::1", "ü"):
        answer = await api.get("/api/messages?size=1", headers=[*AUTHORIZED.items(), ("Host", host.encode())])
        assert answer.status_code == 200
        assert list(answer.links) == ["next"]
        assert "evil" not in answer.headers["link"]


async def test_path_cannot_break_out_of_the_link(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    await insert(database, message("a", api="v1"), message("b", api="v1"))
    async with serving(application(database)) as url:
        for user in (b"x>y", b"x%3Ey", b"x>;rel=x,<y", b"%0d%0aX:%20y", b"x\\y"):
            target = b"/v1/users/%b/messages?size=1" % user
            head = (await raw(url, target, authorization=basic(ADMIN))).partition(b"\r\n\r\n")[0].decode()
            [link] = re.findall("^link: (.*)$", head, re.M | re.I)
            assert re.fullmatch(r'<http://receiver\.example/v1/users/[^<>\s]+/messages\?[^<>\s]+>; rel="next"\r?', link)
            assert not re.search("^x:", head, re.M | re.I)
    await database.close()


async def test_path_with_a_line_feed_is_404_and_no_traceback(sqlite_url: str) -> None:
    settings = Settings(database_url=sqlite_url, callback_credentials=["u:p"], api_tokens=[ADMIN], worker="none")
    async with serving(Receiver(settings).app) as url:
        for target in (b"/%0a%0a", b"/api/messages%0a", b"/x%0d%0aX:%20y", b"/docs/x%0ay", b"/callbacks/%0a/x"):
            assert (await raw(url, target)).startswith(b"HTTP/1.1 404 Not Found")


async def test_cursor_cannot_bypass_a_filter(api: AsyncClient, database: Database) -> None:
    await insert(database, message("mine", tag="a"), message("other", tag="b", at=minutes(1)))
    other = (await api.get("/api/messages?size=1", headers=AUTHORIZED)).links["next"]["url"]
    answer = await api.get(f"{other}&tag=b", headers=AUTHORIZED)
    assert answer.json() == []


async def test_unexpected_error_is_500_without_details(api: AsyncClient, database: Database) -> None:
    await insert(database, message("broken", direction="sideways", text=CANARY, tag=CANARY))
    answer = await api.get("/api/messages", headers=AUTHORIZED)
    assert is_problem(answer, 500)
    assert "sideways" not in answer.text
    catapult = await api.get("/v1/users/u/messages", headers={"Authorization": basic(ADMIN)})
    assert is_problem(catapult, 500)


async def test_unavailable_database_is_503_with_retry_after() -> None:
    database = Database(f"postgresql://user:{CANARY}@127.0.0.1:1/nowhere")
    async with client(application(database)) as api:
        for path in ("/api/messages", "/api/messages/m", "/api/callbacks", "/api/callbacks/01", "/api/events"):
            answer = await api.get(path)
            assert is_problem(answer, 503)
            assert int(answer.headers["retry-after"]) > 0
        catapult = await api.get("/v1/users/u/messages", headers={"Authorization": basic(ADMIN)})
        assert (catapult.status_code, catapult.json()["category"]) == (503, "unavailable")
        assert (await api.get("/api/codes")).status_code == 200
    await database.close()


async def test_responses_are_not_cached(api: AsyncClient, database: Database) -> None:
    await insert(database, message("m", text="<script>alert(1)</script>"))
    for accept in ("application/json", "text/csv", "text/html"):
        answer = await api.get("/api/messages", headers={**AUTHORIZED, "Accept": accept})
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert "html" not in answer.headers["content-type"]
