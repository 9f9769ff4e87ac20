"""One due time, many dispatches: the function that ``expand_from`` names gives a dict for each."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from loomq.errors import BackendError, LoomqError
from loomq.inline import inline_json
from loomq.registry import load_dotted

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_ITEMS = 10_000
MOST_BYTES = 16 << 20


def expanded(name: str, *, allow: Sequence[str], limit_bytes: int) -> list[dict[str, Any]]:
    """Call the function and check what it gives.

    Args:
        name: ``package.module.function``.
        allow: Packages that YAML may import from.
        limit_bytes: How large each dict may be, as JSON.

    Raises:
        ImportRefusedError: It may not be imported, or cannot.
        BackendError: It raised something, or gave something else than a list of dicts.
        InlineValueError: A dict is not JSON, or too large.
    """
    function = load_dotted(name, allow=allow)
    try:
        found = function()
    except Exception as error:
        raise BackendError(f"{name} raised {type(error).__name__}: {error}") from error
    if not isinstance(found, (list, tuple)) or not all(isinstance(one, dict) for one in found):
        raise BackendError(f"{name} gave {_kind(found)}; it must give a list of dicts, one a dispatch")
    if len(found) > MOST_ITEMS:
        raise BackendError(
            f"{name} gave {len(found):,} dicts; {MOST_ITEMS:,} is the most",
            hint="dispatch one goal to a pipeline with a for_each stage instead",
        )
    size = 0
    for at, one in enumerate(found):
        size += len(inline_json(one, what=f"dict {at} of {name}", limit_bytes=limit_bytes))
    if size > MOST_BYTES:
        raise BackendError(
            f"{name} gave {size:,} bytes of JSON; {MOST_BYTES:,} is the most",
            hint="pass file names for more: from loomq.workspace import WorkspaceManager",
        )
    return [dict(one) for one in found]


def _kind(found: Any) -> str:
    if not isinstance(found, (list, tuple)):
        return f"a {type(found).__name__}"
    return f"a list with a {next(type(one).__name__ for one in found if not isinstance(one, dict))} in it"


class Expansion:
    """A call of such a function in a thread of its own: it may take longer than a leader may be silent.

    Args:
        timeout_s: After which it counts as failed; the thread is left alone.
    """

    def __init__(self, name: str, *, allow: Sequence[str], limit_bytes: int, timeout_s: float) -> None:
        self.name = name
        self._timeout_s = timeout_s
        self._until = time.monotonic() + timeout_s
        self._outcome: list[dict[str, Any]] | LoomqError | None = None

        def call() -> None:
            try:
                self._outcome = expanded(name, allow=allow, limit_bytes=limit_bytes)
            except LoomqError as error:
                self._outcome = error
            except BaseException as error:  # noqa: BLE001  (SystemExit too: it is the user's function)
                self._outcome = BackendError(f"{name} raised {type(error).__name__}: {error}")

        self._thread = threading.Thread(target=call, name=f"expand {name}", daemon=True)
        self._thread.start()

    def outcome(self) -> list[dict[str, Any]] | None:
        """Give what it gave; ``None`` while it runs.

        Raises:
            LoomqError: As ``expanded``, or it takes too long.
        """
        found = self._outcome
        if isinstance(found, LoomqError):
            raise found
        if found is None and time.monotonic() > self._until:
            raise BackendError(f"{self.name} gave nothing within {self._timeout_s:g} s")
        return found

    @property
    def is_over(self) -> bool:
        """Whether the call has come back."""
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Wait until there is an outcome, or it has taken too long."""
        self._thread.join(max(self._until - time.monotonic(), 0.0) + 0.01)
