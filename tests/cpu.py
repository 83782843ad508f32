"""CPU time as a multiple of a fixed piece of work, so that a bound holds on a slow or busy machine as on a fast one."""

import gc
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager


def _reference_work() -> None:
    """Decodes, sorts and indexes 20,000 small objects: 0.05 s on the machine where the bounds were measured."""
    text = json.dumps([{"id": f"m{number:05}", "to": [f"+1{number:010}"]} for number in range(10_000)])
    for _ in range(2):
        rows = json.loads(text)
        rows.sort(key=lambda row: (row["to"], row["id"]), reverse=True)
        text = json.dumps(list({row["id"]: row for row in rows}.values()))


def reference_seconds() -> float:
    began = time.process_time()
    _reference_work()
    return time.process_time() - began


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
        assert taken <= multiple, f"{used:.2f} s of CPU time: {taken:.1f} times the reference work"
    finally:
        gc.unfreeze()
