"""The checks that need a whole pipeline and its workers: names, order, paths and types, each at its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from loomq.pipelines.graph import StageGraph, find_cycle
from loomq.pipelines.mapping import Literal, Mapping, Path, parse_mapping
from loomq.pipelines.shapes import ANYTHING, Impossible, Shape, meet, type_of
from loomq.problems import Problem, listed, suggest
from loomq.yaml_text import KeyPath, Mark

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from loomq.pipelines.mapping import Fault
    from loomq.pipelines.spec import PipelineSpec, StageSpec
    from loomq.workers.spec import Schemas
    from loomq.yaml_text import Document

_STAGE_FIELDS: dict[str, dict[str, Any]] = {
    "model_used": {"type": ["string", "null"]},
    "processing_time_ms": {"type": "number"},
    "started_at": {"type": "string"},
    "ended_at": {"type": "string"},
    "wall_time_ms": {"type": "number"},
}


def check_pipeline(
    document: Document, spec: PipelineSpec, *, workers: Collection[str], schemas: Callable[[StageSpec], Schemas]
) -> list[Problem]:
    """Check a pipeline against itself and its workers.

    Args:
        document: The file, for places.
        spec: What it says.
        workers: Every worker_type that has a file.
        schemas: Gives the contracts that hold for a stage; called for stages with a known worker only.
    """
    return list(_Check(document, spec, workers, schemas).problems())


class _Stage(NamedTuple):
    spec: StageSpec
    place: KeyPath
    mapping: Mapping
    faults: list[Fault]
    schemas: Schemas | None

    @property
    def parents(self) -> tuple[str, ...]:
        return self.mapping.roots if self.spec.depends_on is None else self.spec.depends_on


class _Check:
    def __init__(
        self,
        document: Document,
        spec: PipelineSpec,
        workers: Collection[str],
        schemas: Callable[[StageSpec], Schemas],
    ) -> None:
        self.document, self.spec, self.workers = document, spec, workers
        self.stages: list[_Stage] = []
        for index, said in enumerate(spec.pipeline_stages):
            known = schemas(said) if said.worker_type in workers else None
            place = ("pipeline_stages", index)
            self.stages.append(_Stage(said, place, *parse_mapping(said.input_mapping), known))
        # Of two stages with one name the first counts; the second is reported.
        self.by_name: dict[str, _Stage] = {}
        for stage in self.stages:
            self.by_name.setdefault(stage.spec.name, stage)
        self.output, self.output_faults = parse_mapping(spec.output or {})

    def problems(self) -> Iterator[Problem]:
        yield from self._names()
        for stage in self.stages:
            yield from self._faults((*stage.place, "input_mapping"), stage.faults)
        yield from self._faults(("output",), self.output_faults)
        wrong = [*self._references(), *self._cycle()]
        yield from wrong
        if not wrong:
            yield from self._ancestry(StageGraph.build({name: stage.parents for name, stage in self.by_name.items()}))
        for stage in self.stages:
            wanted = Shape.of(stage.schemas.input) if stage.schemas else ANYTHING
            yield from self._entries((*stage.place, "input_mapping"), stage.mapping, wanted)
        yield from self._entries(("output",), self.output, ANYTHING)

    def _names(self) -> Iterator[Problem]:
        for stage in self.stages:
            name, worker_type = stage.spec.name, stage.spec.worker_type
            if name == "goal":
                hint = "goal is what mappings call the goal itself"
                yield self.document.problem("LQ115", 'no stage may be called "goal"', (*stage.place, "name"), hint=hint)
            elif self.by_name[name] is not stage:
                first = self.document.mark((*self.by_name[name].place, "name")).line
                message = f'two stages are called "{name}", the first on line {first}'
                yield self.document.problem("LQ116", message, (*stage.place, "name"))
            if worker_type not in self.workers:
                hint = suggest(worker_type, self.workers) or _there_are("workers", self.workers)
                message = f'no worker is called "{worker_type}"'
                yield self.document.problem("LQ201", message, (*stage.place, "worker_type"), hint=hint)

    def _faults(self, above: KeyPath, faults: list[Fault]) -> Iterator[Problem]:
        for fault in faults:
            path = (*above, *fault.target)
            at = self._within(path, fault.offset)
            yield self.document.problem("LQ202", fault.message, path, hint=fault.hint, at=at)

    def _within(self, path: KeyPath, offset: int) -> Mark | None:
        """Give the place of a character inside a text value, if the value stands on one line."""
        node = self.document.node(path)
        mark = self.document.mark(path)
        if node is None or not isinstance(node.value, str) or len(node.value) > mark.width:
            return None
        skipped = min(offset + node.quoted, mark.width - 1)
        return Mark(mark.line, mark.col + skipped, mark.width - skipped - node.quoted)

    def _references(self) -> Iterator[Problem]:
        for stage in self.stages:
            name = stage.spec.name
            for target, path in stage.mapping.paths:
                yield from self._root((*stage.place, "input_mapping", *target), path, name)
            for index, parent in enumerate(stage.spec.depends_on or ()):
                place = (*stage.place, "depends_on", index)
                if parent == name:
                    yield self.document.problem("LQ209", f'the stage "{name}" depends on itself', place)
                elif parent not in self.by_name:
                    hint = suggest(parent, self.by_name) or _there_are("stages", self.by_name)
                    yield self.document.problem("LQ211", f'no stage is called "{parent}"', place, hint=hint)
        for target, path in self.output.paths:
            yield from self._root(("output", *target), path, "")

    def _cycle(self) -> Iterator[Problem]:
        parents = {name: [one for one in stage.parents if one != name] for name, stage in self.by_name.items()}
        cycle = find_cycle(parents)
        if cycle:
            message = f"stages wait for each other: {' -> '.join(cycle)}"
            yield self.document.problem("LQ208", message, (*self.by_name[cycle[0]].place, "name"))

    def _root(self, place: KeyPath, path: Path, reader: str) -> Iterator[Problem]:
        if path.root == reader:
            yield self.document.problem("LQ209", f'the stage "{reader}" takes input from itself', place)
        elif path.root != "goal" and path.root not in self.by_name:
            hint = suggest(path.root, [*self.by_name, "goal"]) or _there_are("stages", self.by_name)
            message = f'"{path.root}" is neither goal nor a stage'
            yield self.document.problem("LQ203", message, place, hint=hint, at=self._within(place, 0))

    def _ancestry(self, graph: StageGraph) -> Iterator[Problem]:
        for stage in self.stages:
            name = stage.spec.name
            if stage.spec.depends_on is None:
                continue
            above = graph.ancestors(name)
            for target, path in stage.mapping.paths:
                if path.root != "goal" and path.root not in above:
                    message = f'the stage "{name}" reads "{path.root}" and depends_on does not make it wait for that'
                    hint = f"add {path.root} to depends_on, or leave depends_on out"
                    place = (*stage.place, "input_mapping", *target)
                    yield self.document.problem("LQ210", message, place, hint=hint)

    def _entries(self, here: KeyPath, mapping: Mapping, wanted: Shape) -> Iterator[Problem]:
        written = self.document.node(here)
        given = written.items if written else {}
        for name in sorted(wanted.required() - given.keys()):
            message = f'the input "{name}" is required by the worker\'s input_schema and nothing is mapped to it'
            yield self.document.problem("LQ206", message, here, key=True, hint=f"add `{name}: <path>`")
        for target, entry in mapping.entries:
            place = (*here, target)
            below = wanted.child(target)
            if isinstance(below, Impossible):
                message = f'the worker\'s input_schema does not allow "{target}"'
                yield self.document.problem("LQ212", message, place, key=True, hint=below.hint)
                below = ANYTHING
            if isinstance(entry, Mapping):
                if "object" not in below.types():
                    yield self._clash(place, "a nested mapping is object", below)
                else:
                    yield from self._entries(place, entry, below)
            elif isinstance(entry, Literal):
                yield from self._literal(place, entry.value, below)
            else:
                yield from self._path(place, entry, below)

    def _literal(self, place: KeyPath, value: Any, wanted: Shape) -> Iterator[Problem]:
        given = type_of(value)
        if not meet(frozenset({given}), wanted.types()):
            yield self._clash(place, f"the literal is {given}", wanted)

    def _path(self, place: KeyPath, path: Path, wanted: Shape) -> Iterator[Problem]:
        shape = self._source(path)
        so_far = f"{path.root}.{path.parts[0]}"
        for part, spot in zip(path.parts[1:], path.spots[1:], strict=True):
            below = shape.child(part)
            at = self._within(place, spot)
            if isinstance(below, Impossible):
                yield self._impossible(place, path, so_far, below, at)
                return
            near = shape.undeclared(part)
            if near:
                message = f'{so_far} does not declare "{part}"'
                yield self.document.problem("LQ204", message, place, hint=near, at=at, severity="warning")
            shape, so_far = below, f"{so_far}.{part}"
        if not meet(shape.types(), wanted.types()):
            yield self._clash(place, f"{path.text} is {_types(shape)}", wanted)
        elif path.is_optional and not path.optional:
            yield from self._literal(place, path.default, wanted)

    def _impossible(self, place: KeyPath, path: Path, so_far: str, why: Impossible, at: Mark | None) -> Problem:
        if path.root == "goal":
            message = f"the pipeline's input_schema does not allow this: at {so_far} {why.message}"
            return self.document.problem("LQ207", message, place, hint=why.hint, at=at)
        worker = self.by_name[path.root].spec.worker_type
        message = f"the output_schema of {path.root} ({worker}) cannot have this: at {so_far} {why.message}"
        return self.document.problem("LQ204", message, place, hint=why.hint, at=at)

    def _source(self, path: Path) -> Shape:
        field = str(path.parts[0])
        if path.root == "goal":
            if field != "context":
                return Shape.of({"type": "string"})
            return Shape.of({"type": "object"} if self.spec.input_schema is None else self.spec.input_schema)
        if field in _STAGE_FIELDS:
            return Shape.of(_STAGE_FIELDS[field])
        producer = self.by_name.get(path.root)
        return Shape.of(producer.schemas.output) if producer and producer.schemas else ANYTHING

    def _clash(self, place: KeyPath, given: str, wanted: Shape) -> Problem:
        return self.document.problem("LQ205", f"{given}, and the worker's input_schema wants {_types(wanted)}", place)


def _types(shape: Shape) -> str:
    return " or ".join(sorted(shape.types())) or "nothing"


def _there_are(what: str, names: Collection[str]) -> str:
    return f"there are: {listed(sorted(names))}" if names else f"there are no {what}"
