"""What stays flat: the cost of a stage with much finished or waiting, memory of a node, calls that wait, starts.

``python -m benchmarks.growth [--parts …] [--quick]``: one JSON line a part on stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from benchmarks.compare import Bench, drain_rate, latency
from benchmarks.cpu import rss_mb
from benchmarks.harness import ROOT, loomq_node, open_servers, plain_connection
from benchmarks.model import runs_per_s
from benchmarks.stamps import Stamps
from benchmarks.systems.loomq import Loomq, write_project
from loomq.services.submit import submit_goals
from loomq.testing import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import psycopg

_PREFORK = ("-P", "prefork", "-c", "2")
_ROUNDS = 5
_DIAMONDS = 60

# Copies of one finished goal: its row, its stages, its events.
_FINISHED = """
WITH made AS (
    INSERT INTO goals (id, pipeline, kind, snapshot, instruction, context, priority, state, leaves_left, follows,
                       created_at, ended_at, on_failure, is_newer)
    SELECT gen_random_uuid(), g.pipeline, g.kind, g.snapshot, g.instruction, g.context, g.priority, 'done', 0, false,
           g.created_at, g.ended_at, g.on_failure, g.is_newer
    FROM goals g, generate_series(1, %(count)s) WHERE g.id = %(goal)s RETURNING id
)
INSERT INTO stages (goal_id, name, item, worker, tier, priority, state, waits_for, children, reads, timeout_s,
                    max_retries, attempt, deliveries, history, output, ready_at, started_at, ended_at, needs, bulk)
SELECT m.id, s.name, s.item, s.worker, s.tier, s.priority, s.state, s.waits_for, s.children, s.reads, s.timeout_s,
       s.max_retries, s.attempt, s.deliveries, s.history, s.output, s.ready_at, s.started_at, s.ended_at, s.needs,
       s.bulk
FROM made m, stages s WHERE s.goal_id = %(goal)s
"""


def _site(stack: ExitStack, pool: Sequence[str] = _PREFORK) -> tuple[Bench, Loomq, psycopg.Connection[Any]]:
    servers = stack.enter_context(open_servers())
    stamps = Stamps(servers.folder)
    stack.callback(stamps.close)
    system = Loomq(servers.folder, servers.given, pool=pool)
    stack.callback(system.close)
    database = stack.enter_context(plain_connection(system.loom.database))
    return Bench(stamps, servers, [system], servers.pids()), system, database


def _cost(bench: Bench, system: Loomq) -> tuple[float, float]:
    """Give the processor time and the wall time of a stage, in milliseconds, of diamonds submitted at once."""
    found = []
    for _ in range(_ROUNDS):
        runs = bench.runs(_DIAMONDS)
        before, begun = bench.cpu(system), time.monotonic_ns()
        system.hand_in("diamond", runs)
        ended = max(bench.wait(system, runs).values())
        system.settle()
        found.append(((bench.cpu(system) - before) / _DIAMONDS / 4 * 1000, (ended - begun) / _DIAMONDS / 4 / 1e6))
    return statistics.median(cpu for cpu, _ in found), statistics.median(wall for _, wall in found)


def finished(*, quick: bool) -> Iterator[dict[str, Any]]:
    """Measure a stage with ever more finished ones in the database."""
    with ExitStack() as stack:
        bench, system, database = _site(stack)
        latency(bench, system, "diamond", 10)
        query = "SELECT id FROM goals WHERE pipeline = 'diamond' AND state = 'done' LIMIT 1"
        (goal,) = database.execute(query).fetchone() or (None,)
        base = None
        there = 0
        for count in (1_000, 10_000, 100_000) if quick else (1_000, 10_000, 100_000, 1_000_000):
            database.execute(_FINISHED, {"count": (count - there) // 4, "goal": goal})
            database.execute("ANALYZE")
            there = count
            cpu_ms, wall_ms = _cost(bench, system)
            base = base or (cpu_ms, wall_ms)
            yield {
                "part": "finished",
                "stages": count,
                "cpu_ms": round(cpu_ms, 3),
                "wall_ms": round(wall_ms, 3),
                "cpu_ratio": round(cpu_ms / base[0], 2),
                "wall_ratio": round(wall_ms / base[1], 2),
            }


def waiting(*, quick: bool) -> Iterator[dict[str, Any]]:
    """Measure a stage with ever more waiting behind it, of the same worker and less urgent."""
    with ExitStack() as stack:
        bench, system, _ = _site(stack)
        latency(bench, system, "noop", 10)
        base = None
        for count in (1_000, 10_000) if quick else (1_000, 10_000, 100_000):
            system.hold()
            goals = (
                {"instruction": "", "pipeline": "noop", "priority": "low", "context": {"run": None}}
                for _ in range(count)
            )
            submit_goals(goals, loom=system.loom)
            runs = bench.runs(1000)
            system.hand_in_many("noop", runs)
            before, begun = bench.cpu(system), time.monotonic_ns()
            system.let_go()
            ended = max(bench.wait(system, runs).values())
            cost = (ended - begun) / len(runs) / 1e6
            cpu = (bench.cpu(system) - before) / len(runs) * 1000
            base = base or (cpu, cost)
            yield {
                "part": "waiting",
                "stages": count,
                "cpu_ms": round(cpu, 3),
                "wall_ms": round(cost, 3),
                "cpu_ratio": round(cpu / base[0], 2),
                "wall_ratio": round(cost / base[1], 2),
            }
            left = "SELECT count(*) FROM goals WHERE state = 'open'"
            wait_until(lambda: system.loom.database.call(left, {})[0][0] == 0, "the rest", timeout_s=600)  # noqa: B023


def memory(*, quick: bool) -> Iterator[dict[str, Any]]:
    """Measure a node's memory, idle and after many tasks."""
    with ExitStack() as stack:
        bench, system, _ = _site(stack)
        assert system.node is not None
        node = system.node.process.pid
        idle = rss_mb(node)
        base = None
        done = 0
        for count in (1_000, 10_000) if quick else (1_000, 50_000):
            while done < count:
                drain_rate(bench, system, "noop", min(2_000, count - done))
                done += min(2_000, count - done)
            found = rss_mb(node)
            base = base or found
            yield {
                "part": "memory",
                "tasks": count,
                "idle_mb": round(idle, 1),
                "mb": round(found, 1),
                "ratio": round(found / base, 3),
            }


