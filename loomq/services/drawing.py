"""A pipeline's graph as a drawing: one layered model, and its forms in text."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from statistics import mean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from loomq.pipelines.graph import StageGraph
    from loomq.runs.plan import Plan, StagePlan

_SWEEPS = 4  # more moves next to nothing
_NOTE = 40  # characters of a note in a box

#: A stage's state as a colour of its box and of its border; the same in every form.
COLORS = {
    "completed": ("#d7f0dd", "#2e7d4f"),
    "processing": ("#d6e9fb", "#2563a8"),
    "retry": ("#fdeecb", "#a66a00"),
    "failed": ("#fbdcdc", "#b3261e"),
    "cancelled": ("#f3e3cf", "#8a5a1a"),
    "skipped": ("#eeeeee", "#8a8a8a"),
    "pending": ("#ffffff", "#8a8a8a"),
    "": ("#ffffff", "#444444"),
}


@dataclass(frozen=True, slots=True)
class Box:
    """One stage.

    Args:
        label: Its worker and tier, with its ``notes``.
        level: From 0, downward.
        status: How it stands in a goal; empty without one.
    """

    name: str
    label: str
    level: int
    status: str = ""


@dataclass(frozen=True)
class Drawing:
    """A pipeline in layers.

    Args:
        rows: What stands on each level from left to right: a stage, or an edge ``(from, to)`` that passes by.
        edges: The transitive reduction, in the order of the file.
    """

    title: str
    boxes: dict[str, Box]
    rows: tuple[tuple[str | tuple[str, str], ...], ...]
    edges: tuple[tuple[str, str], ...]

    @property
    def roots(self) -> list[str]:
        """The stages that wait for nobody."""
        return [name for name, box in self.boxes.items() if box.level == 0]

    def children(self) -> dict[str, list[str]]:
        """For each stage those that wait for it."""
        found: dict[str, list[str]] = {name: [] for name in self.boxes}
        for above, below in self.edges:
            found[above].append(below)
        return found

    def to_json(self) -> dict[str, Any]:
        """Describe the drawing."""
        boxes = [
            {"stage": box.name, "label": box.label, "level": box.level, "status": box.status or None}
            for box in self.boxes.values()
        ]
        return {"title": self.title, "stages": boxes, "edges": [list(edge) for edge in self.edges]}


def draw(plan: Plan, statuses: Mapping[str, str] | None = None) -> Drawing:
    """Lay a plan's stages out.

    Args:
        statuses: How each stage stands in a goal.
    """
    told = statuses or {}
    boxes = {
        name: Box(name, _label(plan.stages[name]), level, told.get(name, ""))
        for level, names in enumerate(plan.graph.levels)
        for name in names
    }
    edges = tuple((above, below) for below in plan.graph.names for above in plan.graph.parents[below])
    return Drawing(plan.name, boxes, _rows(plan.graph, boxes, edges), edges)


def notes(stage: StagePlan) -> tuple[str, ...]:
    """Say in a few words what is special about a stage: its for_each, its condition and its fallback."""
    spec = stage.spec
    if spec is None:
        return _notes_of_step(stage)
    found = []
    if spec.for_each is not None:
        most = f", {spec.max_parallel} at once" if spec.max_parallel else ""
        found.append(f"each of {spec.for_each}{most}")
    if spec.condition is not None:
        found.append(f"if {spec.condition}")
    if spec.fallback is not None:
        found.append(f"else {spec.fallback.worker_type or 'a value'}")
    return tuple(" ".join(note.split()) for note in found)


def _notes_of_step(stage: StagePlan) -> tuple[str, ...]:
    if stage.step is None:
        return ()
    if stage.step.kind == "plan":
        return (f"a model plans round {stage.step.round}",)
    return (f"the tasks of round {stage.step.round}, if there are any",) if stage.step.round else ("the conclusion",)


def _label(stage: StagePlan) -> str:
    cut = [note if len(note) <= _NOTE else f"{note[: _NOTE - 1]}…" for note in notes(stage)]
    return ", ".join([f"{stage.worker.name}.{stage.tier}", *cut])


def _rows(
    graph: StageGraph, boxes: Mapping[str, Box], edges: Sequence[tuple[str, str]]
) -> tuple[tuple[str | tuple[str, str], ...], ...]:
    """Order each level by where its neighbours stand (the barycentre rule of Sugiyama's layered drawings)."""
    rows: list[list[str | tuple[str, str]]] = [list(level) for level in graph.levels]
    links: dict[tuple[int, str | tuple[str, str]], list[str | tuple[str, str]]] = {}
    for edge in edges:
        first, last = boxes[edge[0]].level, boxes[edge[1]].level
        way: list[str | tuple[str, str]] = [edge[0], *[edge] * (last - first - 1), edge[1]]
        for level, (upper, lower) in enumerate(pairwise(way), first):
            links.setdefault((level, upper), []).append(lower)  # looking down
            links.setdefault((-level - 1, lower), []).append(upper)  # looking up, from level + 1
            if isinstance(lower, tuple):
                rows[level + 1].append(lower)
    for sweep in range(_SWEEPS):
        downward = sweep % 2 == 0
        for level in range(1, len(rows)) if downward else range(len(rows) - 2, -1, -1):
            beside = rows[level - 1] if downward else rows[level + 1]
            places = {what: at for at, what in enumerate(beside)}
            key = -level if downward else level
            _sort(rows[level], {what: links.get((key, what), []) for what in rows[level]}, places)
    return tuple(tuple(row) for row in rows)


def _sort(row: list[Any], neighbours: Mapping[Any, Sequence[Any]], places: Mapping[Any, int]) -> None:
    at = {what: index for index, what in enumerate(row)}
    row.sort(key=lambda what: mean(places[one] for one in neighbours[what]) if neighbours[what] else at[what])


def tree(drawing: Drawing) -> str:
    """Write the stages as an indented tree; one with several parents stands under the last of them."""
    return "\n".join([drawing.title, *_branches(drawing)])


def _branches(drawing: Drawing) -> Iterator[str]:
    children = drawing.children()
    parents = {name: sum(below == name for _, below in drawing.edges) for name in drawing.boxes}
    seen = dict.fromkeys(drawing.boxes, 0)
    stack = [(name, "", index == len(drawing.roots) - 1) for index, name in enumerate(drawing.roots)][::-1]
    while stack:
        name, margin, is_last = stack.pop()
        seen[name] += 1
        branch = f"{margin}{'└─ ' if is_last else '├─ '}"
        if seen[name] < parents[name]:
            yield f"{branch}{name} …"
            continue
        box = drawing.boxes[name]
        joins = f", joins {parents[name]}" if parents[name] > 1 else ""
        yield f"{branch}{name}  ({box.label}{joins}){f'  {box.status}' if box.status else ''}"
        below = children[name]
        inner = margin + ("   " if is_last else "│  ")
        stack += [(child, inner, index == len(below) - 1) for index, child in enumerate(below)][::-1]


def mermaid(drawing: Drawing) -> str:
    """Write the graph in Mermaid's flowchart language; ids are numbers, since ``end`` is a word of it."""
    ids = {name: f"s{at}" for at, name in enumerate(drawing.boxes)}
    lines = ["flowchart TD"]
    for name, box in drawing.boxes.items():
        mark = f":::{box.status}" if box.status else ""
        lines.append(f'    {ids[name]}["{name}<br/>{_entities(box.label)}"]{mark}')
    lines += [f"    {ids[above]} --> {ids[below]}" for above, below in drawing.edges]
    for status in sorted({box.status for box in drawing.boxes.values()} - {""}):
        fill, line = COLORS[status]
        lines.append(f"    classDef {status} fill:{fill},stroke:{line},color:#111")
    return "\n".join(lines)


def _entities(text: str) -> str:
    """Write what Mermaid would read as its own as HTML's entities."""
    return "".join(char if char.isalnum() or char in " ._,-…" else f"#{ord(char)};" for char in text)


def dot(drawing: Drawing) -> str:
    """Write the graph in Graphviz's language."""
    lines = [f"digraph {_quoted(drawing.title)} {{", '    node [shape=box, style="rounded,filled", fontname=sans];']
    for name, box in drawing.boxes.items():
        fill, line = COLORS[box.status]
        label = _quoted(f"{name}\n{box.label}")
        lines.append(f'    {_quoted(name)} [label={label}, fillcolor="{fill}", color="{line}"];')
    lines += [f"    {_quoted(above)} -> {_quoted(below)};" for above, below in drawing.edges]
    return "\n".join([*lines, "}"])


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
