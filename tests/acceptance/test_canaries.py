"""Canaries: a secret or personal value of its own in every field that can hold one, searched for in all output.

Secrets of the settings and of requests must not be in any output. What messages say (texts, numbers, tags) must not be
in the log at any level, nor in what anybody sees without a token that may read messages.
"""

import base64
import json
import re
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import httpx2
import pytest

from tests.brokers.kafka import KafkaCluster
from tests.brokers.own import free_port
from tests.factories import v2_event
from tests.processes import PATIENT, Server, receiver, serving, until, whole_lines
from tests.servers import on_postgres, random_name

V1, V2 = "/callbacks/bandwidth/v1", "/callbacks/bandwidth/v2"


def canary(name: str) -> str:
    return f"canary{name}5e7a"


SETTINGS_SECRETS: Final = (
    "callbackpassword", "oldpassword", "apitoken", "readtoken", "tagkey", "databasepassword", "hookurl", "hookurluser",
    "hookheader", "hooksecret", "hookwhsec", "rediswrong", "rabbitwrong", "natstoken", "natspassword", "kafkapassword",
    "kafkauser", "closedurl", "referenced",
)  # fmt: skip
REQUEST_SECRETS: Final = (
    "guess", "bearerguess", "basicguess", "cookie", "querytoken", "forwardedkey", "wrongbody", "wrongparameter",
)  # fmt: skip
PRIVATE: Final = (
    "text", "inboundtext", "v1text", "tag", "description", "media", "unreadable", "unknowntype", "toolarge",
    "carrier", "sender", "registered", "echoed",
)  # fmt: skip
NUMBERS: Final = ("+19195550147", "+19195550148", "+19195550149", "9195550150")
# What is changed by a reload, and is wrong there.
RELOADED: Final = ("reloadedurl", "reloadedkey", "reloadedheader", "reloadedpassword")


def forms(secret: str) -> set[str]:
    """A value, and what base64 makes of it wherever it begins."""
    encoded = {base64.b64encode(b"x" * shift + secret.encode())[4:-4].decode() for shift in range(3)}
    return {secret, *encoded}


def found_in(text: str, names: tuple[str, ...], also: tuple[str, ...] = ()) -> set[str]:
    """The canaries in a text, each with what is around it."""
    values = {form for name in names for form in forms(canary(name))} | set(also)
    places = [place for value in values for place in re.finditer(re.escape(value), text)]
    return {text[max(0, place.start() - 80) : place.end() + 20] for place in places}


# --- the server, its sinks and its settings


