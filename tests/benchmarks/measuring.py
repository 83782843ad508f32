"""What is measured of one contestant in one round."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.benchmarks.bodies import MESSAGE_ID_PATTERN, message_id
from tests.benchmarks.contestants import Contestant, Running, receiver
from tests.benchmarks.load import LOOK_SECONDS, Load, LoadResult, percentile, run
from tests.benchmarks.processes import Meter, resident_mib, written_bytes

ARRAY: Final = 10
PROBES_PER_SECOND: Final = 100
_WARM_SECONDS: Final = 1.0
_DRAIN_SECONDS: Final = 60.0
_ARRIVAL_SECONDS: Final = 30.0
_START_SECONDS: Final = 5.0
# messages of one load, at most
_NUMBERS: Final = 10_000_000
# how many probes that are not visible yet are asked for at once
_WINDOW: Final = 32
_PROCESSES_EVERY: Final = 1.0
# more callbacks per second than can be processed: counting a backlog costs, so it is not done in vain
_FASTEST_DRAIN: Final = 40_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    connections: int
    seconds: float


@dataclass(slots=True, kw_only=True)
class Throughput:
    """A load at full speed and the time until its backlog is empty.

    `accept` is in requests answered 200 per second during the load, `sustained` in events per second from the first
    request until all are processed (None: the contestant processes nothing). CPU is in microseconds per callback,
    until the backlog is empty.
    """

    accept: float
    sustained: float | None
    latencies_ms: dict[str, float]
    statuses: dict[int, int]
    cpu_us: dict[str, float | None]
    backlog: int = 0
    drain_seconds: float = 0.0
    log_per_event: float | None = None
    worker_written_per_event: float | None = None


@dataclass(slots=True, kw_only=True)
class Delay:
    """Milliseconds from a 200 to what follows from it, under a load of `rate` callbacks per second."""

    rate: float
    probes: int
    p50_ms: float
    p99_ms: float


@dataclass(slots=True, kw_only=True)
class Measured:
    """One contestant in one round. Memory is in MiB: at the start, in the middle of the first load, after all loads."""

    single: Throughput
    memory: dict[str, dict[str, float]] = field(default_factory=dict)
    arrays: Throughput | None = None
    visible: Delay | None = None
    sink: Delay | None = None


class Numbers:
    """Gives each load its own message numbers, rising, after those of stored messages."""

    def __init__(self) -> None:
        self._next = 1_000_000_000

    def take(self) -> int:
        self._next += _NUMBERS
        return self._next - _NUMBERS


class _Watch:
    """Looks at the processes and the log of a contestant while it works."""

    def __init__(self, running: Running) -> None:
        self._database = running.database
        if running.database is not None:
            running.database.begin()
        self.cpu = {
            "web": Meter(lambda: [running.web]),
            "worker": Meter(running.workers),
            "database": Meter(running.backends),
        }
        self.written = Meter(running.workers, written_bytes)
        self._running = running
        self.memory: list[dict[str, float]] = []
        self._due = 0.0

    def look(self) -> None:
        if self._database is not None:
            self._database.look()
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + _PROCESSES_EVERY
            self.look_at_processes()

    def look_at_processes(self) -> None:
        for meter in (*self.cpu.values(), self.written):
            meter.look()
        self.memory.append(memory(self._running))


def memory(running: Running) -> dict[str, float]:
    return {"web": resident_mib([running.web]), "worker": resident_mib(running.workers())}


def _memory_at_start(running: Running) -> dict[str, float]:
    """The memory of processes that have started: the worker may still be about to."""
    before, found = -1.0, memory(running)
    deadline = time.monotonic() + _START_SECONDS
    while sum(found.values()) > before + 0.5 and time.monotonic() < deadline:
        before = sum(found.values())
        time.sleep(0.3)
        found = memory(running)
    return found


def throughput(running: Running, load: Load) -> tuple[Throughput, dict[str, float]]:
    """A load at full speed; returns also the memory in its middle."""
    watch = _Watch(running)
    result = run(load, watch.look)
    middle = watch.memory[len(watch.memory) // 2]
    expected, database = result.accepted * load.events, running.database
    backlog = _left(running, expected)
    _drain(running, expected, result.ended, load.seconds, watch.look)
    ended = time.monotonic()
    watch.look_at_processes()
    measured = Throughput(
        accept=result.rate,
        sustained=None,
        latencies_ms={name: value * 1000 for name, value in result.latencies.items()},
        statuses=result.statuses,
        cpu_us={name: _per(meter.risen, result.accepted, 1e6) for name, meter in watch.cpu.items()}
        | {"load": _per(result.cpu_seconds, result.accepted, 1e6)},
    )
    if database is not None:
        stored = database.events()
        if stored != expected:
            raise AssertionError(f"{stored:,} events in the log, {expected:,} accepted")
        measured.backlog, measured.drain_seconds = backlog, max(0.0, ended - result.ended)
        measured.sustained = expected / (max(ended, result.ended) - result.started)
        measured.log_per_event = _per(database.log_bytes(), expected)
        measured.worker_written_per_event = _per(watch.written.risen, expected)
    return measured, middle


def _per(total: float | None, count: int, factor: float = 1) -> float | None:
    return None if total is None else factor * total / max(1, count)


def _left(running: Running, expected: int) -> int:
    """What is accepted and not processed; in events where receiver has no journal."""
    if running.database is None:
        return 0
    size = running.database.backlog()
    return expected - running.database.events() if size is None else size


def _drain(running: Running, expected: int, since: float, loaded: float, look: Callable[[], None]) -> None:
    deadline = since + _DRAIN_SECONDS + 20 * loaded
    while left := _left(running, expected):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{left:,} callbacks or events are not processed after {deadline - since:.0f} s")
        again = time.monotonic() + min(0.5, max(4 * LOOK_SECONDS, left / _FASTEST_DRAIN))
        while time.monotonic() < again:
            look()
            time.sleep(LOOK_SECONDS)


# --- delays ---


class _Visible:
    """When the probes' messages appear in the table; exact to some 3 ms, and never too early."""

    def __init__(self, running: Running, probes: list[str]) -> None:
        assert running.database is not None
        self._database, self._pending = running.database, probes
        self.seen: dict[str, float] = {}

    def look(self) -> None:
        if window := self._pending[:_WINDOW]:
            found = self._database.visible(window)
            now = time.monotonic()
            if found:
                self.seen.update(dict.fromkeys(found, now))
                self._pending = [one for one in self._pending if one not in found]


