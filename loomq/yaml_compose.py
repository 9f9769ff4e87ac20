"""YAML text to nodes with places, from parser events: what is too deep, too large or not JSON is refused on the way."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

KeyPath = tuple[str | int, ...]

EMPTY = "the file is empty"  # also if all of it is comments
MAX_DEPTH = 32
MAX_NODES = 50_000
MAX_DIGITS = 300

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_STR = "tag:yaml.org,2002:str"
# The core schema of YAML 1.2.2 (10.3.2): no yes/no/on/off, no dates, no base 60.
_NULLS = {"", "~", "null", "Null", "NULL"}
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_JSON = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class Mark(NamedTuple):
    """A stretch of a file: line and column from 1, and the characters to underline."""

    line: int = 1
    col: int = 1
    width: int = 1


@dataclass(slots=True, eq=False)
class Node:
    """A value of the document with its place; ``items`` are its children, ``keys`` the places of a mapping's keys."""

    mark: Mark
    value: Any = None
    quoted: bool = False
    items: dict[str | int, Node] = field(default_factory=dict)
    keys: dict[str, Mark] = field(default_factory=dict)


class Refused(Exception):  # noqa: N818  (it never leaves the reader)
    """Why a text is not read: the problem's id, message, place and hint."""

    def __init__(self, problem_id: str, message: str, mark: Mark, hint: str = "") -> None:
        super().__init__(message)
        self.problem_id, self.message, self.mark, self.hint = problem_id, message, mark, hint


class Composer:
    """Build nodes from parser events, so that a bomb is refused before it is whole."""

    def __init__(self) -> None:
        self.faults: list[tuple[Refused, KeyPath]] = []
        self._anchors: dict[str, Node] = {}
        self._path: list[str | int] = []

    def compose(self, text: str) -> Node:
        """Read one document.

        Faults that leave the rest readable are collected in ``faults``, each with its key path.

        Raises:
            Refused: The text cannot be read on.
        """
        bounds = _Bounds()
        for event in _events(text):
            bounds.take(event)
        events = _events(text)
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                break
        else:
            raise Refused("LQ102", EMPTY, Mark())
        root = self._node(next(events), events)
        next(events)
        after = next(events)
        if not isinstance(after, yaml.StreamEndEvent):
            raise Refused("LQ104", "the file holds more than one YAML document", _mark(after), "keep the first")
        return root

    def _node(self, event: Any, events: Iterator[Any]) -> Node:
        mark = _mark(event)
        if isinstance(event, yaml.AliasEvent):
            target = self._anchors[str(event.anchor)]
            return Node(mark, target.value, target.quoted, target.items, target.keys)
        if event.tag not in (None, "!") and not (event.tag == _STR and isinstance(event, yaml.ScalarEvent)):
            raise Refused("LQ104", f"tags such as {event.tag} are refused", mark, "write the plain value")
        if isinstance(event, yaml.ScalarEvent):
            node = self._scalar(event, mark)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self._sequence(mark, events)
        else:
            node = self._mapping(mark, events)
        if event.anchor:
            self._anchors[event.anchor] = node
        return node

    def _sequence(self, mark: Mark, events: Iterator[Any]) -> Node:
        node = Node(mark, [])
        for event in events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            index = len(node.value)
            self._path.append(index)
            child = self._node(event, events)
            self._path.pop()
            node.items[index] = child
            node.value.append(child.value)
        return node

    def _mapping(self, mark: Mark, events: Iterator[Any]) -> Node:
        node = Node(mark, {})
        merged: list[Node] = []
        for event in events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            name, place = self._key(event)
            merging = name == "<<" and not event.style
            self._path.append(name)
            child = self._node(next(events), events)
            self._path.pop()
            if merging:
                merged.append(child)
            elif name in node.keys:
                first = node.keys[name]
                message = f'"{name}" stands twice here, first on line {first.line}'
                self.faults.append((Refused("LQ103", message, place, "keep one of them"), (*self._path, name)))
            else:
                node.items[name], node.keys[name], node.value[name] = child, place, child.value
        for source in merged:
            _merge(node, source)
        return node

    def _key(self, event: Any) -> tuple[str, Mark]:
        mark = _mark(event)
        if not isinstance(event, yaml.ScalarEvent) or event.tag not in (None, "!", _STR) or event.anchor:
            raise Refused("LQ104", "a key must be plain text", mark)
        plain = not event.style and event.tag is None
        if plain and not isinstance(_plain(event.value, mark), str):
            raise Refused("LQ104", f"the key {event.value or '(empty)'} is not text", mark, f'write "{event.value}"')
        return event.value, mark

    def _scalar(self, event: Any, mark: Mark) -> Node:
        quoted = bool(event.style) or event.tag is not None
        if quoted:
            return Node(mark, event.value, quoted=True)
        try:
            return Node(mark, _plain(event.value, mark))
        except Refused as refusal:
            self.faults.append((refusal, tuple(self._path)))
            return Node(mark)


