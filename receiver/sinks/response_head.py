"""Repairs the head of a response: a malformed header must not hide the status that the consumer answered.

h11 raises for a head with a single malformed line, and the same event would be posted again until its age limit. Of
all headers only four matter to a sink: three frame the response, one names a pause. The head is rewritten with these.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Final

_END: Final = re.compile(rb"\n\r?\n")
_STATUS: Final = re.compile(rb"(HTTP/\d\.\d) +(\d{3})(?!\d)")
_CONTROL: Final = re.compile(rb"[\x00-\x20\x7f]+")
_LENGTH: Final = re.compile(rb"\d{1,18}")
_NEEDED: Final = frozenset({b"connection", b"content-length", b"retry-after", b"transfer-encoding"})


class ResponseHeads:
    """The heads among the bytes of a connection: `expect` at each request, then `feed` with what was read."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._is_expected = True

    def expect(self) -> None:
        """Reports that a request is being sent: what is read next is the head of its response."""
        self._head.clear()
        self._is_expected = True

    def feed(self, received: bytes) -> bytes:
        """Returns what can be parsed now: repaired heads, and bodies as they are; nothing while a head is incomplete.

        No bytes mean the end of the connection; an incomplete head is then returned as it is.
        """
        if not self._is_expected:
            return received
        if not received:
            incomplete = bytes(self._head)
            self._head.clear()
            return incomplete
        self._head += received
        parsable = bytearray()
        while self._is_expected and (end := _END.search(self._head)):
            head = bytes(self._head[: end.end()])
            del self._head[: end.end()]
            parsable += repaired(head)
            self._is_expected = _is_interim(head)
        if not self._is_expected:
            parsable += self._head
            self._head.clear()
        return bytes(parsable)


def repaired(head: bytes) -> bytes:
    """The head with the headers that matter, in a form that every parser accepts.

    A head without a status line is returned as it is.
    """
    first, *lines = head.split(b"\n")
    status = _STATUS.match(first)
    if status is None:
        return head
    fields = _fields(lines)
    framing = _framing(fields)
    pauses = [(b"retry-after", value) for value in fields[b"retry-after"][:1]]
    headers = b"".join(b"%b: %b\r\n" % field for field in (*framing, *pauses))
    return b"%b %b\r\n%b\r\n" % (status[1], status[2], headers)


def _fields(lines: Iterable[bytes]) -> defaultdict[bytes, list[bytes]]:
    """The values of the headers that matter. A line without a colon is left out, a folded line is unfolded."""
    fields: defaultdict[bytes, list[bytes]] = defaultdict(list)
    last: bytes | None = None
    for line in lines:
        if line[:1] in (b" ", b"\t"):
            if last is not None:
                fields[last][-1] = _clean(fields[last][-1] + line)
            continue
        name, colon, value = line.partition(b":")
        name = name.strip().lower()
        last = name if colon and name in _NEEDED else None
        if last is not None:
            fields[last].append(_clean(value))
    return fields


def _clean(value: bytes) -> bytes:
    return _CONTROL.sub(b" ", value).strip()


def _framing(fields: dict[bytes, list[bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers that say where the response ends, and whether the connection stays open.

    Where the lengths contradict each other or are no numbers, the shortest counts, and the connection is closed after
    it: what follows is not the next response.
    """
    connection = fields[b"connection"]
    codings = _tokens(fields[b"transfer-encoding"])
    lengths = _tokens(fields[b"content-length"])
    framing = []
    if codings[-1:] == [b"chunked"]:
        framing.append((b"transfer-encoding", b"chunked"))
    elif lengths:
        valid = [length for length in lengths if _LENGTH.fullmatch(length)]
        framing.append((b"content-length", min(valid, key=int, default=b"0")))
        if len(valid) < len(lengths) or len(set(map(int, valid))) > 1:
            connection = [*connection, b"close"]
    if connection:
        framing.append((b"connection", b", ".join(connection)))
    return framing


def _tokens(values: Iterable[bytes]) -> list[bytes]:
    return [token.strip().lower() for value in values for token in value.split(b",") if token.strip()]


def _is_interim(head: bytes) -> bool:
    """Whether the head of another response follows."""
    status = _STATUS.match(head)
    return status is not None and status[2][:1] == b"1" and status[2] != b"101"
