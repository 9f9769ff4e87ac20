"""Pipelines that run pipelines: who contains whom, and how deep it goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loomq.pipelines.spec import PipelineSpec


def contained(spec: PipelineSpec | None) -> tuple[str, ...]:
    """Give the pipelines that a pipeline's stages run, each once; none for a file that cannot be read."""
    stages = spec.pipeline_stages if spec else ()
    return tuple(dict.fromkeys(stage.pipeline for stage in stages if stage.pipeline is not None))


def way_back(start: str, target: PipelineSpec, known: Mapping[str, PipelineSpec | None]) -> list[str]:
    """Find a pipeline inside itself.

    Args:
        start: A pipeline that the target's stages run.
        target: The pipeline that is looked for.
        known: Every pipeline by name.

    Returns:
        The shortest way from the target to itself, first and last the same; empty if there is none.
    """
    ways = {start: [target.name, start]}
    level = [start]
    while level and target.name not in ways:
        found: dict[str, list[str]] = {}
        for name in level:
            for below in contained(known.get(name)):
                if below not in ways:
                    found.setdefault(below, [*ways[name], below])
        ways |= found
        level = list(found)
    return ways.get(target.name, [])


def longest_chain(start: str, known: Mapping[str, PipelineSpec | None]) -> list[str]:
    """Find the longest chain of pipelines, each inside the one before; a circle ends it.

    Args:
        start: The outermost.
        known: Every pipeline by name.
    """
    done: dict[str, list[str]] = {}
    way = [start]
    while way:
        name = way[-1]
        below = [one for one in contained(known.get(name)) if one not in way]
        if open_ := next((one for one in below if one not in done), None):
            way.append(open_)
        else:
            done[name] = [name, *max((done[one] for one in below), key=len, default=[])]
            way.pop()
    return done[start]
