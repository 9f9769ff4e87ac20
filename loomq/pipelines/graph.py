"""The DAG of a pipeline's stages: who waits for whom, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from loomq.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from loomq.pipelines.spec import PipelineSpec, StageSpec


@dataclass(frozen=True)
class StageGraph:
    """Stages and their parents; no cycle, every parent is a stage.

    Args:
        names: Every stage, in the order of the file.
        parents: For each stage those that it waits for, in the order of the file.
    """

    names: tuple[str, ...]
    parents: Mapping[str, tuple[str, ...]]

    @classmethod
    def build(cls, parents: Mapping[str, Sequence[str]]) -> StageGraph:
        """Make a graph from each stage's parents.

        Raises:
            ConfigError: A parent is no stage, or stages wait for each other; the message prints the cycle.
        """
        for name, above in parents.items():
            for parent in above:
                if parent not in parents:
                    raise ConfigError(f'stage "{name}" waits for "{parent}", which is no stage')
        cycle = find_cycle(parents)
        if cycle:
            raise ConfigError(f"stages wait for each other: {' -> '.join(cycle)}")
        order = {name: at for at, name in enumerate(parents)}
        in_order = {name: tuple(sorted(set(above), key=order.__getitem__)) for name, above in parents.items()}
        return cls(tuple(parents), in_order)

    @cached_property
    def children(self) -> Mapping[str, tuple[str, ...]]:
        """For each stage those that wait for it, in the order of the file."""
        found: dict[str, list[str]] = {name: [] for name in self.names}
        for name in self.names:
            for parent in self.parents[name]:
                found[parent].append(name)
        return {name: tuple(below) for name, below in found.items()}

    @cached_property
    def levels(self) -> tuple[tuple[str, ...], ...]:
        """Kahn's levels: a stage stands one level below the lowest of its parents."""
        waiting = {name: len(self.parents[name]) for name in self.names}
        level = [name for name in self.names if not waiting[name]]
        found = []
        while level:
            found.append(tuple(level))
            free = set()
            for name in level:
                for child in self.children[name]:
                    waiting[child] -= 1
                    if not waiting[child]:
                        free.add(child)
            level = [child for child in self.names if child in free] if free else []
        return tuple(found)

    @cached_property
    def order(self) -> tuple[str, ...]:
        """The stages so that each stands after its parents."""
        return tuple(name for level in self.levels for name in level)

    @cached_property
    def leaves(self) -> tuple[str, ...]:
        """The stages that no other waits for."""
        return tuple(name for name in self.names if not self.children[name])

    def ancestors(self, name: str) -> frozenset[str]:
        """Give every stage that must be done before this one."""
        return self._names(self._above[name])

    def reduced(self) -> StageGraph:
        """Give the transitive reduction: the fewest edges that keep every order."""
        bit = self._bits
        parents = {}
        for name in self.names:
            indirect = 0
            for parent in self.parents[name]:
                indirect |= self._above[parent]
            parents[name] = tuple(parent for parent in self.parents[name] if not indirect & bit[parent])
        return StageGraph(self.names, parents)

    @cached_property
    def _bits(self) -> dict[str, int]:
        return {name: 1 << at for at, name in enumerate(self.names)}

    @cached_property
    def _above(self) -> dict[str, int]:
        """For each stage the bit set of its ancestors."""
        found: dict[str, int] = {}
        for name in self.order:
            found[name] = 0
            for parent in self.parents[name]:
                found[name] |= found[parent] | self._bits[parent]
        return found

    def _names(self, bits: int) -> frozenset[str]:
        return frozenset(name for name, bit in self._bits.items() if bits & bit)


def dependencies(stage: StageSpec) -> tuple[str, ...]:
    """Give the stages that one waits for: ``depends_on`` if written, else what it reads.

    Raises:
        ConfigError: The mapping, the condition or the for_each is malformed.
    """
    return stage.reads if stage.depends_on is None else tuple(dict.fromkeys(stage.depends_on))


def graph_of(pipeline: PipelineSpec) -> StageGraph:
    """Build the graph of a pipeline.

    Raises:
        ConfigError: As in ``StageGraph.build``, or as in ``dependencies``.
    """
    return StageGraph.build({stage.name: dependencies(stage) for stage in pipeline.pipeline_stages})


def find_cycle(parents: Mapping[str, Sequence[str]]) -> list[str]:
    """Find stages that wait for each other.

    Returns:
        The way round, first and last the same, each stage before the one that waits for it; empty if there is none.
    """
    done: set[str] = set()
    for start in parents:
        way: dict[str, None] = {}
        stack = [(start, iter(parents[start]))]
        way[start] = None
        while stack:
            name, above = stack[-1]
            parent = next((one for one in above if one in parents and one not in done), None)
            if parent is None:
                done.add(name)
                del way[name]
                stack.pop()
            elif parent in way:
                names = list(way)
                return [*names[names.index(parent) :], parent][::-1]
            else:
                way[parent] = None
                stack.append((parent, iter(parents[parent])))
    return []
