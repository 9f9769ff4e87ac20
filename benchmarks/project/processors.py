"""What the workers of the benchmarks do: next to nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loomq.workers.base import SyncProcessingBackend

if TYPE_CHECKING:
    from collections.abc import Mapping


class Step(SyncProcessingBackend):
    """Add one."""

    def process_sync(self, payload: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        return {"output": {"n": payload["n"] + 1}}
