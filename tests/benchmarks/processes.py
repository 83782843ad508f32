"""What Linux knows of other processes: their CPU time, memory, children, and what they write."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third on; None if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def cpu_seconds(pid: int) -> float | None:
    """User and system time of a process and all its threads, in steps of 10 ms."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / _TICKS if fields else None


def descendants(pid: int) -> list[int]:
    """The children of a process, and theirs."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208  (called twice a second during a measurement)
        if name.isdecimal() and (fields := _stat(int(name))):
            children.setdefault(int(fields[1]), []).append(int(name))
    found = list(children.get(pid, ()))
    for one in found:
        found.extend(children.get(one, ()))
    return found


def resident_mib(pids: Iterable[int]) -> float:
    """Resident memory of processes together."""
    kib = 0
    for pid in pids:
        try:
            kib += int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0])
        except (OSError, IndexError):
            continue
    return kib / 1024


def written_bytes(pid: int) -> int | None:
    """What a process gave to `write` and its like; not what it wrote through mapped memory."""
    try:
        return int(Path(f"/proc/{pid}/io").read_text().partition("wchar:")[2].split()[0])
    except OSError:
        return None


class Meter:
    """How much a counter of some processes has risen since this was made; `pids` may change meanwhile.

    A process that appears later counts from 0. Of one that ends, the last look counts.
    """

    def __init__(self, pids: Callable[[], Iterable[int]], read: Callable[[int], float | None] = cpu_seconds) -> None:
        self._pids, self._read = pids, read
        self._last: dict[int, float] = {}
        self.look()
        self._first = dict(self._last)

    def look(self) -> None:
        for pid in self._pids():
            if (value := self._read(pid)) is not None:
                self._last[pid] = value

    @property
    def risen(self) -> float | None:
        """None if there was no such process."""
        if not self._last:
            return None
        return sum(value - self._first.get(pid, 0) for pid, value in self._last.items())
