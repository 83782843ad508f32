"""Signatures that Standard Webhooks libraries accept."""

import base64
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from receiver.sinks.webhook import key, signatures

RAW = bytes(range(24, 56))
WHSEC = "whsec_" + base64.b64encode(RAW).decode()


def headers(signed: str, event_id: str, timestamp: int) -> dict[str, str]:
    return {"webhook-id": event_id, "webhook-timestamp": str(timestamp), "webhook-signature": signed}


@given(body=st.text().map(str.encode), event_id=st.from_regex(r"[0-9a-f]{32}", fullmatch=True))
def test_a_signature_verifies(body: bytes, event_id: str) -> None:
    now = int(time.time())
    signed = signatures([key(WHSEC)], event_id, now, body)
    Webhook(WHSEC).verify(body, headers(signed, event_id, now), json_parse=False)


def test_every_secret_signs_so_that_either_side_may_change_first() -> None:
    now, old, new = int(time.time()), "the old secret", WHSEC
    signed = signatures([key(new), key(old)], "id", now, b"{}")
    assert len(signed.split(" ")) == 2
    for secret in (Webhook(new), Webhook(old.encode())):
        assert secret.verify(b"{}", headers(signed, "id", now)) == {}


@pytest.mark.parametrize(
    ("event_id", "shift", "body"),
    [("other", 0, b"{}"), ("id", 1, b"{}"), ("id", 0, b"[]")],
    ids=["id", "timestamp", "body"],
)
def test_everything_is_signed(event_id: str, shift: int, body: bytes) -> None:
    now = int(time.time())
    signed = signatures([RAW], "id", now, b"{}")
    with pytest.raises(WebhookVerificationError):
        Webhook(RAW).verify(body, headers(signed, event_id, now + shift))


@pytest.mark.parametrize(
    ("secret", "expected"),
    [
        (WHSEC, RAW),
        (WHSEC.rstrip("="), RAW),
        ("plain text, spaces too", b"plain text, spaces too"),
        ("Grüße", "Grüße".encode()),
    ],
    ids=["whsec", "without padding", "plain", "not ASCII"],
)
def test_a_secret_stands_for_its_key(secret: str, expected: bytes) -> None:
    assert key(secret) == expected


@pytest.mark.parametrize("secret", ["whsec_", "whsec_===", "whsec_!!!!", "whsec_A", "whsec_ö"])
def test_a_broken_whsec_is_refused(secret: str) -> None:
    with pytest.raises(ValueError, match="whsec_"):
        key(secret)
