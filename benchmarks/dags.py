"""Seeded DAGs of every kind, with stages that take a known time, and the pipelines that they are written as."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loomq.pipelines.graph import StageGraph

if TYPE_CHECKING:
    from collections.abc import Mapping

    Parents = dict[str, tuple[str, ...]]

_FASTEST_MS, _SLOWEST_MS = 50, 200
_MOST_PARENTS = 4
_REACH = 12  # how far up a stage's parents are
_WIDEST = 8
_MOST_SHARES = 3


@dataclass(frozen=True)
class Dag:
    """A pipeline whose every stage waits for so long and gives how deep it stands.

    Args:
        times_ms: What each stage takes.
        conditions: What some stages ask; the outcome is known beforehand.
        skipped: Those of them for which the answer is no. What follows them can do without.
    """

    name: str
    parents: Mapping[str, tuple[str, ...]]
    times_ms: Mapping[str, int]
    conditions: Mapping[str, str] = field(default_factory=dict)
    skipped: frozenset[str] = frozenset()

    @property
    def critical_path_s(self) -> float:
        """The time of the slowest way through, which no scheduler can beat."""
        ends: dict[str, int] = {}
        for name in StageGraph.build(self.parents).order:
            begins = max((ends[parent] for parent in self.parents[name]), default=0)
            ends[name] = begins + (0 if name in self.skipped else self.times_ms[name])
        return max(ends.values()) / 1000

    @property
    def by_levels_s(self) -> float:
        """What it would take if each level waited for the whole level above it."""
        levels = StageGraph.build(self.parents).levels
        return (
            sum(max((self.times_ms[name] for name in set(level) - self.skipped), default=0) for level in levels) / 1000
        )

    def expected(self) -> dict[str, dict[str, int]]:
        """Compute what each stage gives."""
        depths: dict[str, int] = {}
        for name in StageGraph.build(self.parents).order:
            if name not in self.skipped:
                depths[name] = 1 + max((depths.get(parent, 0) for parent in self.parents[name]), default=0)
        return {name: {"n": depth} for name, depth in depths.items()}

    def _stage(self, name: str) -> dict[str, Any]:
        mapping: dict[str, Any] = {"ms": self.times_ms[name]}
        if self.parents[name]:
            mapping["above"] = {
                parent: f"{parent}.output.n" + "?" * (parent in self.skipped) for parent in self.parents[name]
            }
        asked = {"condition": self.conditions[name]} if name in self.conditions else {}
        return {"name": name, "worker_type": "wait", "input_mapping": mapping, **asked}

    def pipeline(self) -> dict[str, Any]:
        """Write it as a pipeline file has it."""
        return {"name": self.name, "pipeline_stages": [self._stage(name) for name in self.parents]}


def times(rng: random.Random, parents: Parents) -> dict[str, int]:
    """Choose what each stage takes."""
    return {name: rng.randint(_FASTEST_MS, _SLOWEST_MS) for name in parents}


def tangled(rng: random.Random, size: int) -> Parents:
    """Make a DAG of stages with a few parents each, anywhere a little above them: full of N shapes."""
    found: Parents = {}
    for at in range(size):
        near = list(found)[-_REACH:]
        count = min(rng.randint(0 if rng.random() < 1 / 8 else 1, _MOST_PARENTS), len(near))
        found[f"s{at}"] = tuple(rng.sample(near, count))
    return found


def series_parallel(rng: random.Random, size: int) -> Parents:
    """Make a DAG by putting smaller ones after and beside each other."""
    found: Parents = {}

    def grow(size: int, above: tuple[str, ...]) -> tuple[str, ...]:
        if size == 1 or not above:
            name = f"s{len(found)}"
            found[name] = above
            return (name,) if size == 1 else grow(size - 1, (name,))
        parts = _split(rng, size)
        if rng.random() < 1 / 2:
            for part in parts:
                above = grow(part, above)
            return above
        return tuple(end for part in parts for end in grow(part, above))

    grow(size, ())
    return found


def _split(rng: random.Random, size: int) -> list[int]:
    cuts = sorted(rng.sample(range(1, size), min(rng.randint(1, _MOST_SHARES - 1), size - 1)))
    return [end - begin for begin, end in zip([0, *cuts], [*cuts, size], strict=True)]


def fans(rng: random.Random, size: int) -> Parents:
    """Make fan-outs, each with its own join, one after the other."""
    found: Parents = {"s0": ()}
    while len(found) < size - 2:
        begin = len(found)
        split = (f"s{begin - 1}",)
        width = min(rng.randint(2, _WIDEST), size - begin - 1)
        parts = tuple(f"s{at}" for at in range(begin, begin + width))
        found |= dict.fromkeys(parts, split)
        found[f"s{begin + width}"] = parts
    return found


def n_shapes(size: int) -> Parents:
    """Make two lines, of which the second waits at each step for the first as well: no canvas holds it."""
    found: Parents = {}
    for at in range(size // 2):
        found[f"a{at}"] = (f"a{at - 1}",) if at else ()
        found[f"b{at}"] = (f"a{at - 1}", f"b{at - 1}") if at else ()
    return found


def line(size: int) -> Parents:
    """Make a chain."""
    return {f"s{at}": (f"s{at - 1}",) if at else () for at in range(size)}


def timed(name: str, rng: random.Random, parents: Parents) -> Dag:
    """Give a DAG's stages their times."""
    return Dag(name, parents, times(rng, parents))


def asking_line(rng: random.Random, size: int) -> Dag:
    """Make a chain whose every stage has a condition that holds."""
    parents = line(size)
    asked = {name: f"{above[0]}.output.n >= 1" for name, above in parents.items() if above}
    return Dag(f"asking_chain_{size}", parents, times(rng, parents), asked)


def asking_diamonds(rng: random.Random, count: int) -> Dag:
    """Make diamonds, one below the other, of which one side is skipped, and with it what follows on that side."""
    parents: Parents = {"top": ()}
    asked, skipped = {}, set()
    for at in range(count):
        (above,) = list(parents)[-1:]
        left, right, below, join = (f"{what}{at}" for what in ("left", "right", "below", "join"))
        parents |= {left: (above,), right: (above,), below: (right,), join: (left, below)}
        asked |= {left: f"{above}.output.n >= 1", right: f"{above}.output.n < 1", below: f"{right}.output.n exists"}
        skipped |= {right, below}
    return Dag(f"asking_diamonds_{count}", parents, times(rng, parents), asked, frozenset(skipped))


def all_kinds(seed: int, *, each: int, largest: int) -> list[Dag]:
    """Make DAGs of every kind.

    Args:
        each: How many of each random kind.
        largest: How many stages the largest has.
    """
    rng = random.Random(seed)
    found = []
    for at in range(each):
        size = largest if at == 0 else rng.randint(largest // 4, largest)
        found.append(timed(f"tangled_{at}", rng, tangled(rng, size)))
        found.append(timed(f"series_parallel_{at}", rng, series_parallel(rng, size)))
        found.append(timed(f"fans_{at}", rng, fans(rng, size)))
    found.append(timed("n_shapes", rng, n_shapes(min(largest, 40))))
    found.append(asking_line(rng, min(largest, 25)))
    found.append(asking_diamonds(rng, max(largest // 8, 1)))
    return found
