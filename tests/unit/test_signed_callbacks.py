"""Callbacks of a provider that signs them: the signature decides, and HTTP Basic does not count."""

import asyncio
import hashlib
import hmac
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from starlette.types import Message

from receiver.domain.events import Api, Callback
from receiver.intake.endpoint import Admission, CallbackEndpoints, Credentials
from receiver.providers import PROVIDERS
from receiver.providers.base import CallbackUrl

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BODY = b'{"id": "1"}'
URL = CallbackUrl("/callbacks/signed")
BASIC = (b"authorization", b"Basic " + b64encode(b"user:password"))


def digest(key: str, body: bytes) -> str:
    return hmac.new(key.encode(), body, hashlib.sha256).hexdigest()


def has_signature(key: str, headers: Mapping[str, str], body: bytes, now: datetime) -> bool:
    assert now == NOW
    return hmac.compare_digest(headers.get("x-signature", ""), digest(key, body))


PLAIN = PROVIDERS[Api.V2]
SIGNING = replace(PLAIN, urls=(URL,), signature=has_signature)


class Journal:
    def __init__(self) -> None:
        self.callbacks: list[Callback] = []

    def append(self, callback: Callback) -> asyncio.Future[None]:
        self.callbacks.append(callback)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


class Observer:
    def rejected(self, reason: str) -> None:
        self.reason = reason


async def answer_to(*headers: tuple[bytes, bytes], provider: Any = SIGNING, **admission: Any) -> tuple[int, int]:
    """The status of the answer to a request, and how many callbacks are in the journal then."""
    journal, answers = Journal(), list[Message]()
    endpoints = CallbackEndpoints(
        journal,
        admission=Admission(
            **{
                "credentials": Credentials(["user:password"]),
                "keys": {"v2": "key"},
                "networks": [],
                "max_body_bytes": 100,
                **admission,
            }
        ),
        observer=Observer(),
        clock=lambda: NOW,
    )
    scope = {"type": "http", "method": "POST", "query_string": b"", "headers": list(headers)}

    async def receive() -> Message:
        return {"type": "http.request", "body": BODY, "more_body": False}

    async def send(message: Message) -> None:
        answers.append(message)

    await endpoints.answer(provider, URL, scope, receive, send)
    return answers[0]["status"], len(journal.callbacks)


def signed(key: str = "key") -> tuple[bytes, bytes]:
    return b"x-signature", digest(key, BODY).encode()


async def test_callback_with_a_valid_signature_is_accepted() -> None:
    assert await answer_to(signed()) == (200, 1)


@pytest.mark.parametrize("headers", [[], [BASIC], [signed("other")], [BASIC, signed("other")]])
async def test_callback_without_a_valid_signature_is_401(headers: list[tuple[bytes, bytes]]) -> None:
    assert await answer_to(*headers) == (401, 0)


async def test_without_a_key_no_signature_is_valid() -> None:
    assert await answer_to(signed(""), keys={}) == (401, 0)
    assert await answer_to(signed(""), keys={"v2": ""}) == (401, 0)


async def test_with_authentication_off_no_signature_is_needed() -> None:
    assert await answer_to(credentials=None) == (200, 1)


async def test_signature_does_not_replace_the_credentials_of_another_provider() -> None:
    assert await answer_to(signed(), provider=PLAIN) == (401, 0)
    assert await answer_to(BASIC, provider=PLAIN) == (200, 1)