class _Echo(BaseHTTPRequestHandler):
    """Answers with the status in the path, and with all that it was sent."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        answer = f"{self.headers}{canary('echoed')}".encode() + body
        self.send_response(int(self.path.strip("/").split("/")[0]), canary("echoed"))
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None: ...


@contextmanager
def echoing_webhook() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Echo) as server:
        server.daemon_threads = True
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server.server_port
        server.shutdown()


def hook(name: str, port: int, path: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "webhook",
        "url": f"http://{canary('hookurluser')}:{canary('hookurl')}@127.0.0.1:{port}/{path}",
        "headers": {"X-Api-Key": canary("hookheader")},
        "secrets": [canary("hooksecret"), f"whsec_{base64.b64encode(canary('hookwhsec').encode()).decode()}"],
        "egress_allow": ["127.0.0.1/32"],
        "start": "beginning",
    }


@pytest.fixture
def sinks(nats_url: str, redis_url: str, rabbitmq_url: str, kafka: KafkaCluster) -> Iterator[list[dict[str, Any]]]:
    """Sinks of every kind: some publish, some are refused, some cannot log in, some cannot connect."""
    redis, rabbit = urlsplit(redis_url), urlsplit(rabbitmq_url)
    closed = free_port()
    topic = random_name("canary")
    kafka.create_topic(topic)
    login = {"mechanism": "PLAIN", "username": canary("kafkauser"), "password": canary("kafkapassword")}
    with echoing_webhook() as port:
        yield [
            hook("hook", port, "200"),
            hook("refusing", port, "422"),
            hook("failing", port, "500"),
            hook("closed", closed, canary("closedurl")),
            {"name": "bus", "type": "nats", "servers": [nats_url], "token": canary("natstoken")},
            {
                "name": "bus-down",
                "type": "nats",
                "servers": [f"nats://127.0.0.1:{closed}"],
                "user": "u",
                "password": canary("natspassword"),
            },
            {
                "name": "cache",
                "type": "redis",
                "url": f"redis://u:{canary('rediswrong')}@{redis.hostname}:{redis.port}/0",
            },
            {"name": "cache-good", "type": "redis", "url": redis_url, "stream": "canary:events", "maxlen": 10},
            {
                "name": "ops",
                "type": "rabbitmq",
                "url": f"amqp://u:{canary('rabbitwrong')}@{rabbit.hostname}:{rabbit.port}/",
                "exchange": "canary",
            },
            {"name": "ops-good", "type": "rabbitmq", "url": rabbitmq_url, "exchange": "", "routing_key": "no-such"},
            {"name": "lake", "type": "kafka", "bootstrap": [kafka.bootstrap], "topic": topic},
            {
                "name": "lake-login",
                "type": "kafka",
                "bootstrap": [kafka.bootstrap],
                "security": {"protocol": "SASL_PLAINTEXT", **login},
            },
            {"name": "file", "type": "jsonl", "path": "events.jsonl"},
        ]


def settings_of(sinks: list[dict[str, Any]], level: str) -> dict[str, str]:
    tables = [{"start": "beginning", **table} for table in sinks]
    return {
        "CALLBACK_CREDENTIALS": json.dumps([f"u:{canary('callbackpassword')}", f"old:{canary('oldpassword')}"]),
        "API_TOKENS": json.dumps([f"ops:admin:{canary('apitoken')}", f"support:read:{canary('readtoken')}"]),
        "TAG_KEYS": json.dumps([f"k1:{canary('tagkey')}"]),
        "LOG_LEVEL": level,
        "SINKS": json.dumps(tables),
    }


def with_password(url: str) -> str:
    """The URL of a database whose server trusts everybody, with a password."""
    parts = urlsplit(url)
    user = (parts.username or "postgres") + f":{canary('databasepassword')}"
    return parts._replace(netloc=f"{user}@{parts.hostname}:{parts.port}").geturl()


# --- what is sent


def traffic(server: Server) -> list[str]:
    """Sends callbacks and requests, good ones and wrong ones; returns the answers that show no messages."""
    shown: list[str] = []
    callbacks = httpx2.Client(base_url=server.url, auth=("u", canary("callbackpassword")), **PATIENT)
    strangers = httpx2.Client(base_url=server.url, **PATIENT)
    with callbacks, strangers:

        def show(answer: httpx2.Response, *statuses: int) -> None:
            assert answer.status_code in statuses, answer.text
            shown.append(f"{answer.headers}\n{answer.text}")

        sent = {
            "text": canary("text"),
            "tag": canary("tag"),
            "from": NUMBERS[1],
            "owner": NUMBERS[1],
            "to": [NUMBERS[0]],
            "media": [f"https://media.example/{canary('media')}.jpg"],
        }
        out = v2_event("out-1", "message-failed", errorCode=4470, description=canary("description"), message=sent)
        received = {**sent, "text": canary("inboundtext"), "direction": "in", "from": NUMBERS[2]}
        inbound = v2_event("in-1", "message-received", carrierName=canary("carrier"), message=received)
        show(callbacks.post(V2, json=[out, inbound]), 200)
        v1 = {"eventType": "sms", "direction": "in", "messageId": "m-v1", "state": "received", "text": canary("v1text")}
        show(callbacks.get(f"{V1}?{urlencode({**v1, 'from': NUMBERS[3], 'to': canary('sender')})}"), 200)
        show(callbacks.post(V2, content=b'{"text": "' + canary("unreadable").encode()), 200)
        show(callbacks.post(V2, json=[v2_event("odd-1", canary("unknowntype"), message=sent)]), 200)
        show(callbacks.post(V2, content=canary("toolarge").encode() * 100_000), 413)
        show(strangers.post(V2, json=[out], auth=("u", canary("guess"))), 401)
        odd = {"Authorization": f"Digest {canary('basicguess')}", "Cookie": canary("cookie")}
        show(strangers.post(V2, json=[out], headers={**odd, "X-Api-Key": canary("forwardedkey")}), 401)
        show(strangers.post(f"/callbacks/none?token={canary('querytoken')}", json=[out], headers=odd), 404)
        bearer = {"Authorization": f"Bearer {canary('bearerguess')}", "Cookie": canary("cookie")}
        for path in ("/api/messages", "/api/sinks", "/metrics", "/api/status", "/v1/users/u/messages"):
            show(strangers.get(path, headers=bearer), 401)
            show(strangers.get(f"{path}?access_token={canary('querytoken')}"), 401)
        admin = {"Authorization": f"Bearer {canary('apitoken')}"}
        show(strangers.post("/api/tags", headers=admin, json={"value": {"x": canary("wrongbody")}}), 400)
        show(strangers.post("/api/messages", headers=admin, content=canary("wrongbody")), 415)
        show(strangers.get(f"/api/messages?size={canary('wrongparameter')}", headers=admin), 400)
        registered = {"id": "reg-1", "to": [NUMBERS[0]], "from": NUMBERS[1], "text": canary("registered")}
        strangers.post("/api/messages", headers=admin, json={**registered, "time": "2026-01-01T00:00:00Z"})
        for path in ("/docs", "/openapi.json", "/healthz", "/readyz", "/", "/docs/settings"):
            show(strangers.get(path), 200, 503)
        return shown


def status_pages(server: Server) -> str:
    """What the API and the metrics say about the installation, not about messages."""
    admin = {"Authorization": f"Bearer {canary('apitoken')}"}
    with httpx2.Client(base_url=server.url, headers=admin, **PATIENT) as client:
        answers = [client.get(path) for path in ("/api/status", "/metrics", "/api/sinks", "/api/sinks/hook")]
        openmetrics = client.get("/metrics", headers={"Accept": "application/openmetrics-text"})
        tests = [client.post(f"/api/sinks/{name}/test") for name in ("hook", "closed", "cache", "ops", "lake-login")]
    assert {answer.status_code for answer in answers} == {200}
    return "\n".join(answer.text for answer in (*answers, openmetrics, *tests))


def everything_shown(server: Server) -> str:
    """What the API shows of messages: private, but without secrets of the settings."""
    admin = {"Authorization": f"Bearer {canary('apitoken')}"}
    paths = ("/api/messages", "/api/callbacks", "/api/dead-letters", "/api/events", "/v1/users/u/messages")
    with httpx2.Client(base_url=server.url, headers=admin, **PATIENT) as client:
        listed = [client.get(path) for path in paths[:4]]
        one = [client.get(f"/api/callbacks/{entry['id']}") for entry in listed[1].json()]
        listed.append(client.get("/api/messages/out-1/events"))
    return "\n".join(answer.text for answer in (*listed, *one))


COMMANDS: Final = ("settings", "status", "check", "sinks list", "sinks test --all")


def commands(folder: Path, settings: dict[str, str], *words: str) -> str:
    """What the commands say about the installation."""
    ended = [receiver(folder, *command.split(), **settings) for command in words]
    printed = [(one.stdout + one.stderr).decode() for one in ended]
    assert all(printed)
    return "\n".join(printed)


@contextmanager
def broken_storage(folder: Path, postgres_url: str | None) -> Iterator[None]:
    """While this lasts, the database refuses each new message, and names its values if it can."""
    if postgres_url is None:
        with sqlite3.connect(folder / "receiver-data/receiver.db", timeout=30) as database:
            database.execute("ALTER TABLE messages RENAME TO gone")
        yield
        with sqlite3.connect(folder / "receiver-data/receiver.db", timeout=30) as database:
            database.execute("ALTER TABLE gone RENAME TO messages")
    else:
        check = "CONSTRAINT canary CHECK (id <> 'broken-1')"
        on_postgres(postgres_url, f"ALTER TABLE messages ADD {check} NOT VALID")
        yield
        on_postgres(postgres_url, "ALTER TABLE messages DROP CONSTRAINT canary")


WEBHOOK: Final = '[[sinks]]\nname = "a"\ntype = "webhook"\nurl = '
WRONG_RELOADS: Final = (
    f'tag_keys = ["{canary("reloadedkey")}"]',
    f'callback_credentials = ["{canary("reloadedpassword")}"]',
    f'{WEBHOOK}"gopher://u:{canary("reloadedurl")}@127.0.0.1/"',
    f'{WEBHOOK}"https://crm.example/"\nheaders = {{Host = "{canary("reloadedheader")}"}}',
    f'[[sinks]]\nname = "a"\ntype = "redis"\nurl = "redis://u:{canary("reloadedpassword")}@127.0.0.1:x/"',
    f'tag_policy = "{canary("reloadedkey")}"\napi_tokens = "{canary("reloadedpassword")}',
)


def unreachable(server: Server) -> set[str]:
    """The sinks that the log calls down."""
    messages = ("sink is down", "sink cannot be reached", "sink did not start")
    return {line["sink"] for message in messages for line in lines(server, message)}


def lines(server: Server, message: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, whole_lines(server.errors)) if line["message"] == message]


@pytest.mark.parametrize(
    ("engine", "level"),
    [
        ("sqlite", "info"),
        ("postgresql", "debug"),
        pytest.param("sqlite", "debug", marks=pytest.mark.slow),
        pytest.param("postgresql", "info", marks=pytest.mark.slow),
    ],
)
def test_no_canary_gets_out(
    tmp_path: Path,
    request: pytest.FixtureRequest,
    sinks: list[dict[str, Any]],
    engine: str,
    level: str,
) -> None:
    settings = settings_of(sinks, level)
    postgres_url = request.getfixturevalue("postgres_url") if engine == "postgresql" else None
    if postgres_url is not None:
        settings["DATABASE_URL"] = with_password(postgres_url)
    # What the environment sets wins over the file, so what is wrong has to be in the file alone.
    environment = {name: value for name, value in settings.items() if name in ("LOG_LEVEL", "DATABASE_URL")}
    # SQLite misses a table, which stops the processor; PostgreSQL refuses a row, which is quarantined.
    refusal = "callbacks cannot be processed" if engine == "sqlite" else "a callback cannot be stored as events"
    file = tmp_path / "receiver.toml"
    good = "\n".join(
        [
            *(f"{name.lower()} = {settings[name]}" for name in ("CALLBACK_CREDENTIALS", "API_TOKENS", "TAG_KEYS")),
            f"sinks = {as_toml(json.loads(settings['SINKS']))}",
        ]
    )
    file.write_text(good, "utf-8")
    with serving(tmp_path, settings=environment) as server:
        shown = traffic(server)
        for sink in ("refusing", "failing"):
            until(lambda sink=sink: any(line["sink"] == sink for line in lines(server, "attempt failed")))
        until(lambda: {"closed", "cache", "ops", "lake-login", "bus-down"} <= unreachable(server))
        pages = status_pages(server)
        everything = everything_shown(server)
        with broken_storage(tmp_path, postgres_url):
            private = {"text": canary("text"), "tag": canary("tag"), "from": NUMBERS[1], "to": [NUMBERS[0]]}
            body = [v2_event("broken-1", message=private)]
            auth = ("u", canary("callbackpassword"))
            assert httpx2.post(server.url + V2, json=body, auth=auth, **PATIENT).status_code == 200
            until(lambda: lines(server, refusal))
            pages += status_pages(server)
            pages += commands(tmp_path, environment, "status")
        until(lambda: engine == "postgresql" or lines(server, "callbacks are processed again"))
        for number, wrong in enumerate(WRONG_RELOADS, start=1):
            kept = "\n".join(line for line in good.splitlines() if line.partition(" ")[0] not in wrong)
            file.write_text(f"{kept}\n{wrong}\n", "utf-8")
            server.process.send_signal(signal.SIGHUP)
            until(lambda number=number: len(lines(server, "settings not reloaded")) == number)
        file.write_text(good, "utf-8")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: lines(server, "settings reloaded"))
        pages += commands(tmp_path, environment, *COMMANDS)
        assert server.stop() == 0
        log = server.errors.read_text("utf-8")
        output = server.output.read_text("utf-8")
    secrets = (*SETTINGS_SECRETS, *RELOADED)
    for text in (log, output, pages, *shown):
        assert found_in(text, (*secrets, *REQUEST_SECRETS, *PRIVATE), NUMBERS) == set()
    assert found_in(everything, secrets) == set()
    # The traffic has arrived: canaries that were not sent would not be found either.
    for name in ("text", "inboundtext", "v1text", "tag", "media", "unreadable", "description"):
        assert canary(name) in everything
    levels = {line["level"] for line in map(json.loads, log.splitlines())}
    assert ("debug" in levels) is (level == "debug")


def as_toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {as_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return json.dumps(value)


# --- starts that fail

WRONG: Final = {
    "a database that cannot be reached": {
        "DATABASE_URL": f"postgresql://u:{canary('databasepassword')}@127.0.0.1:1/x",
        "CALLBACK_CREDENTIALS": f'["u:{canary("callbackpassword")}"]',
        "API_TOKENS": f'["{canary("apitoken")}"]',
    },
    "a database URL with a wrong scheme": {"DATABASE_URL": f"mysql://u:{canary('databasepassword')}@127.0.0.1/x"},
    "a database URL with a wrong port": {"DATABASE_URL": f"postgresql://u:{canary('databasepassword')}@127.0.0.1:x/x"},
    "credentials without a user": {"CALLBACK_CREDENTIALS": f'["{canary("callbackpassword")}"]'},
    "credentials that are no list": {"CALLBACK_CREDENTIALS": f'"u:{canary("callbackpassword")}"'},
    "credentials that are no JSON": {"CALLBACK_CREDENTIALS": f"[u:{canary('callbackpassword')}"},
    "a token with a wrong right": {"API_TOKENS": f'["ops:root:{canary("apitoken")}"]'},
    "a token that is no text": {"API_TOKENS": f'[{{"x": "{canary("apitoken")}"}}]'},
    "a tag key without an id": {"TAG_KEYS": f'["{canary("tagkey")}"]'},
    "two tag keys of one id": {"TAG_KEYS": f'["k1:{canary("tagkey")}", "k1:{canary("tagkey")}2"]'},
    "a secret in the place of another setting": {"TAG_POLICY": canary("tagkey"), "PORT": canary("apitoken")},
    "a setting that does not exist": {"API_TOKEN": canary("apitoken")},
    "a sink without a type": {"SINKS": f'[{{"name": "a", "url": "https://u:{canary("hookurl")}@crm.example/"}}]'},
    "a sink with an unknown field": {
        "SINKS": json.dumps([{"name": "a", "type": "redis", "url": "redis://h/0", "password": canary("rediswrong")}])
    },
    "a reference to nothing": {"SINKS": f'[{{"name": "a", "type": "webhook", "url": "env:{canary("referenced")}"}}]'},
    "sinks that are no JSON": {"SINKS": f'[{{"url": "https://u:{canary("hookurl")}@crm.example/"'},
}


@pytest.mark.parametrize("settings", WRONG.values(), ids=WRONG.keys())
def test_start_that_fails_names_no_secret(tmp_path: Path, settings: dict[str, str]) -> None:
    # The name of a missing variable helps; its value would be the secret.
    secrets = tuple(name for name in SETTINGS_SECRETS if name != "referenced")
    ended = receiver(tmp_path, "serve", **settings)
    printed = (ended.stdout + ended.stderr).decode()
    assert ended.returncode
    assert found_in(printed, secrets) == set()
    assert "Traceback" not in printed


def test_canaries_are_found_in_every_form() -> None:
    """The searches above would pass if nothing were found."""
    pair = base64.b64encode(f"user:{canary('guess')}".encode()).decode()
    assert found_in(f"Basic {pair}", ("guess",))
    assert found_in(f"x {canary('text')} y", ("text",))
    assert found_in("call +19195550147", (), NUMBERS)
    assert not found_in("call +19195550100", ("text",), NUMBERS)
