"""Waiting for a condition in the event loop of a test, and bounds on time that hold on every machine."""

import asyncio
import gc
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager


async def eventually(condition: Callable[[], Awaitable[object] | object], seconds: float = 45) -> None:
    """Waits until a condition holds: on a busy machine too, but for no lease to end and no long pause to pass."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if await found if isinstance(found, Awaitable) else found:
            return
        assert time.monotonic() < deadline, "the condition did not hold in time"
        await asyncio.sleep(0.01)


def _reference_work() -> None:
    """Decodes, sorts and indexes 20,000 small objects: 0.05 s on the machine where the bounds were measured."""
    text = json.dumps([{"id": f"m{number:05}", "to": [f"+1{number:010}"]} for number in range(10_000)])
    for _ in range(2):
        rows = json.loads(text)
        rows.sort(key=lambda row: (row["to"], row["id"]), reverse=True)
        text = json.dumps(list({row["id"]: row for row in rows}.values()))


def reference_seconds(clock: Callable[[], float] = time.process_time) -> float:
    """How long the reference work takes now: in CPU time, or by a clock that also counts what others take."""
    began = clock()
    _reference_work()
    return clock() - began


@contextmanager
def cpu_at_most(multiple: float) -> Iterator[None]:
    """Fails if the block takes more CPU time than `multiple` times the reference work, measured around it."""
    # A full collection in the block would otherwise traverse what every earlier test of this process left behind.
    gc.freeze()
    try:
        before = reference_seconds()
        began = time.process_time()
        yield
        used = time.process_time() - began
        taken = used / max(before, reference_seconds())
        print(f"{used * 1000:.0f} ms of CPU time: {taken:.1f} times the reference work, of at most {multiple}")
        assert taken <= multiple
    finally:
        gc.unfreeze()
