"""What the stages hand on in files: documents and chunks, one JSON object a line."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from loomq.workspace import WorkspaceManager


@dataclass(frozen=True, slots=True)
class Document:
    """One docstring or language topic.

    Args:
        id: ``file:line:symbol``, unique in the corpus.
        package: The top-level module, or ``language reference``.
        symbol: What is documented, as a dotted name, or as the ``help`` call that shows it.
        file: Relative to the standard library's folder.
        places: Where the text stands in the file: ``(line of the text, line of the file)`` from 0 and 1, once for the
            beginning and again wherever the distance of the two changes.
        kind: ``topic``, ``module``, ``class`` or ``function``.
    """

    id: str
    package: str
    symbol: str
    file: str
    places: tuple[tuple[int, int], ...]
    kind: str
    text: str

    @property
    def line(self) -> int:
        """The line of the file where the text begins, from 1."""
        return self.line_at(0)

    def line_at(self, offset: int) -> int:
        """Give the line of the file where a character of the text stands."""
        number = self.text.count("\n", 0, offset)
        at, line = next(place for place in reversed(self.places) if place[0] <= number)
        return line + number - at


@dataclass(frozen=True, slots=True)
class Chunk:
    """A passage of a document that stands for itself.

    Args:
        doc: The document's id.
        line: Where the passage begins in the file, from 1.
        start: The passage's first character in the document's text.
        end: One past its last.
    """

    id: str
    doc: str
    package: str
    symbol: str
    file: str
    line: int
    kind: str
    start: int
    end: int
    text: str


Record = TypeVar("Record", Document, Chunk)


def write_records(workspace: WorkspaceManager, ref: str, records: Iterable[Document] | Iterable[Chunk]) -> int:
    """Write records as JSON lines and give their number."""
    count = 0
    with workspace.open_write(ref) as file:
        for record in records:
            file.write(json.dumps(asdict(record), ensure_ascii=False).encode() + b"\n")
            count += 1
    return count


def read_records(workspace: WorkspaceManager, ref: str, kind: type[Record]) -> Iterator[Record]:
    """Read records one by one."""
    with workspace.open_read(ref) as file:
        for line in file:
            yield kind(**json.loads(line))
