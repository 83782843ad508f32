"""What the demo sends: a stream of requests to the sandbox, the same for the same seed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Any, Final

from receiver import tags

V1: Final = "/v1/users/u-demo/messages"
V2: Final = "/api/v2/users/u-demo/messages"
INBOUND: Final = "/sandbox/inbound"

_OURS: Final = ("+19195550101", "+19195550102", "+19195550103")
_THEIRS: Final = tuple(f"+1{area}55501{number:02}" for area in (206, 303, 415, 602, 704) for number in range(20))
_TEXTS: Final = (
    "Your order {} is on its way.",
    "Order {} was delivered to your door.",
    "Reminder: your appointment {} is tomorrow at 10:30.",
    "Your table {} is booked. See you at eight!",
    "We have received your payment for invoice {}. Thank you.",
    "Ticket {} was answered; reply STOP to hear no more of it.",
)
# v2 alone: v1 sends no character that GSM 03.38 lacks
_FANCY: Final = ("Order {} is packed \N{PACKAGE}", "Rendez-vous {} confirmé, à bientôt ☕")
_REPLIES: Final = ("Thanks!", "Yes", "Can I come at nine instead?", "STOP", "Who is this?")
_PICTURE: Final = "https://media.example.com/{}.jpg"
_AT_ONCE: Final = 3
_WITH_RECEIPT: Final = {"receiptRequested": "all"}


@dataclass(frozen=True, slots=True)
class Request:
    """One request: where to, with what, and how many messages it makes."""

    path: str
    body: Any
    messages: int = 1


@dataclass(frozen=True, slots=True)
class Wiring:
    """What the messages carry: where v1 shall call back, and the key that signs their tags."""

    v1_callback_url: str
    kid: str
    key: str


def traffic(wiring: Wiring, *, seed: int) -> Iterator[Request]:
    """Requests without end. They come in rounds with something of everything, each in an order of its own."""
    chance, orders = Random(seed), count(10_001)  # noqa: S311
    while True:
        deck = [*_DECK]
        chance.shuffle(deck)
        for kind in deck:
            yield _request(kind, wiring, chance, next(orders))


_DECK: Final = (
    *("v2 sms",) * 5,
    *("v1 sms",) * 2,
    "v2 mms",
    "v2 group",
    "v1 several",
    "v1 mms",
    *("v2 inbound",) * 2,
    "v2 inbound group",
    "v1 inbound",
)


def _request(kind: str, wiring: Wiring, chance: Random, order: int) -> Request:
    ours, theirs = chance.choice(_OURS), chance.sample(_THEIRS, _AT_ONCE)
    match kind:
        case "v2 sms":
            texts = _FANCY if chance.random() < 0.2 else _TEXTS
            return Request(V2, _v2(wiring, ours, theirs[:1], order, _text(chance, texts, order)))
        case "v2 mms":
            media = {"media": [_PICTURE.format(order)]}
            return Request(V2, _v2(wiring, ours, theirs[:1], order, _text(chance, _TEXTS, order)) | media)
        case "v2 group":
            return Request(V2, _v2(wiring, ours, theirs, order, _text(chance, _TEXTS, order)))
        case "v1 sms":
            return Request(V1, _v1(wiring, chance, ours, theirs[0], order) | _WITH_RECEIPT)
        case "v1 mms":
            return Request(V1, _v1(wiring, chance, ours, theirs[0], order) | {"media": _PICTURE.format(order)})
        case "v1 several":
            several = [_v1(wiring, chance, ours, each, order) | _WITH_RECEIPT for each in theirs]
            return Request(V1, several, messages=_AT_ONCE)
        case "v2 inbound group":
            return Request(INBOUND, _inbound(chance, "v2", ours, theirs[0]) | {"others": theirs[1:]})
        case "v2 inbound":
            return Request(INBOUND, _inbound(chance, "v2", ours, theirs[0]))
        case _:
            return Request(INBOUND, _inbound(chance, "v1", ours, theirs[0]))


def _v2(wiring: Wiring, sender: str, to: Sequence[str], order: int, text: str) -> dict[str, Any]:
    return {
        "from": sender,
        "to": [*to],
        "text": text,
        "applicationId": "demo",
        "tag": _tag(wiring, sender, to, order),
    }


def _v1(wiring: Wiring, chance: Random, sender: str, to: str, order: int) -> dict[str, Any]:
    return {
        "from": sender,
        "to": to,
        "text": _text(chance, _TEXTS, order),
        "callbackUrl": wiring.v1_callback_url,
        "callbackHttpMethod": chance.choice(("get", "post")),
        "tag": _tag(wiring, sender, [to], order),
    }


def _inbound(chance: Random, api: str, ours: str, theirs: str) -> dict[str, Any]:
    return {"api": api, "from": theirs, "to": ours, "text": chance.choice(_REPLIES)}


def _text(chance: Random, texts: Sequence[str], order: int) -> str:
    return chance.choice(texts).format(order)


def _tag(wiring: Wiring, sender: str, recipients: Sequence[str], order: int) -> str:
    return tags.sign(f"order-{order}", wiring.key, kid=wiring.kid, sender=sender, recipients=recipients)
