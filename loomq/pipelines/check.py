"""The checks that need a whole pipeline and the project around it: names, order, paths and types, each at its place."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from loomq.contracts import Contract
from loomq.pipelines.check_values import ValueCheck
from loomq.pipelines.condition import Condition
from loomq.pipelines.for_each import ForEach
from loomq.pipelines.graph import StageGraph, find_cycle
from loomq.pipelines.mapping import parse_mapping, stages_of
from loomq.pipelines.neighbours import MAX_NESTING, Scope
from loomq.pipelines.nesting import longest_chain, way_back
from loomq.pipelines.scanner import MalformedError
from loomq.problems import Problem, listed, suggest

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from loomq.pipelines.mapping import Fault
    from loomq.pipelines.neighbours import Neighbours
    from loomq.pipelines.paths import Path
    from loomq.pipelines.spec import PipelineSpec, StageSpec
    from loomq.yaml_text import Document, KeyPath

T = TypeVar("T")

_RESERVED = {
    "goal": "goal is what mappings call the goal itself",
    "item": "item is what a stage with for_each calls one item",
    "index": "index is what a stage with for_each calls the number of an item",
}


def check_pipeline(document: Document, spec: PipelineSpec, neighbours: Neighbours) -> list[Problem]:
    """Check a pipeline against itself, its workers and the pipelines that it runs.

    Args:
        document: The file, for places.
        spec: What it says.
        neighbours: The rest of the project.
    """
    return list(_Check(document, spec, neighbours).problems())


class _Reading(NamedTuple):
    """A path with its place, and where in the text there it begins."""

    place: KeyPath
    path: Path
    offset: int = 0


class _Stage:
    """A stage with its expressions parsed; what is malformed is a problem and otherwise left out."""

    def __init__(self, document: Document, spec: StageSpec, place: KeyPath) -> None:
        self.spec, self.place = spec, place
        self._document = document
        self.problems: list[Problem] = []
        self.mapping, faults = parse_mapping(spec.input_mapping, has_items=spec.for_each is not None)
        self.problems += _faults(document, (*place, "input_mapping"), faults)
        self.condition = self._parsed(
            "condition", partial(Condition.parse, has_items=spec.for_each is not None), "LQ213"
        )
        self.for_each = self._parsed("for_each", ForEach.parse, "LQ202")

    def _parsed(self, key: str, parse: Callable[[str], T], problem_id: str) -> T | None:
        text: str | None = getattr(self.spec, key)
        if text is None:
            return None
        try:
            return parse(text)
        except MalformedError as error:
            path = (*self.place, key)
            at = self._document.within(path, error.offset)
            self.problems.append(self._document.problem(problem_id, error.message, path, hint=error.hint, at=at))
        return None

    @property
    def readings(self) -> Iterator[_Reading]:
        """Every path of the stage."""
        for target, path in self.mapping.paths:
            yield _Reading((*self.place, "input_mapping", *target), path)
        for one in self.condition.comparisons if self.condition else ():
            yield _Reading((*self.place, "condition"), one.path, one.at[0])
        if self.for_each:
            yield _Reading((*self.place, "for_each"), self.for_each.path)

    @property
    def parents(self) -> tuple[str, ...]:
        said = self.spec.depends_on
        return stages_of(reading.path for reading in self.readings) if said is None else said

    @property
    def needs(self) -> set[str]:
        return {*self.mapping.needs, *(self.for_each.needs if self.for_each else ())}


class _Check:
    def __init__(self, document: Document, spec: PipelineSpec, neighbours: Neighbours) -> None:
        self.document, self.spec, self.neighbours = document, spec, neighbours
        self.stages = [
            _Stage(document, said, ("pipeline_stages", index)) for index, said in enumerate(spec.pipeline_stages)
        ]
        # Of two stages with one name the first counts; the second is reported.
        self.by_name: dict[str, _Stage] = {}
        for stage in self.stages:
            self.by_name.setdefault(stage.spec.name, stage)
        self.output, self.output_faults = parse_mapping(spec.output or {})

    def problems(self) -> Iterator[Problem]:
        for stage in self.stages:
            yield from self._name(stage)
            yield from self._runs(stage)
            yield from stage.problems
        yield from _faults(self.document, ("output",), self.output_faults)
        wrong = [*self._references(), *self._cycle()]
        yield from wrong
        if not wrong:
            yield from self._ancestry(StageGraph.build({name: stage.parents for name, stage in self.by_name.items()}))
        values = ValueCheck(self.document, Scope(self.spec, self.neighbours), self.neighbours)
        for stage in self.stages:
            yield from values.stage(stage.place, stage.spec, stage.mapping, stage.condition, stage.for_each)
        yield from values.output(self.output)
        yield from self._gaps()

    def _name(self, stage: _Stage) -> Iterator[Problem]:
        name, place = stage.spec.name, (*stage.place, "name")
        is_taken = name == "goal" or any(one.spec.for_each is not None for one in self.stages)
        if name in _RESERVED and is_taken:
            yield self.document.problem("LQ115", f'no stage may be called "{name}"', place, hint=_RESERVED[name])
        elif self.by_name[name] is not stage:
            first = self.document.mark((*self.by_name[name].place, "name")).line
            yield self.document.problem("LQ116", f'two stages are called "{name}", the first on line {first}', place)

    def _runs(self, stage: _Stage) -> Iterator[Problem]:
        """Look at what a stage runs: its worker or its pipeline, and what stands in for them."""
        spec, fallback = stage.spec, stage.spec.fallback
        if spec.worker_type is not None:
            yield from self._worker((*stage.place, "worker_type"), spec.worker_type)
        if spec.pipeline is not None:
            yield from self._pipeline((*stage.place, "pipeline"), spec.pipeline)
        if fallback is not None and fallback.worker_type is not None:
            yield from self._worker((*stage.place, "fallback", "worker_type"), fallback.worker_type)
        contracts = self.neighbours.contracts(spec)
        if fallback is not None and fallback.value is not None and contracts and contracts.output is not None:
            for told in Contract(contracts.output).errors(fallback.value):
                message = f"the value breaks the stage's output_schema: {told}"
                yield self.document.problem("LQ218", message, (*stage.place, "fallback", "value"))

    def _worker(self, place: KeyPath, name: str) -> Iterator[Problem]:
        known = self.neighbours.workers
        if name not in known:
            hint = suggest(name, known) or _there_are("workers", known)
            yield self.document.problem("LQ201", f'no worker is called "{name}"', place, hint=hint)

    def _pipeline(self, place: KeyPath, name: str) -> Iterator[Problem]:
        known = self.neighbours.pipelines
        if name not in known:
            hint = suggest(name, known) or _there_are("pipelines", known)
            yield self.document.problem("LQ216", f'no pipeline is called "{name}"', place, hint=hint)
            return
        if back := way_back(name, self.spec, known):
            message = f"a pipeline contains itself: {' -> '.join(back)}"
            yield self.document.problem("LQ217", message, place)
            return
        chain = [self.spec.name, *longest_chain(name, known)]
        if len(chain) > MAX_NESTING:
            told = " -> ".join(chain[: MAX_NESTING + 1])
            message = f"{len(chain)} pipelines stand inside each other, at most {MAX_NESTING} may: {told}"
            yield self.document.problem("LQ217", message, place)

    def _references(self) -> Iterator[Problem]:
        for stage in self.stages:
            name = stage.spec.name
            for reading in stage.readings:
                yield from self._root(reading, name)
            for index, parent in enumerate(stage.spec.depends_on or ()):
                place = (*stage.place, "depends_on", index)
                if parent == name:
                    yield self.document.problem("LQ209", f'the stage "{name}" depends on itself', place)
                elif parent not in self.by_name:
                    hint = suggest(parent, self.by_name) or _there_are("stages", self.by_name)
                    yield self.document.problem("LQ211", f'no stage is called "{parent}"', place, hint=hint)
        for target, path in self.output.paths:
            yield from self._root(_Reading(("output", *target), path), "")

    def _root(self, reading: _Reading, reader: str) -> Iterator[Problem]:
        place, root = reading.place, reading.path.stage
        at = self.document.within(place, reading.offset)
        if root == reader:
            yield self.document.problem("LQ209", f'the stage "{reader}" takes input from itself', place)
        elif root is not None and root not in self.by_name:
            hint = suggest(root, [*self.by_name, "goal"]) or _there_are("stages", self.by_name)
            yield self.document.problem("LQ203", f'"{root}" is neither goal nor a stage', place, hint=hint, at=at)

    def _cycle(self) -> Iterator[Problem]:
        parents = {name: [one for one in stage.parents if one != name] for name, stage in self.by_name.items()}
        cycle = find_cycle(parents)
        if cycle:
            message = f"stages wait for each other: {' -> '.join(cycle)}"
            yield self.document.problem("LQ208", message, (*self.by_name[cycle[0]].place, "name"))

    def _ancestry(self, graph: StageGraph) -> Iterator[Problem]:
        for stage in self.stages:
            name = stage.spec.name
            if stage.spec.depends_on is None:
                continue
            above = graph.ancestors(name)
            for place, path, offset in stage.readings:
                if path.stage is not None and path.stage not in above:
                    message = f'the stage "{name}" reads "{path.stage}" and depends_on does not make it wait for that'
                    hint = f"add {path.stage} to depends_on, or leave depends_on out"
                    at = self.document.within(place, offset) if offset else None
                    yield self.document.problem("LQ210", message, place, hint=hint, at=at)

    def _gaps(self) -> Iterator[Problem]:
        """Look for what the result needs and a skipped stage does not give."""
        skippable = {name for name, one in self.by_name.items() if one.condition and not one.condition.reads_item}
        while more := {name for name, one in self.by_name.items() if one.needs & skippable} - skippable:
            skippable |= more
        for target, path in self.output.paths:
            if path.root in skippable and not path.is_optional:
                message = f'"{path.root}" may be skipped, and then the result has no "{".".join(target)}"'
                hint = f"write `{path.text}?` if that is meant, or `{path.text} | default(…)`"
                yield self.document.problem("LQ219", message, ("output", *target), hint=hint, severity="warning")


def _faults(document: Document, above: KeyPath, faults: list[Fault]) -> Iterator[Problem]:
    for fault in faults:
        path = (*above, *fault.target)
        at = document.within(path, fault.offset)
        yield document.problem("LQ202", fault.message, path, hint=fault.hint, at=at)


def _there_are(what: str, names: Collection[str]) -> str:
    return f"there are: {listed(sorted(names))}" if names else f"there are no {what}"
