"""Compare loomq with raw Celery in a minute: ``python -m benchmarks.quick [--json]``. Nothing in here judges a time."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from celery import chain, chord

from benchmarks import raw_app
from benchmarks.harness import COSTS, SLOTS, Site, open_site, p95, surroundings
from loomq.services.submit import submit_goal
from loomq.store import goals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PATIENCE_S = 60.0
_LINKS = 50
_LOOK_S = 0.005
_BUDGET_S = 12.0  # of one benchmark, on a machine that is busy with other things
_LEAST_ROUNDS = 2


@dataclass(frozen=True)
class Sample:
    """One run of one system.

    Args:
        ms: From before the submit until the end.
        submit_ms: The part of ``ms`` in which work was handed in.
        results: What came out, for comparison.
    """

    ms: float
    submit_ms: float
    results: list[int]


@dataclass(frozen=True)
class Benchmark:
    """One kind of work, done by both systems.

    Args:
        aim: What the ratio should come to, for the reader.
        units: Tasks a run for which the ratio is one of rates; 0 compares times.
    """

    name: str
    aim: str
    loomq: Callable[[Site, int], Sample]
    raw: Callable[[Site, int], Sample]
    expected: Callable[[int], list[int]]
    rounds: int
    warm_up: int
    units: int = 0


@dataclass
class Pair:
    """The samples of both systems, round by round."""

    loomq: list[Sample] = field(default_factory=list)
    raw: list[Sample] = field(default_factory=list)


def _loomq_goal(pipeline: str) -> Callable[[Site, int], Sample]:
    def run(site: Site, n: int) -> Sample:
        begun = time.perf_counter()
        handle = submit_goal("", pipeline=pipeline, context={"n": n}, loom=site.loom)
        submitted = time.perf_counter()
        result = handle.result(timeout=_PATIENCE_S)
        return _sample(begun, submitted, time.perf_counter(), [result["n"]])

    return run


def _raw_canvas(canvas: Callable[[int], Any]) -> Callable[[Site, int], Sample]:
    def run(_: Site, n: int) -> Sample:
        begun = time.perf_counter()
        handle = canvas(n).apply_async()
        submitted = time.perf_counter()
        result = handle.get(timeout=_PATIENCE_S)
        ended = time.perf_counter()
        handle.forget()
        return _sample(begun, submitted, ended, [result["n"]])

    return run


def _diamond(n: int) -> Any:
    step, join = raw_app.step, raw_app.join
    return chain(step.s({"n": n}), chord([step.s(), step.s()], join.s()))


def _chain(n: int) -> Any:
    return chain(raw_app.step.s({"n": n}), *(raw_app.step.s() for _ in range(_LINKS - 1)))


def _sample(begun: float, submitted: float, ended: float, results: list[int]) -> Sample:
    return Sample((ended - begun) * 1000, (submitted - begun) * 1000, results)


def _loomq_burst(size: int) -> Callable[[Site, int], Sample]:
    def run(site: Site, n: int) -> Sample:
        begun = time.perf_counter()
        handles = [
            submit_goal("", pipeline="single", context={"n": n + index}, loom=site.loom) for index in range(size)
        ]
        submitted = time.perf_counter()
        while goals.count_open(site.loom.database):
            if time.perf_counter() - submitted > _PATIENCE_S:
                raise TimeoutError(f"loomq has not drained a burst of {size} within {_PATIENCE_S:g} s")
            time.sleep(_LOOK_S)
        ended = time.perf_counter()
        results = [handle.result(timeout=_PATIENCE_S)["n"] for handle in handles]
        return _sample(begun, submitted, ended, results)

    return run


def _raw_burst(size: int) -> Callable[[Site, int], Sample]:
    def run(_: Site, n: int) -> Sample:
        begun = time.perf_counter()
        handles = [raw_app.step.delay({"n": n + index}) for index in range(size)]
        submitted = time.perf_counter()
        results = [handle.get(timeout=_PATIENCE_S)["n"] for handle in handles]
        ended = time.perf_counter()
        for handle in handles:
            handle.forget()
        return _sample(begun, submitted, ended, results)

    return run


def benchmarks(*, diamonds: int, chains: int, bursts: int, burst: int) -> list[Benchmark]:
    """List the benchmarks; each number is how many rounds, and ``burst`` how many tasks at once."""
    return [
        Benchmark(
            "diamond",
            "<= 1.5, later 1.0",
            _loomq_goal("diamond"),
            _raw_canvas(_diamond),
            lambda n: [2 * (n + 2)],
            rounds=diamonds,
            warm_up=5,
        ),
        Benchmark(
            "chain_of_50",
            "<= 0.7 later",
            _loomq_goal("chain_of_50"),
            _raw_canvas(_chain),
            lambda n: [n + _LINKS],
            rounds=chains,
            warm_up=1,
        ),
        Benchmark(
            "burst",
            ">= 1.0 later",
            _loomq_burst(burst),
            _raw_burst(burst),
            lambda n: [n + index + 1 for index in range(burst)],
            rounds=bursts,
            warm_up=1,
            units=burst,
        ),
    ]


def measure(site: Site, benchmark: Benchmark) -> Pair:
    """Run both systems in turn, each first in every other round, so that drift of the machine hits both.

    A benchmark that has used up its budget ends early.

    Raises:
        RuntimeError: A system gave another result than the work has, or its worker node ended.
    """
    pair = Pair()
    until = time.monotonic() + _BUDGET_S
    for index in range(-benchmark.warm_up, benchmark.rounds):
        if index >= _LEAST_ROUNDS and time.monotonic() > until:
            break
        sides = [(benchmark.loomq, pair.loomq), (benchmark.raw, pair.raw)]
        for work, samples in sides if index % 2 else reversed(sides):
            site.check()
            sample = work(site, index)
            if sample.results != benchmark.expected(index):
                raise RuntimeError(f"{benchmark.name}: wrong results {sample.results!r:.300}")
            if index >= 0:
                samples.append(sample)
    return pair


def report(benchmark: Benchmark, pair: Pair, costs: dict[str, Any]) -> dict[str, Any]:
    """Give one benchmark's line."""
    found: dict[str, Any] = {"benchmark": benchmark.name}
    for system, samples in (("loomq", pair.loomq), ("raw", pair.raw)):
        times = [sample.ms for sample in samples]
        found[f"{system}_ms"] = round(statistics.median(times), 2)
        found[f"{system}_p95_ms"] = round(p95(times), 2)
        found[f"{system}_submit_ms"] = round(statistics.median(sample.submit_ms for sample in samples), 2)
        found[f"{system}_results"] = sum(len(sample.results) for sample in samples)
        if benchmark.units:
            found[f"{system}_per_s"] = round(benchmark.units / found[f"{system}_ms"] * 1000, 1)
    what = "per_s" if benchmark.units else "ms"
    return {
        **found,
        "ratio": round(found[f"loomq_{what}"] / found[f"raw_{what}"], 3),
        "ratio_of": what,
        "aim": benchmark.aim,
        "rounds": len(pair.raw),
        **costs,
    }


