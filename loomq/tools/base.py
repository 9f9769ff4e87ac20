"""What a tool is: the two base classes that user code extends, and what a call may know of itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class CallContext:
    """Which call of which task a tool is running.

    Args:
        idempotency_key: The same whenever this very call is made again, after a crash say. A service that takes such a
            key does its work once.
        worker: Whose model asked for it.
    """

    idempotency_key: str
    worker: str


_context: ContextVar[CallContext | None] = ContextVar("tool_call", default=None)


def call_context() -> CallContext:
    """Say which call is running; to be asked from within ``execute``.

    Raises:
        LookupError: No call is running.
    """
    found = _context.get()
    if found is None:
        raise LookupError("no tool call is running here")
    return found


def entering(context: CallContext) -> None:
    """Say which call runs in this task from now on."""
    _context.set(context)


class ToolProvider(ABC):
    """A tool that a language model may call.

    A subclass is named by a ``tool`` silo's ``provider`` and built once a process and configuration as
    ``cls(**config)``. Calls of several tasks may run in it at the same time, so it keeps nothing of one for the next.
    What it does to the world outside happens at least once: a call whose result was not written down before a crash is
    made again, with the same ``call_context().idempotency_key``.
    """

    @abstractmethod
    def get_definition(self) -> dict[str, Any]:
        """Describe the tool to the model.

        Returns:
            ``{"name": ..., "description": ..., "parameters": {JSON Schema of an object}}``; the name is of at most 64
            letters, digits, ``_`` and ``-``.
        """

    @abstractmethod
    async def execute(self, arguments: dict[str, Any]) -> str:
        """Do what the model asked for.

        Args:
            arguments: They keep the schema of ``parameters``, and come from a model: trust nothing in them.

        Returns:
            The result as text, JSON as a rule; it is sent to the model, the first 64 KiB of it.

        Raises:
            Exception: Whatever it is, the model is told so and may try otherwise.
        """


class SyncToolProvider(ToolProvider):
    """The same for code that blocks: it runs in a thread."""

    @abstractmethod
    def execute_sync(self, arguments: dict[str, Any]) -> str:
        """Do what the model asked for; arguments, result and errors as in ``ToolProvider.execute``."""

    async def execute(self, arguments: dict[str, Any]) -> str:
        """Run ``execute_sync`` in a thread; one that overruns its time is left to end by itself."""
        import asyncio

        return await asyncio.to_thread(self.execute_sync, arguments)
