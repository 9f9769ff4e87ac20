"""What the check of a pipeline knows of the rest of the project: workers, other pipelines, and the shapes they give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loomq.errors import ConfigError
from loomq.pipelines.mapping import Literal, Mapping
from loomq.pipelines.paths import MISSING
from loomq.pipelines.shapes import ANYTHING, Fields, Impossible, Items, Shape

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from collections.abc import Mapping as MappingABC

    from loomq.pipelines.paths import Path
    from loomq.pipelines.spec import Fallback, PipelineSpec, StageSpec
    from loomq.workers.spec import Schemas

#: How many pipelines may stand inside each other, the outermost counted.
MAX_NESTING = 8

_NULL = Shape.of({"type": "null"})
_STAGE_FIELDS: dict[str, dict[str, Any]] = {
    "model_used": {"type": ["string", "null"]},
    "processing_time_ms": {"type": "number"},
    "started_at": {"type": "string"},
    "ended_at": {"type": "string"},
    "wall_time_ms": {"type": "number"},
}


class Neighbours:
    """What a pipeline is checked against.

    Args:
        workers: Every worker_type that has a file.
        pipelines: Every pipeline that has a file; ``None`` for one that cannot be read.
        contracts: Gives the contracts that hold for a worker, or for a stage that runs it; called for known workers.
    """

    def __init__(
        self,
        workers: Collection[str],
        pipelines: MappingABC[str, PipelineSpec | None],
        contracts: Callable[[str, StageSpec | None], Schemas],
    ) -> None:
        self.workers, self.pipelines = workers, pipelines
        self._contracts = contracts
        self._results: dict[str, Shape] = {}
        self._depth = 0

    def contracts(self, stage: StageSpec) -> Schemas | None:
        """Give the contracts of a stage that runs a known worker."""
        name = stage.worker_type
        return self._contracts(name, stage) if name is not None and name in self.workers else None

    def input_of(self, stage: StageSpec) -> Shape:
        """Give the shape of what a stage takes."""
        if stage.pipeline is not None:
            nested = self.pipelines.get(stage.pipeline)
            return Shape.of(nested.input_schema if nested else None)
        found = self.contracts(stage)
        return Shape.of(found.input) if found else ANYTHING

    def input_of_fallback(self, fallback: Fallback) -> Shape:
        """Give the shape of what a fallback's worker takes; its own contract holds, not the stage's."""
        found = self._of_worker(fallback.worker_type)
        return Shape.of(found.input) if found else ANYTHING

    def output_of(self, stage: StageSpec) -> Shape:
        """Give the shape of ``<stage>.output`` as other stages see it."""
        one = self._single(stage)
        if stage.fallback is not None:
            one = one | self._output_of_fallback(stage.fallback)
        if stage.for_each is None:
            return one
        has_gaps = stage.condition is not None or stage.on_item_failure == "continue"
        return Shape((Fields({"items": Shape((Items(one | _NULL if has_gaps else one),)), "errors": _ANY_LIST}),))

    def result_of(self, name: str) -> Shape:
        """Give the shape of a pipeline's result."""
        spec = self.pipelines.get(name)
        if spec is None or self._depth == MAX_NESTING:
            return ANYTHING
        if name not in self._results:
            # A pipeline inside itself is an error of its own: here it is merely unknown.
            self._results[name] = ANYTHING
            self._depth += 1
            self._results[name] = Scope(spec, self).result()
            self._depth -= 1
        return self._results[name]

    def _single(self, stage: StageSpec) -> Shape:
        if stage.pipeline is not None:
            return self.result_of(stage.pipeline)
        found = self.contracts(stage)
        return Shape.of(found.output) if found else ANYTHING

    def _output_of_fallback(self, fallback: Fallback) -> Shape:
        if fallback.value is not None:
            return Shape.of_value(fallback.value)
        found = self._of_worker(fallback.worker_type)
        return Shape.of(found.output) if found else ANYTHING

    def _of_worker(self, name: str | None) -> Schemas | None:
        return self._contracts(name, None) if name is not None and name in self.workers else None


_ANY_LIST = Shape((Items(ANYTHING),))


class Scope:
    """What the paths of one pipeline may lead to.

    Args:
        spec: The pipeline; of two stages with one name the first counts.
    """

    def __init__(self, spec: PipelineSpec, neighbours: Neighbours) -> None:
        self.spec, self.neighbours = spec, neighbours
        self.stages = {stage.name: stage for stage in reversed(spec.pipeline_stages)}

    def source(self, path: Path, items: Path | None) -> tuple[Shape, int]:
        """Give the shape that a path starts from, and how many of its parts lead there.

        Args:
            items: The list that ``item`` is of, if the reader has a for_each.
        """
        if path.of_item:
            item = self.shape(items, None).element() if items else ANYTHING
            return (item if path.root == "item" else Shape.of({"type": "integer"})), 0
        name = str(path.parts[0])
        if path.root == "goal":
            if name != "context":
                return Shape.of({"type": "string"}), 1
            return Shape.of({"type": "object"} if self.spec.input_schema is None else self.spec.input_schema), 1
        if name in _STAGE_FIELDS:
            return Shape.of(_STAGE_FIELDS[name]), 1
        stage = self.stages.get(path.root)
        return (self.neighbours.output_of(stage) if stage else ANYTHING), 1

    def shape(self, path: Path, items: Path | None) -> Shape:
        """Give the shape of what a path leads to, anything for one that leads nowhere; arguments as ``source``."""
        shape, at = self.source(path, items)
        for part in path.parts[at:]:
            below = shape.child(part)
            if isinstance(below, Impossible):
                return ANYTHING
            shape = below
        return shape if path.default is MISSING else shape | Shape.of_value(path.default)

    def result(self) -> Shape:
        """Give the shape of the pipeline's result, its timeline left out."""
        try:
            output = self.spec.output_mapping
        except ConfigError:
            return ANYTHING
        if output is None:
            outputs = {name: self.neighbours.output_of(stage) for name, stage in self.stages.items()}
            return Shape((Fields(outputs),))
        return self._built(output)

    def _built(self, mapping: Mapping) -> Shape:
        below = {}
        for target, entry in mapping.entries:
            if isinstance(entry, Mapping):
                below[target] = self._built(entry)
            elif isinstance(entry, Literal):
                below[target] = Shape.of_value(entry.value)
            else:
                below[target] = self.shape(entry, None)
        return Shape((Fields(below),))
