"""The tables a benchmark prints: figures per contestant, and the goals beside what was reached."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from tests.benchmarks.contestants import NOOP, Contestant
from tests.benchmarks.measuring import Delay, Measured, Throughput

# by contestant, one per round
Rounds = dict[str, list[Measured]]
Figure = Callable[[Measured, Measured], float | None]

MISSING: Final = "–"


def median(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None and not math.isnan(value)]
    return statistics.median(there) if there else None


class Figures:
    """Medians over the rounds; ratios are taken within a round first."""

    def __init__(self, rounds: Rounds) -> None:
        self._rounds = rounds

    def of(self, key: str, figure: Figure) -> float | None:
        """The median of a figure, which is made from a contestant and the no-op of the same round."""
        pairs = zip(self._rounds[key], self._rounds[NOOP], strict=True)
        return median([figure(measured, noop) for measured, noop in pairs])

    def against(self, key: str, other: str, figure: Figure) -> float | None:
        """The median of a figure divided by that of another contestant in the same round."""
        ratios = []
        for mine, theirs, noop in zip(self._rounds[key], self._rounds[other], self._rounds[NOOP], strict=True):
            above, below = figure(mine, noop), figure(theirs, noop)
            ratios.append(above / below if above is not None and below else None)
        return median(ratios)

    def refusals(self, key: str) -> dict[int, int]:
        """Answers other than 200, by status."""
        found: dict[int, int] = {}
        for measured in self._rounds[key]:
            for load in (measured.single, measured.arrays):
                for status, count in load.statuses.items() if load else ():
                    if status != 200:
                        found[status] = found.get(status, 0) + count
        return found


# --- figures ---


def _of_single(read: Callable[[Throughput], float | None]) -> Figure:
    return lambda measured, _: read(measured.single)


def _of_arrays(read: Callable[[Throughput], float | None]) -> Figure:
    return lambda measured, _: read(measured.arrays) if measured.arrays else None


def _latency(percent: str) -> Callable[[Throughput], float | None]:
    return lambda load: load.latencies_ms[percent]


def _cpu(process: str) -> Callable[[Throughput], float | None]:
    return lambda load: load.cpu_us[process]


def _to_noop(figure: Figure) -> Figure:
    def ratio(measured: Measured, noop: Measured) -> float | None:
        value = figure(measured, noop)
        return None if value is None else value / noop.single.accept

    return ratio


def _of_delay(which: str, read: Callable[[Delay], float]) -> Figure:
    def figure(measured: Measured, _: Measured) -> float | None:
        delay = getattr(measured, which)
        return None if delay is None else read(delay)

    return figure


def _memory(when: str, process: str) -> Figure:
    return lambda measured, _: measured.memory[when][process] or None


def _growth(measured: Measured, _: Measured) -> float | None:
    """All memory at the end against the middle of the first load."""
    return sum(measured.memory["end"].values()) / sum(measured.memory["middle"].values())


def _thousandth(value: float | None) -> float | None:
    return None if value is None else value / 1000


def _events_per_answer(load: Throughput) -> float:
    return load.accept * 10


ACCEPT: Final = _of_single(lambda load: load.accept)
SUSTAINED: Final = _of_single(lambda load: load.sustained)
ARRAYS_ACCEPT: Final = _of_arrays(_events_per_answer)
ARRAYS_SUSTAINED: Final = _of_arrays(lambda load: load.sustained)
P99: Final = _of_single(_latency("99"))
VISIBLE_P99: Final = _of_delay("visible", lambda delay: delay.p99_ms)
LOG_KB: Final = _of_single(lambda load: _thousandth(load.log_per_event))


# --- tables ---


def _cell(value: float | None, form: str = ",.0f") -> str:
    return MISSING if value is None else format(value, form)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown, its columns aligned for reading as plain text."""
    widths = [max(len(row[at]) for row in (heads, *rows)) for at in range(len(heads))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in (heads, *rows)
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def single_table(figures: Figures, contestants: Sequence[Contestant]) -> str:
    """One event per callback, at full speed."""
    heads = ["one event per callback", "answered/s", "to no-op", "processed/s", "to no-op", "p50", "p99", "p99.9 ms"]
    heads += ["CPU us: web", "worker", "database", "client"]
    rows = []
    for one in contestants:
        rate = [
            _cell(figures.of(one.key, _to_noop(figure) if ratio else figure), ".2f" if ratio else ",.0f")
            for figure in (ACCEPT, SUSTAINED)
            for ratio in (False, True)
        ]
        percentiles = [_cell(figures.of(one.key, _of_single(_latency(name))), ".1f") for name in ("50", "99", "99.9")]
        cpu = [_cell(figures.of(one.key, _of_single(_cpu(name)))) for name in ("web", "worker", "database", "load")]
        rows.append([one.name, *rate, *percentiles, *cpu])
    return _table(heads, rows)


def arrays_table(figures: Figures, receivers: Sequence[Contestant]) -> str:
    heads = ["arrays of 10, in events", "answered/s", "to no-op", "processed/s", "to no-op", "p99 ms"]
    heads += ["CPU us per array: web", "worker", "database", "client"]
    rows = []
    for one in receivers:
        rate = [
            _cell(figures.of(one.key, _to_noop(figure) if ratio else figure), ".2f" if ratio else ",.0f")
            for figure in (ARRAYS_ACCEPT, ARRAYS_SUSTAINED)
            for ratio in (False, True)
        ]
        p99 = _cell(figures.of(one.key, _of_arrays(_latency("99"))), ".1f")
        cpu = [_cell(figures.of(one.key, _of_arrays(_cpu(name)))) for name in ("web", "worker", "database", "load")]
        rows.append([one.name, *rate, p99, *cpu])
    return _table(heads, rows)


def delays_table(figures: Figures, receivers: Sequence[Contestant]) -> str:
    """From a 200 to what follows, with callbacks coming in at half of the sustained rate."""
    heads = ["ms from the 200", "callbacks/s", "to the status: p50", "p99", "to a jsonl sink: p50", "p99"]
    rows = []
    for one in receivers:
        rate = _cell(figures.of(one.key, _of_delay("visible", lambda delay: delay.rate)))
        delays = [
            _cell(figures.of(one.key, _of_delay(which, read)), ".1f")
            for which in ("visible", "sink")
            for read in (lambda delay: delay.p50_ms, lambda delay: delay.p99_ms)
        ]
        rows.append([one.name, rate, *delays])
    return _table(heads, rows)


def disk_and_memory_table(figures: Figures, receivers: Sequence[Contestant]) -> str:
    heads = [
        "KB written per event",
        "log",
        "log, in arrays of 10",
        "by the worker",
        "backlog at the end",
        "drained in s",
    ]
    heads += ["MiB at start, middle, end: web", "worker"]
    rows = []
    for one in receivers:
        written = [
            _cell(figures.of(one.key, figure), ".1f")
            for figure in (
                LOG_KB,
                _of_arrays(lambda load: _thousandth(load.log_per_event)),
                _of_single(lambda load: _thousandth(load.worker_written_per_event)),
            )
        ]
        behind = [
            _cell(figures.of(one.key, _of_single(lambda load: load.backlog))),
            _cell(figures.of(one.key, _of_single(lambda load: load.drain_seconds)), ".1f"),
        ]
        memory = [
            ", ".join(_cell(figures.of(one.key, _memory(when, process))) for when in ("start", "middle", "end"))
            for process in ("web", "worker")
        ]
        rows.append([one.name, *written, *behind, *memory])
    return _table(heads, rows)


# --- goals ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A figure and its bound: `aim`, and `least` where less than the aim will do. Keys are of the empty database."""

    name: str
    figure: Figure
    aim: dict[str, float]
    least: dict[str, float]
    at_most: bool = False
    form: str = ".2f"

    def verdict(self, key: str, value: float | None) -> str:
        if value is None:
            return "not measured"
        if self._holds(value, self.aim[key]):
            return "met"
        return "least" if key in self.least and self._holds(value, self.least[key]) else "MISSED"

    def _holds(self, value: float, bound: float) -> bool:
        return value <= bound if self.at_most else value >= bound


def _both(value: float) -> dict[str, float]:
    return {"sqlite": value, "postgresql": value}


GOALS: Final = (
    Goal(name="accept / no-op", figure=_to_noop(ACCEPT), aim=_both(0.8), least=_both(0.6)),
    Goal(
        name="sustained / no-op",
        figure=_to_noop(SUSTAINED),
        aim={"sqlite": 0.5, "postgresql": 0.4},
        least={"sqlite": 0.4, "postgresql": 0.3},
    ),
    Goal(name="arrays of 10, events: accept / no-op", figure=_to_noop(ARRAYS_ACCEPT), aim=_both(5), least=_both(3)),
    Goal(
        name="arrays of 10, events: sustained / no-op",
        figure=_to_noop(ARRAYS_SUSTAINED),
        aim=_both(0.9),
        least=_both(0.6),
    ),
    Goal(name="p99 of the answer, ms", figure=P99, aim=_both(50), least={}, at_most=True, form=".1f"),
    Goal(name="p99 from 200 to status, ms", figure=VISIBLE_P99, aim=_both(100), least={}, at_most=True, form=".1f"),
    Goal(name="log per event, KB", figure=LOG_KB, aim={"sqlite": 5}, least={}, at_most=True, form=".1f"),
    Goal(name="memory, end / middle", figure=_growth, aim=_both(1.1), least={}, at_most=True),
)
# rates must stay above, times and the log below
_KEPT: Final = 0.8
_WITH_STORED: Final = (
    ("accept", ACCEPT, False),
    ("sustained", SUSTAINED, False),
    ("arrays accept", ARRAYS_ACCEPT, False),
    ("arrays sustained", ARRAYS_SUSTAINED, False),
    ("p99 of the answer", P99, True),
    ("p99 from 200 to status", VISIBLE_P99, True),
    ("log per event", LOG_KB, True),
)


def goals_table(figures: Figures, receivers: Sequence[Contestant]) -> str:
    """Each goal with what was reached: `met`, `least` (below the aim, above what must be), or `MISSED`."""
    rows = []
    for goal in GOALS:
        row = [goal.name, _bounds(goal)]
        for one in receivers:
            key = one.empty or one.key
            if key not in goal.aim:
                row.append(MISSING)
                continue
            value = figures.of(one.key, goal.figure)
            row.append(f"{_cell(value, goal.form)} {goal.verdict(key, value)}")
        rows.append(row)
    if any(one.empty for one in receivers):
        for name, figure, at_most in _WITH_STORED:
            row = [f"stored / empty: {name}", "<= 1.20" if at_most else ">= 0.80"]
            for one in receivers:
                value = figures.against(one.key, one.empty, figure) if one.empty else None
                row.append(
                    MISSING if value is None else f"{value:.2f} {'met' if _is_kept(value, at_most) else 'MISSED'}"
                )
            rows.append(row)
    return _table(["goal", "aim (least)", *(one.name for one in receivers)], rows)


def _is_kept(ratio: float, at_most: bool) -> bool:
    return ratio <= 2 - _KEPT if at_most else ratio >= _KEPT


def _bounds(goal: Goal) -> str:
    texts = []
    for key, aim in goal.aim.items():
        least = f" ({goal.least[key]:g})" if key in goal.least else ""
        texts.append(f"{'<=' if goal.at_most else '>='} {aim:g}{least}")
    return ", PostgreSQL ".join(dict.fromkeys(texts))