def lines(reports: list[dict[str, Any]]) -> Iterator[str]:
    """Write the table for people."""
    row = "{:<24}{:>12}{:>12}{:>9}   {}"
    yield row.format("", "loomq", "raw Celery", "ratio", "aim")
    for found in reports:
        verdict = f"{found['ratio']:.2f}", found["aim"]
        is_rate = found["ratio_of"] == "per_s"
        first = ("", "") if is_rate else verdict
        yield row.format(f"{found['benchmark']}, median ms", found["loomq_ms"], found["raw_ms"], *first)
        yield row.format(f"  p95 of {found['rounds']}", found["loomq_p95_ms"], found["raw_p95_ms"], "", "")
        yield row.format("  submit alone, ms", found["loomq_submit_ms"], found["raw_submit_ms"], "", "")
        if is_rate:
            yield row.format("  tasks/s", found["loomq_per_s"], found["raw_per_s"], *verdict)
    yield ""
    yield "What the machine cost before each, median ms:"
    for key, what in COSTS.items():
        yield f"  {what:<38}" + "  ".join("-" if found[key] is None else f"{found[key]:g}" for found in reports)
    versions = " · ".join(f"{name} {number}" for name, number in reports[0]["versions"].items())
    yield f"{reports[0]['cpus']} CPUs · prefork -c {SLOTS} · {versions}"


def main() -> None:
    """Run the comparison that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quick", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object a benchmark on stdout")
    parser.add_argument("--diamonds", type=int, default=50, metavar="N", help="diamonds, one at a time (%(default)s)")
    parser.add_argument("--chains", type=int, default=5, metavar="N", help="chains of 50, one at a time (%(default)s)")
    parser.add_argument("--bursts", type=int, default=3, metavar="N", help="bursts (%(default)s)")
    parser.add_argument("--burst", type=int, default=300, metavar="N", help="tasks in a burst (%(default)s)")
    asked = vars(parser.parse_args())
    as_json = asked.pop("json")
    with open_site() as site:
        reports = []
        for benchmark in benchmarks(**asked):
            print(f"{benchmark.name} …", file=sys.stderr, flush=True)
            costs = surroundings(site)
            reports.append(report(benchmark, measure(site, benchmark), costs))
            if as_json:
                print(json.dumps(reports[-1]), flush=True)
    if not as_json:
        print("\n".join(lines(reports)))


if __name__ == "__main__":
    main()