def waits(*, quick: bool) -> Iterator[dict[str, Any]]:
    """Measure a hundred calls of 200 ms at once in one process, against what they would take by themselves.

    Over all, from the first submit to the last end; and while all slots are in use, without the first two hundred calls
    and the last hundred.
    """
    count, at_once, ms = (800 if quick else 2_000), 100, 200
    with ExitStack() as stack:
        bench, system, _ = _site(stack, ("-P", "threads", "-c", str(at_once)))
        whole, busy = [], []
        for _ in range(3):
            runs = bench.runs(count)
            begun = time.monotonic_ns()
            goals = ({"instruction": "", "pipeline": "wait", "context": {"run": run, "ms": ms}} for run in runs)
            submit_goals(goals, loom=system.loom)
            ended = sorted(bench.wait(system, runs).values())
            whole.append(count / at_once * ms / 1000 / ((ended[-1] - begun) / 1e9))
            first, last = 2 * at_once, count - at_once
            busy.append((last - first) / at_once * ms / 1000 / ((ended[last] - ended[first]) / 1e9))
            system.settle()
        yield {
            "part": "waits",
            "at_once": at_once,
            "calls": count,
            "of_ideal": round(statistics.median(whole), 3),
            "of_ideal_while_busy": round(statistics.median(busy), 3),
        }


def starts(*, quick: bool) -> Iterator[dict[str, Any]]:
    """Measure an import, a help text, and a first run with servers that have to start."""
    programs = {
        "import_loomq": [sys.executable, "-c", "import loomq"],
        "python": [sys.executable, "-c", "pass"],
        "help": [sys.executable, "-m", "loomq.cli.main", "--help"],
    }
    for name, command in programs.items():
        took = [_timed(command) for _ in range(5 if quick else 15)]
        yield {"part": "starts", "what": name, "ms": round(statistics.median(took), 1)}
    with ExitStack() as stack:
        servers = stack.enter_context(open_servers())
        folder = servers.folder / "cold"
        write_project(folder)
        around = {**os.environ, "LOOMQ_IMPORT_ALLOW": "benched", "PYTHONPATH": str(ROOT), "BENCH_STAMPS": "/nowhere"}
        run = [
            sys.executable,
            "-m",
            "loomq.cli.main",
            "--project",
            str(folder),
            "--data",
            str(folder / "data"),
            "run",
            "chain",
        ]
        took_ms = _timed(run, around)
        yield {"part": "starts", "what": "cold loomq run", "ms": round(took_ms)}


def _timed(command: Sequence[str], around: dict[str, str] | None = None) -> float:
    begun = time.perf_counter()
    subprocess.run(command, check=False, capture_output=True, env=around)
    return (time.perf_counter() - begun) * 1000


def nodes(*, quick: bool) -> Iterator[dict[str, Any]]:
    """Measure work that waits and work that computes with 1, 2 and 4 nodes, beside what the model says."""
    ms, count = 50, (200 if quick else 600)
    with ExitStack() as stack:
        bench, system, _ = _site(stack, ("-P", "threads", "-c", "4"))
        settings = {**bench.servers.given, "project": bench.servers.folder / "project", "import_allow": "benched"}
        more = {"PYTHONPATH": str(ROOT)}
        cpu_ms = None
        there = 1
        for wanted in (1, 2, 4):
            while there < wanted:
                folder = bench.servers.folder / f"node{there}"
                folder.mkdir()
                node = loomq_node(folder, settings, pool=("-P", "threads", "-c", "4"), more=more)
                stack.callback(node.stop)
                stack.callback(node.process.terminate)
                there += 1
                nth = there
                wait_until(lambda: len(_live(system)) >= nth, "the node")  # noqa: B023
            runs = bench.runs(count)
            begun = time.monotonic_ns()
            goals = ({"instruction": "", "pipeline": "wait", "context": {"run": run, "ms": ms}} for run in runs)
            submit_goals(goals, loom=system.loom)
            ended = max(bench.wait(system, runs).values())
            rate = count / ((ended - begun) / 1e9)
            if cpu_ms is None:
                cpu_ms = max(4 / rate * 1000 - ms, 0.1)  # what a slot does besides waiting, learnt from one node
            said = runs_per_s(
                nodes=wanted, slots=4, wait_ms=ms, own_ms=cpu_ms, cores=len(os.sched_getaffinity(0)), cpu_ms=2.0
            )
            yield {
                "part": "nodes",
                "nodes": wanted,
                "slots": 4 * wanted,
                "runs_per_s": round(rate, 1),
                "model": round(said, 1),
                "ratio": round(rate / said, 2),
            }
            system.settle()


def _live(system: Loomq) -> list[Any]:
    from loomq.services import inspect

    return inspect.live_nodes(system.loom)


PARTS: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {
    "finished": finished,
    "waiting": waiting,
    "memory": memory,
    "waits": waits,
    "starts": starts,
    "nodes": nodes,
}


def main() -> None:
    """Run the parts that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    for part in asked.parts:
        print(f"{part} …", file=sys.stderr, flush=True)
        for line in PARTS[part](quick=asked.quick):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