class _Tail:
    """When the probes' events are in a sink's file, found by their message ids."""

    def __init__(self, running: Running, probes: list[str]) -> None:
        assert running.sink is not None
        self._probes = {probe.encode(): probe for probe in probes}
        self._file = running.sink.open("rb")
        self._file.seek(0, 2)
        self._rest = b""
        self.seen: dict[str, float] = {}

    def look(self) -> None:
        content, end, self._rest = (self._rest + self._file.read()).rpartition(b"\n")
        now = time.monotonic()
        if end:
            for found in re.findall(MESSAGE_ID_PATTERN, content):
                if (probe := self._probes.get(found)) is not None:
                    self.seen.setdefault(probe, now)


def delay(running: Running, load: Load, follower: Callable[[Running, list[str]], _Visible | _Tail]) -> Delay:
    """A paced load whose every few callbacks are followed."""
    total = int(load.rate * load.seconds)
    probes = {message_id(load.first + at): load.first + at for at in range(0, total, load.probe_every)}
    following = follower(running, list(probes))
    result = run(load, following.look)
    deadline = time.monotonic() + _ARRIVAL_SECONDS
    while len(following.seen) < len(probes) and time.monotonic() < deadline:
        following.look()
        time.sleep(LOOK_SECONDS)
    return _delay_of(result, following.seen, probes)


def _delay_of(result: LoadResult, seen: dict[str, float], probes: dict[str, int]) -> Delay:
    answered = {probe: result.answered[number] for probe, number in probes.items() if number in result.answered}
    if missing := len(answered.keys() - seen.keys()):
        raise AssertionError(f"{missing} of {len(probes)} probes were accepted and never arrived")
    times = [max(0.0, seen[probe] - time) * 1000 for probe, time in answered.items()]
    return Delay(rate=result.rate, probes=len(times), p50_ms=percentile(times, 50), p99_ms=percentile(times, 99))


def _until_quiet(file: Path) -> None:
    """Waits until a sink has caught up with what was accepted before."""
    size, deadline = -1, time.monotonic() + _ARRIVAL_SECONDS
    while (now := file.stat().st_size if file.exists() else 0) != size or not size:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{file} is not written to, or without end")
        size = now
        time.sleep(0.5)


# --- a round ---


def measure(contestant: Contestant, plan: Plan, numbers: Numbers) -> Measured:
    """All that is measured of a contestant in a round."""

    def load(running: Running, seconds: float, **more: Any) -> Load:
        return Load(
            port=running.port,
            path=running.path,
            connections=plan.connections,
            seconds=seconds,
            first=numbers.take(),
            **more,
        )

    def warmed(running: Running) -> dict[str, float]:
        start = _memory_at_start(running)
        throughput(running, load(running, min(_WARM_SECONDS, plan.seconds)))
        return start

    if contestant.server is not None:
        with contestant.server() as running:
            start = warmed(running)
            single, middle = throughput(running, load(running, plan.seconds))
            return Measured(single=single, memory={"start": start, "middle": middle, "end": memory(running)})
    assert contestant.database is not None
    with contestant.database() as database:
        with receiver(database) as running:
            start = warmed(running)
            single, middle = throughput(running, load(running, plan.seconds))
            # accepted several times as fast as they are processed, so half the time is enough
            arrays, _ = throughput(running, load(running, plan.seconds / 2, events=ARRAY))
            paced = _paced((single.sustained or 0) / 2)
            measured = Measured(single=single, arrays=arrays)
            measured.visible = delay(running, load(running, plan.seconds, **paced), _Visible)
            measured.memory = {"start": start, "middle": middle, "end": memory(running)}
        with receiver(database, sink=True) as running:
            warmed(running)
            assert running.sink is not None
            _until_quiet(running.sink)
            # publishing takes about as much of the worker as processing does: a quarter leaves it as much room
            paced = _paced((single.sustained or 0) / 4)
            measured.sink = delay(running, load(running, plan.seconds, **paced), _Tail)
    return measured


def _paced(rate: float) -> dict[str, Any]:
    return {"rate": rate, "probe_every": max(1, round(rate / PROBES_PER_SECOND))}
