"""Compare loomq with other systems: ``python -m benchmarks.compare [--quick] [--systems …] [--figures …]``.

Each round does a figure's work with every system in turn; what the last stage's own code stamped is what counts. One
JSON line a figure and system on stdout, a table for people on stderr. Nothing in here judges a time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from operator import truediv
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from benchmarks.cpu import cpu_s
from benchmarks.harness import open_servers, surroundings
from benchmarks.stamps import Stamps
from benchmarks.systems.registry import SYSTEMS, BaselineMissing, open_system

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from benchmarks.harness import Servers
    from benchmarks.systems.base import System

BASELINE = "celery_redis"
_PATIENCE_S = 30.0


@dataclass(frozen=True)
class Figure:
    """Something that is measured.

    Args:
        kind: Which work.
        unit: Of the number.
        is_rate: Whether more is better.
        sizes: Runs a round: quick, and full.
        measure: Gives the number of one round.
    """

    name: str
    kind: str
    unit: str
    is_rate: bool
    sizes: tuple[int, int]
    measure: Callable[[Bench, System, str, int], float]


@dataclass
class Bench:
    """The systems at work.

    Args:
        shared: Processes of the servers, whose time counts for whoever is at work.
    """

    stamps: Stamps
    servers: Servers
    systems: list[System]
    shared: list[int] = field(default_factory=list)

    def runs(self, count: int) -> list[str]:
        """Name so many runs."""
        first = uuid4().hex[:12]
        return [f"{first}-{number}" for number in range(count)]

    def wait(self, system: System, runs: Sequence[str]) -> dict[str, int]:
        """Wait for the stamps of runs."""
        return self.stamps.wait(runs, _PATIENCE_S, system.check)

    def cpu(self, system: System) -> float:
        """Give the processor time so far of all that works for a system."""
        return cpu_s([os.getpid(), *system.roots(), *self.shared])


def latency(bench: Bench, system: System, kind: str, count: int) -> float:
    """Give the median latency, in milliseconds, of runs one at a time."""
    found = []
    for run in bench.runs(count):
        begun = time.monotonic_ns()
        system.hand_in(kind, [run])
        found.append((bench.wait(system, [run])[run] - begun) / 1e6)
        system.settle()
    return statistics.median(found)


def burst_rate(bench: Bench, system: System, kind: str, count: int) -> float:
    """Give runs a second for runs that are submitted at once, from the first submit to the last end."""
    runs = bench.runs(count)
    begun = time.monotonic_ns()
    system.hand_in(kind, runs)
    ended = max(bench.wait(system, runs).values())
    system.settle()
    return count / (ended - begun) * 1e9


def drain_rate(bench: Bench, system: System, kind: str, count: int) -> float:
    """Give runs a second for runs that have all been waiting when the node begins."""
    runs = bench.runs(count)
    system.hold()
    system.hand_in_many(kind, runs)
    system.let_go()
    begun = time.monotonic_ns()
    ended = max(bench.wait(system, runs).values())
    system.settle()
    return count / (ended - begun) * 1e9


def burst_cpu(bench: Bench, system: System, kind: str, count: int) -> float:
    """Give milliseconds of processor time a run, over all processes and servers, for runs submitted at once."""
    runs = bench.runs(count)
    before = bench.cpu(system)
    system.hand_in(kind, runs)
    bench.wait(system, runs)
    system.settle()
    return (bench.cpu(system) - before) / count * 1000


def submit_rate(bench: Bench, system: System, kind: str, count: int) -> float:
    """Give submissions a second, one after another, while nothing consumes them."""
    return _submit_rate(bench, system, kind, count, system.hand_in)


def bulk_rate(bench: Bench, system: System, kind: str, count: int) -> float:
    """Give submissions a second by the system's way for many."""
    return _submit_rate(bench, system, kind, count, system.hand_in_many)


def _submit_rate(
    bench: Bench, system: System, kind: str, count: int, hand_in: Callable[[str, Sequence[str]], None]
) -> float:
    runs = bench.runs(count)
    system.hold()
    begun = time.monotonic_ns()
    hand_in(kind, runs)
    took = time.monotonic_ns() - begun
    system.let_go()
    bench.wait(system, runs)
    system.settle()
    return count / took * 1e9


FIGURES = [
    Figure("diamond_latency", "diamond", "ms", False, (15, 30), latency),
    Figure("diamond_rate", "diamond", "runs/s", True, (100, 300), burst_rate),
    Figure("fanout_latency", "fan", "ms", False, (2, 3), latency),
    Figure("chain_latency", "chain", "ms", False, (3, 5), latency),
    Figure("diamond_cpu", "diamond", "ms", False, (100, 300), burst_cpu),
    Figure("noop_rate", "noop", "tasks/s", True, (500, 2000), drain_rate),
    Figure("submit_rate", "noop", "submits/s", True, (200, 500), submit_rate),
    Figure("submit_bulk_rate", "noop", "submits/s", True, (500, 2000), bulk_rate),
]


