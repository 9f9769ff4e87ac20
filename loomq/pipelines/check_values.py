"""What flows through a pipeline, by its contracts: paths that lead nowhere, types that clash, missing inputs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from loomq.pipelines.condition import as_written
from loomq.pipelines.mapping import Literal, Mapping
from loomq.pipelines.paths import MISSING
from loomq.pipelines.shapes import ANYTHING, TYPES, Impossible, Shape, meet, type_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loomq.pipelines.condition import Comparison, Condition
    from loomq.pipelines.for_each import ForEach
    from loomq.pipelines.neighbours import Neighbours, Scope
    from loomq.pipelines.paths import Path
    from loomq.pipelines.spec import StageSpec
    from loomq.problems import Problem
    from loomq.yaml_text import Document, KeyPath

_ORDERED = frozenset({"integer", "number", "string"})
_PATH_LIKE = re.compile(r"[a-z][a-z0-9_]*[.\[]")


class _Consumer(NamedTuple):
    """Who takes what a mapping builds: the words for its contract, and what that allows here."""

    contract: str
    shape: Shape


class ValueCheck:
    """The checks of values over one pipeline.

    Args:
        document: The file, for places.
        scope: What its paths may lead to.
        neighbours: The rest of the project.
    """

    def __init__(self, document: Document, scope: Scope, neighbours: Neighbours) -> None:
        self.document, self.scope, self.neighbours = document, scope, neighbours
        self.items: Path | None = None

    def stage(
        self,
        place: KeyPath,
        spec: StageSpec,
        mapping: Mapping,
        condition: Condition | None,
        for_each: ForEach | None,
    ) -> Iterator[Problem]:
        """Check what one stage reads; its expressions without those that are malformed."""
        self.items = None
        if for_each is not None:
            yield from self._for_each((*place, "for_each"), for_each.path)
        self.items = for_each.path if for_each else None
        for comparison in condition.comparisons if condition else ():
            yield from self._comparison((*place, "condition"), comparison)
        yield from self._entries((*place, "input_mapping"), mapping, self._consumers(spec))

    def output(self, mapping: Mapping) -> Iterator[Problem]:
        """Check what the pipeline's result is selected by."""
        self.items = None
        yield from self._entries(("output",), mapping, [])

    def _consumers(self, spec: StageSpec) -> list[_Consumer]:
        contract = "the worker's input_schema" if spec.pipeline is None else f"the input_schema of {spec.pipeline}"
        found = [_Consumer(contract, self.neighbours.input_of(spec))]
        if spec.fallback is not None and spec.fallback.worker_type is not None:
            shape = self.neighbours.input_of_fallback(spec.fallback)
            found.append(_Consumer(f"the input_schema of the fallback {spec.fallback.worker_type}", shape))
        return found

    def _entries(self, here: KeyPath, mapping: Mapping, consumers: list[_Consumer]) -> Iterator[Problem]:
        written = self.document.node(here)
        given = written.items if written else {}
        for contract, shape in consumers:
            for name in sorted(shape.required() - given.keys()):
                message = f'the input "{name}" is required by {contract} and nothing is mapped to it'
                yield self.document.problem("LQ206", message, here, key=True, hint=f"add `{name}: <path>`")
        for target, entry in mapping.entries:
            place = (*here, target)
            inner = []
            for contract, shape in consumers:
                below = shape.child(target)
                if isinstance(below, Impossible):
                    message = f'{contract} does not allow "{target}"'
                    yield self.document.problem("LQ212", message, place, key=True, hint=below.hint)
                    below = ANYTHING
                inner.append(_Consumer(contract, below))
            if isinstance(entry, Mapping):
                clashes = [one for one in inner if "object" not in one.shape.types()]
                yield from (self._clash(place, "a nested mapping is object", one) for one in clashes)
                yield from self._entries(place, entry, [one for one in inner if one not in clashes])
            elif isinstance(entry, Literal):
                yield from self._literal(place, entry.value, inner)
            else:
                yield from self._path(place, entry, inner)

    def _literal(self, place: KeyPath, value: Any, consumers: list[_Consumer]) -> Iterator[Problem]:
        given = type_of(value)
        for consumer in consumers:
            if not meet(frozenset({given}), consumer.shape.types()):
                yield self._clash(place, f"the literal is {given}", consumer)

    def _path(self, place: KeyPath, path: Path, consumers: list[_Consumer]) -> Iterator[Problem]:
        shape, problems = self._followed(place, path)
        yield from problems
        for consumer in consumers:
            if not meet(shape.types(), consumer.shape.types()):
                yield self._clash(place, f"{path.text} is {_types(shape)}", consumer)
            elif path.default is not MISSING:
                yield from self._literal(place, path.default, [consumer])

    def _followed(self, place: KeyPath, path: Path, offset: int = 0) -> tuple[Shape, list[Problem]]:
        """Follow a path, and give anything with a problem where it leads nowhere.

        Args:
            offset: Where in the text at that place the path begins.
        """
        shape, start = self.scope.source(path, self.items)
        so_far = ".".join([path.root, *(str(part) for part in path.parts[:start])])
        problems: list[Problem] = []
        for part, spot in zip(path.parts[start:], path.spots[start:], strict=True):
            below = shape.child(part)
            at = self.document.within(place, offset + spot)
            if isinstance(below, Impossible):
                problem_id, whose = self._producer(path)
                message = f"{whose}: at {so_far} {below.message}"
                return ANYTHING, [*problems, self.document.problem(problem_id, message, place, hint=below.hint, at=at)]
            if near := shape.undeclared(part):
                message = f'{so_far} does not declare "{part}"'
                problems.append(self.document.problem("LQ204", message, place, hint=near, at=at, severity="warning"))
            shape, so_far = below, f"{so_far}.{part}"
        return shape, problems

    def _producer(self, path: Path) -> tuple[str, str]:
        """Give the id of a path that its producer's contract excludes, and the words for that."""
        if path.root == "goal":
            return "LQ207", "the pipeline's input_schema does not allow this"
        if path.of_item:
            items = self.items.text if self.items else "for_each"
            return "LQ204", f"the items of {items} cannot have this"
        stage = self.scope.stages[path.root]
        if stage.for_each is not None:
            return "LQ204", f"the output of {path.root}, which has for_each, cannot have this"
        if stage.pipeline is not None:
            return "LQ204", f"the result of {path.root} (pipeline {stage.pipeline}) cannot have this"
        return "LQ204", f"the output_schema of {path.root} ({' or '.join(stage.worker_types)}) cannot have this"

    def _for_each(self, place: KeyPath, path: Path) -> Iterator[Problem]:
        shape, problems = self._followed(place, path)
        yield from problems
        if "array" not in shape.types():
            message = f"{path.text} is {_types(shape)}, and for_each needs a list"
            yield self.document.problem("LQ215", message, place)

    def _comparison(self, place: KeyPath, comparison: Comparison) -> Iterator[Problem]:
        path, value = comparison.path, comparison.value
        shape, problems = self._followed(place, path, comparison.at[0])
        yield from problems
        at = self.document.within(place, comparison.at[1])
        is_path_like = comparison.is_bare and _PATH_LIKE.match(value)
        if is_path_like and re.split(r"[.\[]", value)[0] in (*self.scope.stages, "goal", "item"):
            message = f"{value} is text here: only the left side of a comparison is a path"
            hint = f"quote it if that is meant: '{value}'"
            yield self.document.problem("LQ214", message, place, hint=hint, at=at, severity="warning")
            return
        found = shape.types() | ({type_of(path.default)} if path.default is not MISSING else frozenset())
        if not meet(found, _comparable(comparison.op, value)):
            message = f"this never holds: {path.text} is {_types(shape)}, and {as_written(value)} is {type_of(value)}"
            yield self.document.problem("LQ214", message, place, at=at, severity="warning")

    def _clash(self, place: KeyPath, given: str, consumer: _Consumer) -> Problem:
        message = f"{given}, and {consumer.contract} wants {_types(consumer.shape)}"
        return self.document.problem("LQ205", message, place)


def _comparable(op: str, value: Any) -> frozenset[str]:
    """Give the types for which a comparison may hold."""
    if op == "==":
        return frozenset({type_of(value)})
    if op in ("<", "<=", ">", ">="):
        return _ORDERED & {type_of(value)}
    if op == "in":
        return frozenset(map(type_of, value)) if isinstance(value, list) else frozenset({"string"})
    if op == "contains":
        return frozenset({"array", "string", "object"} if isinstance(value, str) else {"array"})
    return TYPES


def _types(shape: Shape) -> str:
    return " or ".join(sorted(shape.types())) or "nothing"
