"""Scripts that a Redis runs: each is sent once and then named by its hash."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoScriptError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Script:
    """A script beside this file.

    Args:
        file: Its name.
    """

    def __init__(self, file: str) -> None:
        self._text = Path(__file__).with_name(file).read_text(encoding="utf-8")
        self._hash = hashlib.sha1(self._text.encode(), usedforsecurity=False).hexdigest()

    def run(self, client: Any, keys: Sequence[str], arguments: Sequence[Any]) -> list[Any]:
        """Run it; a restarted server is told it anew."""
        try:
            return list(client.evalsha(self._hash, len(keys), *keys, *arguments))
        except NoScriptError:
            return list(client.eval(self._text, len(keys), *keys, *arguments))
