"""The callbacks that a benchmark posts: delivery receipts of v2, each for a message of its own.

Message ids rise with time, as Bandwidth's do, except that receipts do not come in the order of sending: they are
shuffled among their 1024 neighbours. Recipients, senders and applications vary, so that every index is written to in
the way it would be.
"""

from datetime import UTC, datetime, timedelta
from typing import Final

SENDERS: Final = 300
APPLICATIONS: Final = 5
_NEIGHBOURS: Final = 1024
# a new time of sending after so many messages
_SAME_SECOND: Final = 512
_ID: Final = "1661365814859lo%015d"
MESSAGE_ID_PATTERN: Final = rb"1661365814859lo\d{15}"
DESCRIPTION: Final = "Message delivered to carrier"
_ELEMENT: Final = (
    '{"type":"message-delivered","time":"{TIME}.123Z","to":"+1555%07d","description":"{DESCRIPTION}",'
    '"message":{"id":"{ID}","owner":"+19195550%03d","applicationId":"93de2206-9669-4e07-948d-329f4b722ee%d",'
    '"time":"{SENT}.000Z","segmentCount":1,"direction":"out","to":["+1555%07d"],"from":"+19195550%03d","text":"",'
    '"tag":"order %015d"}}'
)


def place_of(number: int) -> int:
    """Where message `number` stands among all message ids: near its number, each place once."""
    return (number & -_NEIGHBOURS) | ((number * 389) & (_NEIGHBOURS - 1))


def message_id(number: int) -> str:
    return _ID % place_of(number)


def recipient(number: int) -> int:
    """The last seven digits of a message's recipient: spread over all numbers."""
    return number * 2654435761 % 10_000_000


def sender(number: int) -> int:
    return (number * 40503 >> 4) % SENDERS


def application(number: int) -> int:
    return sender(number) % APPLICATIONS


class Bodies:
    """Makes bodies of messages with rising numbers, sent some seconds ago; always of the same length."""

    def __init__(self, events_per_body: int = 1) -> None:
        self._events = events_per_body
        self._left = 0
        self._template = b""
        self.length = len(self.body(0))

    def body(self, first: int) -> bytes:
        """An array of the messages `first` and those after it."""
        if self._left <= 0:
            self._renew()
        self._left -= self._events
        values: list[int] = []
        for number in range(first, first + self._events):
            # recipient(), sender(), application() and place_of(), written out: this is the client's hot path
            to, origin = number * 2654435761 % 10_000_000, (number * 40503 >> 4) % SENDERS
            place = (number & -_NEIGHBOURS) | ((number * 389) & (_NEIGHBOURS - 1))
            values += (to, place, origin, origin % APPLICATIONS, to, origin, number)
        return self._template % tuple(values)

    def _renew(self) -> None:
        self._left = _SAME_SECOND
        now = datetime.now(UTC).replace(tzinfo=None, microsecond=0)
        element = _ELEMENT.replace("{ID}", _ID).replace("{DESCRIPTION}", DESCRIPTION)
        element = element.replace("{TIME}", now.isoformat())
        element = element.replace("{SENT}", (now - timedelta(seconds=5)).isoformat())
        self._template = b"[" + b",".join([element.encode()] * self._events) + b"]"
