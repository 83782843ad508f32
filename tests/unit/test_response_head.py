"""Heads of responses are repaired, however they arrive."""

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.sinks.response_head import ResponseHeads, repaired

TWO = b"HTTP/1.1 100 Continue\r\nX Y: 1\r\n\r\nHTTP/1.1 200 OK\r\nX Y: 1\r\nContent-Length : 4\r\n\r\n\r\n\r\n"
REPAIRED = b"HTTP/1.1 100\r\n\r\nHTTP/1.1 200\r\ncontent-length: 4\r\n\r\n\r\n\r\n"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 1000])
def test_head_in_pieces_is_repaired_and_the_body_is_left_alone(size: int) -> None:
    heads = ResponseHeads()
    for _ in range(2):
        heads.expect()
        pieces = [TWO[start : start + size] for start in range(0, len(TWO), size)]
        assert b"".join(map(heads.feed, pieces)) == REPAIRED


def test_incomplete_head_is_returned_once_at_the_end_of_the_connection() -> None:
    heads = ResponseHeads()
    assert heads.feed(b"HTTP/1.1 200") == b""
    assert heads.feed(b"") == b"HTTP/1.1 200"
    assert heads.feed(b"") == b""


@pytest.mark.parametrize(
    ("lines", "framing"),
    [
        (b"Content-Length: 3\r\nTransfer-Encoding: gzip, Chunked\r\n", b"transfer-encoding: chunked\r\n"),
        (b"Content-Length: 3\r\nContent-Length: 2\r\n", b"content-length: 2\r\nconnection: close\r\n"),
        (b"Content-Length: -1\r\n", b"content-length: 0\r\nconnection: close\r\n"),
        (b"Content-Length: \xb2\r\n", b"content-length: 0\r\nconnection: close\r\n"),
        (b"Content-Length:\r\n", b""),
        (b"Transfer-Encoding: identity\r\n", b""),
        (b"Connection: Keep-Alive\r\nConnection: close\r\n", b"connection: Keep-Alive, close\r\n"),
    ],
)
def test_framing_of_contradictory_headers(lines: bytes, framing: bytes) -> None:
    assert repaired(b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n") == b"HTTP/1.1 200\r\n" + framing + b"\r\n"


NAMES = st.sampled_from([b"Content-Length", b"Transfer-Encoding", b"Connection", b"Retry-After", b"X Y", b""])
VALUES = st.binary(max_size=12) | st.sampled_from([b"0", b"12", b"chunked", b"close", b" 7"])
LINES = st.lists(st.tuples(NAMES, VALUES), max_size=6)


@given(LINES)
def test_h11_accepts_every_repaired_head(lines: list[tuple[bytes, bytes]]) -> None:
    fields = b"".join(b"%b:%b\r\n" % (name, value.replace(b"\n", b"")) for name, value in lines)
    client = h11.Connection(our_role=h11.CLIENT)
    client.send(h11.Request(method="POST", target="/", headers=[("host", "a"), ("content-length", "0")]))
    client.receive_data(repaired(b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n"))
    response = client.next_event()
    assert isinstance(response, h11.Response)
    assert response.status_code == 200
