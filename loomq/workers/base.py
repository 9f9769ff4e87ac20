"""What a Python processor is: the two base classes that user code extends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


class ProcessingBackend(ABC):
    """Turn one payload into one output, asynchronously.

    A subclass is named by a worker's ``processing_backend`` and built once a process and spec as
    ``cls(**backend_config)``; it keeps nothing between tasks (``reset`` is called after each).
    """

    @abstractmethod
    async def process(self, payload: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        """Do the work.

        Args:
            payload: The mapped input, after its contract held.
            config: The worker's ``backend_config``.

        Returns:
            ``{"output": {...}, "model_used": str | None}``.

        Raises:
            BackendError: The work failed for good.
            TransientBackendError: The work failed and may succeed when it is run again.
        """

    def reset(self) -> None:  # noqa: B027  (nothing to drop is the usual case)
        """Drop what the last task left; called after every task, also after a failure."""


class SyncProcessingBackend(ProcessingBackend):
    """The same for code that blocks: it runs in the task's own thread, not on the event loop.

    A class with ``serialize_writes = True`` lets one task at a time run over the whole cluster, of all workers that
    have it with the same ``backend_config``: for what takes one writer, as a DuckDB file.
    """

    serialize_writes: bool = False

    @abstractmethod
    def process_sync(self, payload: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        """Do the work; arguments, result and errors as in ``ProcessingBackend.process``."""

    async def process(self, payload: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        """Run ``process_sync`` in a thread, for callers that only know the asynchronous form."""
        import asyncio

        return await asyncio.to_thread(self.process_sync, payload, config)
