"""The journal: what was asked and how it was answered, without keys."""

from __future__ import annotations

import json
import threading
from collections import deque
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from loomq.key_shapes import HIDDEN
from loomq.redaction import redacted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

MAX_ENTRIES = 10_000
_SECRET_HEADERS = {"authorization", "x-api-key", "cookie", "proxy-authorization"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One request.

    Args:
        headers: By lower-case name, keys hidden.
        body: As JSON if it is that, else as text.
        status: ``None`` where nothing was answered.
        rule: The number of the rule that answered, from 0.
        fault: What the rule did to the answer.
    """

    at: str
    wire: str
    method: str
    path: str
    headers: dict[str, str]
    body: Any
    status: int | None
    rule: int | None
    fault: str | None
    seconds: float


class Journal:
    """The latest requests in memory, and all of them in a file if there is one."""

    def __init__(self, file: Path | None = None) -> None:
        self._entries: deque[Entry] = deque(maxlen=MAX_ENTRIES)
        self._file = file
        self._lock = threading.Lock()

    def add(self, entry: Entry) -> None:
        """Write an entry down."""
        with self._lock:
            self._entries.append(entry)
            if self._file is not None:
                with self._file.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(asdict(entry), ensure_ascii=False) + "\n")

    def __iter__(self) -> Iterator[Entry]:
        with self._lock:
            return iter(list(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, at: int) -> Entry:
        return self._entries[at]


def without_keys(headers: Mapping[str, str], text: str) -> tuple[dict[str, str], str]:
    """Hide the keys of a request, in its headers and wherever else it repeats them."""
    secrets = [value.rpartition(" ")[2] for name, value in headers.items() if name in _SECRET_HEADERS]
    shown = {name: HIDDEN if name in _SECRET_HEADERS else redacted(value, *secrets) for name, value in headers.items()}
    return shown, redacted(text, *secrets)
