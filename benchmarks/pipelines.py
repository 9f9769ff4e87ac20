"""Measure pipelines: ``python -m benchmarks.pipelines``, one JSON line a DAG. Nothing in here judges a time."""

from __future__ import annotations

import argparse
import json
import random
import sys
from typing import TYPE_CHECKING, Any

from benchmarks import dags, fan_out
from benchmarks.harness import open_servers
from benchmarks.projects import open_site

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from benchmarks.dags import Dag
    from benchmarks.projects import Site

_PATIENCE_S = 300.0
_THREADS = ("-P", "threads", "-c", "64")
_LINES = (25, 50, 100)
_AIM = 1.15
_ITEMS, _AT_ONCE, _ITEM_MS = 48, 6, 100

_LIMITED = {
    "name": "limited",
    "pipeline_stages": [
        {
            "name": "each",
            "worker_type": "wait",
            "for_each": "goal.context.items",
            "max_parallel": _AT_ONCE,
            "input_mapping": {"ms": _ITEM_MS, "above": {"item": "item"}},
        }
    ],
}


def makespan(site: Site, dag: Dag, rounds: int) -> dict[str, Any]:
    """Run a DAG a few times, one goal at a time, and give its line; the median round counts.

    Raises:
        RuntimeError: A stage gave another result than it must.
    """
    found = []
    for _ in range(rounds):
        handle = site.submit(dag.name)
        result = handle.result(timeout=_PATIENCE_S)
        timeline = result.pop("_timeline")
        if result != dag.expected() or len(timeline) != len(dag.parents):
            raise RuntimeError(f"{dag.name}: wrong results {result!r:.300}")
        found.append((site.took_s(handle), handle))
    found.sort(key=lambda each: each[0])
    took_s, handle = found[len(found) // 2]
    weight = site.weight(handle)
    return {
        "dag": dag.name,
        "stages": len(dag.parents),
        "critical_path_s": round(dag.critical_path_s, 3),
        "makespan_s": round(took_s, 3),
        "ratio": round(took_s / dag.critical_path_s, 3),
        "best_ratio": round(found[0][0] / dag.critical_path_s, 3),
        "by_levels_s": round(dag.by_levels_s, 3),
        **weight,
        "bytes_a_stage": round(weight["message_bytes"] / len(dag.parents)),
        "aim": f"ratio <= {_AIM}",
    }


def limited(site: Site) -> dict[str, Any]:
    """Fan out over a list with ``max_parallel``, and count how many items really ran at once."""
    handle = site.submit("limited", items=list(range(_ITEMS)))
    result = handle.result(timeout=_PATIENCE_S)
    rows = site.database.execute(
        "SELECT started_at, ended_at FROM stages WHERE goal_id = %s AND item >= 0", [handle.goal_id]
    ).fetchall()
    ideal_s, took_s = _ITEMS / _AT_ONCE * _ITEM_MS / 1000, site.took_s(handle)
    return {
        "dag": "max_parallel",
        "items": _ITEMS,
        "max_parallel": _AT_ONCE,
        "most_at_once": max(sum(begun <= at < ended for begun, ended in rows) for at, _ in rows),
        "critical_path_s": ideal_s,
        "makespan_s": round(took_s, 3),
        "ratio": round(took_s / ideal_s, 3),
        "in_order": [one["n"] for one in result["each"]["items"]] == [1 + n for n in range(_ITEMS)],
        "aim": "most_at_once = max_parallel",
    }


def measured(
    *, parts: str, seed: int, each: int, largest: int, rounds: int, items: int, goals: int
) -> Iterator[dict[str, Any]]:
    """Measure what was asked for, each part over servers of its own."""
    rng = random.Random(seed)
    chosen: list[Dag] = []
    if "makespan" in parts:
        chosen += dags.all_kinds(seed, each=each, largest=largest)
    if "chain" in parts:
        chosen += [dags.timed(f"chain_{size}", rng, dags.line(size)) for size in _LINES]
    if chosen:
        written = [*(dag.pipeline() for dag in chosen), _LIMITED]
        with open_servers() as servers, open_site(servers, written, _THREADS) as site:
            makespan(site, chosen[-1], 1)  # the node's first goal of all pays for imports and connections
            for dag in chosen:
                yield makespan(site, dag, rounds)
            if "makespan" in parts:
                yield limited(site)
    if "for_each" in parts:
        with open_servers() as servers, open_site(servers, fan_out.PIPELINES, fan_out.POOL) as site:
            yield fan_out.for_each(site, items=items, goals=goals)


def summary(found: Iterable[dict[str, Any]]) -> str:
    """Say in one line how the DAGs did."""
    ratios = sorted(line["ratio"] for line in found if "stages" in line)
    if not ratios:
        return ""
    late = sum(ratio > _AIM for ratio in ratios)
    return (
        f"{len(ratios)} DAGs: ratio {ratios[len(ratios) // 2]} in the middle, {ratios[-1]} at worst; {late} over {_AIM}"
    )


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipelines", description=__doc__)
    parser.add_argument("--parts", default="makespan,chain,for_each", help="what to measure (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the random DAGs (%(default)s)")
    parser.add_argument("--each", type=int, default=4, metavar="N", help="DAGs of each random kind (%(default)s)")
    parser.add_argument("--largest", type=int, default=60, metavar="N", help="stages of the largest (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="goals of each DAG (%(default)s)")
    parser.add_argument("--items", type=int, default=10_000, metavar="N", help="items of the for_each (%(default)s)")
    parser.add_argument("--goals", type=int, default=2_000, metavar="N", help="goals beside them (%(default)s)")
    lines = []
    for line in measured(**vars(parser.parse_args())):
        lines.append(line)
        print(json.dumps(line), flush=True)
    print(summary(lines), file=sys.stderr)


if __name__ == "__main__":
    main()
