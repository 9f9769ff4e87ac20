"""From the DAG to the shapes that Celery carries: a linear run is a chain, a fan-out with its own join a chord.

Pure: no Celery in here. Only shapes that Celery 5.7 was measured to run right come out (never a group after a group),
and a segment ends at its next join, so a message grows with its segment and not with the rest of the pipeline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from loomq.pipelines.graph import StageGraph

# A chain's message names every stage to come, so its bytes grow with the square of its length; eight keep both the
# bytes and the number of publishes small.
LONGEST_RUN = 8


@dataclass(frozen=True, slots=True)
class Segment:
    """What is published in one go.

    Args:
        runs: Linear runs; each is sent as a chain, or as one signature if it is one stage long.
        join: The stage that waits for the ends of all runs, sent as the body of their chord; ``None`` sends one run.
    """

    runs: tuple[tuple[str, ...], ...]
    join: str | None = None


def segments(
    graph: StageGraph, ready: Iterable[str], longest_run: int = LONGEST_RUN, alone: Collection[str] = ()
) -> tuple[Segment, ...]:
    """Compile what starts at the ready stages.

    Args:
        graph: The pipeline's transitive reduction.
        ready: Stages whose parents are done.
        longest_run: How many stages a chain may have.
        alone: Stages that are only ever sent by themselves.
    """
    runs = [_run_from(graph, name, longest_run, alone) for name in ready]
    by_join: dict[str, list[tuple[str, ...]]] = {}
    for run in runs:
        below = graph.children[run[-1]]
        if len(below) == 1 and not {run[-1], below[0]} & set(alone):
            by_join.setdefault(below[0], []).append(run)
    found = []
    placed: set[tuple[str, ...]] = set()
    for join, parts in by_join.items():
        if len(parts) > 1 and {part[-1] for part in parts} == set(graph.parents[join]):
            found.append(Segment(tuple(parts), join))
            placed.update(parts)
    found.extend(Segment((run,)) for run in runs if run not in placed)
    return tuple(found)


def _run_from(graph: StageGraph, start: str, longest: int, alone: Collection[str]) -> tuple[str, ...]:
    run = [start]
    while len(run) < longest and run[-1] not in alone:
        below: Sequence[str] = graph.children[run[-1]]
        if len(below) != 1 or len(graph.parents[below[0]]) != 1 or below[0] in alone:
            break
        run.append(below[0])
    return tuple(run)
