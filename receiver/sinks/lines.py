"""Events as lines of JSON on a file descriptor."""

import os
from collections.abc import Iterable

from receiver.domain.publication import Publication


def lines(batch: Iterable[Publication]) -> bytes:
    return b"".join(publication.body + b"\n" for publication in batch)


def write_all(descriptor: int, content: bytes) -> None:
    """Writes all of it, or raises OSError with some of it written."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