def measure(bench: Bench, figure: Figure, rounds: int, *, quick: bool) -> dict[str, list[float]]:
    """Measure one figure of every system that has it, in turn, each first in turn; one round before is not counted."""
    able = [system for system in bench.systems if figure.kind in system.kinds]
    size = figure.sizes[0 if quick else 1]
    found: dict[str, list[float]] = {system.name: [] for system in able}
    for number in range(-1, rounds):
        first = number % len(able)
        count = size if number >= 0 else min(size, 20)
        for system in able[first:] + able[:first]:
            try:
                value = figure.measure(bench, system, figure.kind, max(1, round(count * system.share)))
            except (TimeoutError, RuntimeError) as error:
                if system.name in {"loomq", BASELINE}:
                    raise
                print(f"{system.name}: left out of {figure.name}: {error}", file=sys.stderr, flush=True)
                able.remove(system)
                del found[system.name]
                continue
            if number >= 0:
                found[system.name].append(value)
    return found


def report(figure: Figure, found: dict[str, list[float]]) -> Iterator[dict[str, Any]]:
    """Give a line for each system.

    The ratio is the median of those of the single rounds, in which the systems follow upon each other: the machine may
    be faster in one round than in the next, and then it is so for all.
    """
    base = found.get(BASELINE)
    for name, values in found.items():
        yield {
            "figure": figure.name,
            "system": name,
            "baseline": BASELINE,
            "unit": figure.unit,
            "median": round(statistics.median(values), 3),
            "lowest": round(min(values), 3),
            "highest": round(max(values), 3),
            "rounds": len(values),
            "ratio": round(statistics.median(map(truediv, values, base)), 3) if base else None,
        }


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Lay the lines out for people: a row a figure, a column a system."""
    names = list(dict.fromkeys(line["system"] for line in lines))
    head = "".join(f"{name:>20}" for name in names)
    rows = [f"{'':<30}{head}"]
    for figure in dict.fromkeys(line["figure"] for line in lines):
        cells = {line["system"]: line for line in lines if line["figure"] == figure}
        unit = next(iter(cells.values()))["unit"]
        shown = "".join(
            f"{cells[name]['median']:>11.1f}{_ratio(cells[name]):>9}" if name in cells else f"{'-':>20}"
            for name in names
        )
        rows.append(f"{f'{figure}, {unit}':<30}{shown}")
    return "\n".join(rows)


def _ratio(line: dict[str, Any]) -> str:
    return "" if line["ratio"] is None else f"({line['ratio']:.2f})"


def compare(
    names: Sequence[str], figures: Sequence[Figure], rounds: int, *, quick: bool, flush_ms: float = 0.0
) -> list[dict[str, Any]]:
    """Run the comparison, print a line a figure and system, and give them all.

    Args:
        flush_ms: How much longer each commit takes that waits for the disk.
    """
    lines: list[dict[str, Any]] = []
    with ExitStack() as stack:
        servers = stack.enter_context(open_servers())
        servers.slow_down(flush_ms)
        stamps = Stamps(servers.folder)
        stack.callback(stamps.close)
        systems = []
        for name in names:
            try:
                system = open_system(name, servers)
            except BaselineMissing as reason:
                print(f"{name}: left out: {reason}", file=sys.stderr, flush=True)
                continue
            stack.callback(system.close)
            systems.append(system)
        bench = Bench(stamps, servers, systems, servers.pids())
        print(json.dumps({"machine": {**surroundings(servers), "flush_ms_added": flush_ms}}), flush=True)
        for figure in figures:
            print(f"{figure.name} …", file=sys.stderr, flush=True)
            for line in report(figure, measure(bench, figure, rounds, quick=quick)):
                lines.append(line)
                print(json.dumps(line), flush=True)
    return lines


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller and fewer rounds: within three minutes")
    parser.add_argument("--systems", nargs="*", choices=list(SYSTEMS), help="default: all; with --quick two of them")
    parser.add_argument("--figures", nargs="*", choices=[figure.name for figure in FIGURES], default=[])
    parser.add_argument("--rounds", type=int, help="default: 5; with --quick 3")
    parser.add_argument("--flush-ms", type=float, default=0.0, help="simulate a disk whose flush takes so much longer")
    asked = parser.parse_args()
    names = asked.systems or (["loomq", BASELINE] if asked.quick else list(SYSTEMS))
    figures = [figure for figure in FIGURES if not asked.figures or figure.name in asked.figures]
    rounds = asked.rounds or (3 if asked.quick else 5)
    lines = compare(names, figures, rounds, quick=asked.quick, flush_ms=asked.flush_ms)
    print(table(lines), file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(0)  # Celery's results would complain, one by one, that their server has gone


if __name__ == "__main__":
    main()
