"""Which queues a node serves, as the children of its pool see it."""

from __future__ import annotations

import json
import mmap
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_HEAD = struct.Struct("=QQ")  # a number that is odd while the rest is being written, and how long that is
_ROOM = 1 << 20


class Served:
    """Names in shared memory: the parent writes them, and its children hear of it though they were forked before.

    Made before the pool forks. What does not fit is not told; the children then know what they knew.
    """

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, _HEAD.size + _ROOM)
        self._seen = 0
        self._names: frozenset[str] | None = None

    def tell(self, names: Iterable[str]) -> None:
        """Say which queues the node serves by now."""
        text = json.dumps(sorted(names)).encode()
        if len(text) > _ROOM:
            return
        number = (_HEAD.unpack_from(self._shared)[0] + 1) | 1
        _HEAD.pack_into(self._shared, 0, number, len(text))
        self._shared[_HEAD.size : _HEAD.size + len(text)] = text
        _HEAD.pack_into(self._shared, 0, number + 1, len(text))

    @property
    def names(self) -> frozenset[str] | None:
        """The queues; ``None`` if nobody has said anything since the node began."""
        number, length = _HEAD.unpack_from(self._shared)
        if number != self._seen and not number % 2:
            text = self._shared[_HEAD.size : _HEAD.size + length]
            if _HEAD.unpack_from(self._shared)[0] == number:  # else it was written while we read it, and comes again
                self._names, self._seen = frozenset(json.loads(text)), number
        return self._names
