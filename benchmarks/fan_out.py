"""A for_each over a long list beside as many goals of one stage, and what small goals notice of it."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

from benchmarks.harness import p95
from benchmarks.sweeper import write_backlog
from loomq.messages import TaskStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.projects import Site
    from loomq.services.submit import GoalHandle

POOL = ("-P", "prefork", "-c", "2")
_PATIENCE_S = 900.0
_PAUSE_S = 0.25
_TRIES = 40
_FINAL = {TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED}
_SMALL_WORKERS = ("noop", "other")
_SINGLE = {
    "name": "single",
    "pipeline_stages": [{"name": "step", "worker_type": "noop", "input_mapping": {"n": "goal.context.n"}}],
}
_SMALL = [
    {
        "name": f"small_{worker}",
        "pipeline_stages": [{"name": "step", "worker_type": worker, "input_mapping": {"n": "goal.context.n"}}],
    }
    for worker in _SMALL_WORKERS
]
_LONG = {
    "name": "long",
    "pipeline_stages": [
        {"name": "numbers", "worker_type": "numbers", "input_mapping": {"n": "goal.context.n"}},
        {
            "name": "each",
            "worker_type": "noop",
            "for_each": "numbers.output.items",
            "input_mapping": {"n": "item"},
        },
    ],
}
PIPELINES = (_SINGLE, *_SMALL, _LONG)


def for_each(site: Site, *, items: int, goals: int) -> dict[str, Any]:
    """Fan out over a list, and give its line.

    Args:
        goals: How many goals of one stage are run for comparison.

    Raises:
        RuntimeError: An item gave another result than it must.
    """
    idle = _small_goals(site, lambda count: count < _TRIES)
    goals_per_s = _drain(site, goals)
    handle = site.submit("long", n=items)
    meanwhile = _small_goals(site, lambda _: handle.status() not in _FINAL)
    result = handle.result(timeout=_PATIENCE_S)
    if result["each"] != {"items": [{"n": n} for n in range(items)], "errors": []}:
        raise RuntimeError("an item's result is wrong, or in another's place")
    expand_s, took_s = _times(site, handle)
    return {
        "dag": "for_each",
        "items": items,
        "expand_s": round(expand_s, 3),
        "makespan_s": round(took_s, 2),
        "items_per_s": round(items / took_s, 1),
        "goals_per_s": round(goals_per_s, 1),
        "ratio": round(items / took_s / goals_per_s, 2),
        "in_order": True,
        **{f"small_idle_{worker}": _spread(found) for worker, found in idle.items()},
        **{f"small_meanwhile_{worker}": _spread(found) for worker, found in meanwhile.items()},
        **site.weight(handle),
        "aim": "ratio >= 1",
    }


def _small_goals(site: Site, go_on: Callable[[int], bool]) -> dict[str, list[float]]:
    """Hand in goals of one stage, of the same worker as the items and of another, one pair every so often.

    Returns:
        The milliseconds of each from its row's birth to its end, by worker.
    """
    handles: dict[str, list[GoalHandle]] = {worker: [] for worker in _SMALL_WORKERS}
    while go_on(len(handles["other"])):
        for worker, found in handles.items():
            found.append(site.submit(f"small_{worker}", n=1))
        time.sleep(_PAUSE_S)
    for found in handles.values():
        for handle in found:
            handle.result(timeout=_PATIENCE_S)
    return {worker: [1000 * site.took_s(handle) for handle in found] for worker, found in handles.items()}


def _spread(found: list[float]) -> dict[str, float]:
    p50_ms = statistics.median(found)
    return {"p50_ms": round(p50_ms, 1), "p95_ms": round(p95(found), 1), "max_ms": round(max(found), 1)}


def _drain(site: Site, count: int) -> float:
    """Let the node work on a backlog of goals of one stage; gives goals a second."""
    write_backlog(site.loom, site.database, count)
    left = "SELECT count(*) FROM goals WHERE state = 'open'"
    begun, until = time.perf_counter(), time.perf_counter() + _PATIENCE_S
    first: tuple[int, float] | None = None
    while (open_now := (site.database.execute(left).fetchone() or (0,))[0]) and time.perf_counter() < until:
        if first is None and open_now < count:
            first = open_now, time.perf_counter()
        time.sleep(_PAUSE_S / 5)
    done, since = first or (count, begun)
    return float(done / (time.perf_counter() - since))


def _times(site: Site, handle: GoalHandle) -> tuple[float, float]:
    """Give the seconds that it took to write the rows of the items, and to run them all."""
    query = (
        "SELECT kind, extract(epoch FROM at)::float8 FROM events WHERE goal_id = %s AND stage = 'each' AND item = -1"
    )
    at = dict(site.database.execute(query, [handle.goal_id]).fetchall())
    written = at["stage_fanned_out"]
    return written - at["stage_started"], at["stage_completed"] - written
