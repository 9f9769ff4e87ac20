"""A file of YAML as a document: its plain JSON value, and the place of every key."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loomq.problems import Problem, dotted
from loomq.yaml_compose import Composer, KeyPath, Mark, Node, Refused

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Document", "KeyPath", "Mark", "parse_document", "read_document"]

MAX_BYTES = 256 * 1024
_LINE_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")


@dataclass(frozen=True, slots=True)
class Document:
    """One file that was read: its plain value, and where each key path stands.

    Args:
        file: The name to show in problems.
        lines: The text, for carets.
        root: The top node.
    """

    file: str
    lines: tuple[str, ...]
    root: Node

    @property
    def value(self) -> Any:
        """The plain JSON value; aliases share one object, so treat it as read-only."""
        return self.root.value

    def node(self, path: KeyPath) -> Node | None:
        """Find the node at a key path, or None if the file does not say it."""
        found: Node | None = self.root
        for part in path:
            found = found.items.get(part) if found else None
        return found

    def mark(self, path: KeyPath, *, key: bool = False) -> Mark:
        """Find where a key path stands, or the nearest place above it that the file has.

        Args:
            path: The keys and indexes that lead there.
            key: Point at the last key itself and not at its value.
        """
        found = self.root
        mark = found.mark
        for at, part in enumerate(path):
            child = found.items.get(part)
            if child is None:
                return found.keys.get(str(part), mark)
            last = at == len(path) - 1
            container = isinstance(child.value, dict | list)
            name = found.keys.get(str(part))
            # A container begins lines below its key: its name is the better place to point at.
            mark = name if name and (key or container or not last) else child.mark
            found = child
        return mark

    def within(self, path: KeyPath, offset: int) -> Mark | None:
        """Find the place of a character inside a text value, if the value stands on one line."""
        node, mark = self.node(path), self.mark(path)
        if node is None or not isinstance(node.value, str) or len(node.value) > mark.width:
            return None
        skipped = min(offset + node.quoted, mark.width - 1)
        return Mark(mark.line, mark.col + skipped, mark.width - skipped - node.quoted)

    def problem(
        self,
        problem_id: str,
        message: str,
        path: KeyPath = (),
        *,
        key: bool = False,
        hint: str = "",
        at: Mark | None = None,
        severity: str = "error",
    ) -> Problem:
        """Make a problem that stands at a key path of this file.

        Args:
            problem_id: A key of ``loomq.problems.EXPLANATIONS``.
            message: What is wrong, in one line.
            path: The keys that lead there.
            key: Point at the key and not at its value.
            hint: The way out.
            at: A finer place than the path's own.
            severity: ``error`` or ``warning``.
        """
        mark = at or self.mark(path, key=key)
        source = self.lines[mark.line - 1] if 0 < mark.line <= len(self.lines) else ""
        return Problem(
            problem_id,
            message,
            self.file,
            mark.line,
            mark.col,
            dotted(path),
            hint=hint,
            source=source,
            width=mark.width,
            severity=severity,
        )


def read_document(path: Path, name: str | None = None) -> tuple[Document | None, list[Problem]]:
    """Read a YAML file.

    Args:
        path: The file.
        name: What to call it in problems; its path if not given.

    Returns:
        The document, or None if it cannot be read at all; and every problem. A document may come with problems
        (a duplicate key): then it only serves to find more of them.
    """
    shown = name or str(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        return None, [Problem("LQ101", f"the file cannot be read: {error.strerror or error}", shown)]
    if len(data) > MAX_BYTES:
        return None, [Problem("LQ101", f"the file is larger than {MAX_BYTES // 1024} KB", shown)]
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return None, [Problem("LQ101", f"the file is not UTF-8 (byte {error.start})", shown, line)]
    return parse_document(text, shown)


def parse_document(text: str, name: str) -> tuple[Document | None, list[Problem]]:
    """Parse YAML text; arguments and result as in ``read_document``."""
    lines = tuple(_LINE_BREAK.split(text))
    composer = Composer()
    try:
        root = composer.compose(text)
    except Refused as refusal:
        bare = Document(name, lines, Node(Mark()))
        fatal = bare.problem(refusal.problem_id, refusal.message, hint=refusal.hint, at=refusal.mark)
        return None, [*(_as_problem(bare, fault) for fault in composer.faults), fatal]
    document = Document(name, lines, root)
    return document, [_as_problem(document, fault) for fault in composer.faults]


def _as_problem(document: Document, fault: tuple[Refused, KeyPath]) -> Problem:
    refusal, path = fault
    return document.problem(refusal.problem_id, refusal.message, path, hint=refusal.hint, at=refusal.mark)