class _Bounds:
    """Hold the bounds on nodes and depth, every alias counted as if written out, before anything is built."""

    def __init__(self) -> None:
        self._anchors: dict[str | None, tuple[int, int]] = {}
        self._open: list[tuple[str | None, int, int]] = []
        self._nodes = 0
        self._deepest = 0

    def take(self, event: Any) -> None:
        """Count one event.

        Raises:
            Refused: The text is too deep or too large, or an alias has no anchor before it.
        """
        if isinstance(event, yaml.ScalarEvent):
            self._count(1, 1, event)
            if event.anchor:
                self._anchors[event.anchor] = (1, 1)
        elif isinstance(event, yaml.CollectionStartEvent):
            outer = self._deepest
            self._count(1, 1, event)
            self._open.append((event.anchor, self._nodes - 1, outer))
            self._deepest = len(self._open)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before, outer = self._open.pop()
            self._anchors[anchor] = (self._nodes - before, self._deepest - len(self._open))
            self._deepest = max(self._deepest, outer)
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise Refused("LQ102", f"not YAML: *{event.anchor} has no anchor before it", _mark(event))
            self._count(*self._anchors[event.anchor], event)

    def _count(self, nodes: int, levels: int, event: Any) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            raise Refused("LQ105", f"more than {MAX_NODES} nodes, with every alias written out", _mark(event))
        reached = len(self._open) + levels
        if reached > MAX_DEPTH:
            raise Refused("LQ105", f"nested more than {MAX_DEPTH} levels deep", _mark(event))
        self._deepest = max(self._deepest, reached)


def _events(text: str) -> Iterator[Any]:
    try:
        yield from yaml.parse(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        where = error.problem_mark or error.context_mark
        mark = Mark(where.line + 1, where.column + 1) if where else Mark()
        message = " ".join(part for part in (error.problem, error.context) if part)
        raise Refused("LQ102", f"not YAML: {message}", mark) from None
    except yaml.YAMLError as error:
        raise Refused("LQ102", f"not YAML: {' '.join(str(error).split())}", Mark()) from None


def _plain(text: str, mark: Mark) -> Any:
    """Resolve a plain scalar by YAML 1.2's core schema."""
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if _NOT_JSON.fullmatch(text):
        raise Refused("LQ106", f"{text} is not a number that JSON can carry", mark, f'write "{text}" if it is text')
    if not _FLOAT.fullmatch(text) and not _INTEGER.fullmatch(text):
        return text
    if len(text) > MAX_DIGITS:
        raise Refused("LQ106", f"a number of more than {MAX_DIGITS} characters", mark, "quote it if it is text")
    if _INTEGER.fullmatch(text):
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    number = float(text)
    if not math.isfinite(number):
        raise Refused("LQ106", f"{text} is too large a number", mark, "quote it if it is text")
    return number


def _mark(event: Any) -> Mark:
    start, end = event.start_mark, event.end_mark
    width = end.column - start.column if end.line == start.line else 1
    return Mark(start.line + 1, start.column + 1, max(1, width))


def _merge(node: Node, source: Node) -> None:
    """Take over what ``<<`` brings and the mapping does not say itself (YAML 1.1; still what shared defaults use)."""
    parts = list(source.items.values()) if isinstance(source.value, list) else [source]
    for part in parts:
        if not isinstance(part.value, dict):
            raise Refused("LQ104", "<< takes a mapping or a list of mappings", source.mark)
        for name, child in part.items.items():
            if name not in node.keys and isinstance(name, str):
                node.items[name], node.keys[name], node.value[name] = child, part.keys[name], child.value
