"""The tools of one worker: found by name, checked before they run, and never more than what its file lists."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loomq.contracts import Contract
from loomq.errors import KnowledgeError, LoomqError, LoomqSignal
from loomq.llm.base import LLMMessage, ToolDefinition
from loomq.problems import suggest
from loomq.redaction import redacted
from loomq.registry import load_dotted, project_on_path
from loomq.tools.base import CallContext, ToolProvider, entering

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from loomq.llm.base import ToolCall
    from loomq.tools.spec import ToolSilo

MAX_RESULT_CHARS = 64 * 1024
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LONGEST_FAULT = 2_000


def load_tool_provider(class_path: str, config: dict[str, Any] | None = None, *, allow: Sequence[str]) -> ToolProvider:
    """Import a tool's class and build it.

    Args:
        class_path: ``package.module.Class``, a subclass of ``ToolProvider``.
        config: Its constructor's arguments.
        allow: Packages that it may come from, besides loomq's own.

    Raises:
        ImportRefusedError: The name may not be imported, or is none of a tool.
        KnowledgeError: Its constructor raised, which is the cause.
    """
    kind = load_dotted(class_path, allow=allow, expect=ToolProvider)
    try:
        built: ToolProvider = kind(**(config or {}))
    except Exception as error:
        raise KnowledgeError(f"{class_path} cannot be built from its config: {error}") from error
    return built


@dataclass(frozen=True)
class Tool:
    """One tool with what the model is told of it."""

    provider: ToolProvider
    definition: ToolDefinition
    arguments: Contract

    @classmethod
    def of(cls, provider: ToolProvider, name: str) -> Tool:
        """Take what a provider says of itself.

        Args:
            name: What messages call it.

        Raises:
            KnowledgeError: That is no definition.
        """
        try:
            said = dict(provider.get_definition())
            definition = ToolDefinition(
                name=said["name"], description=said["description"], parameters=said["parameters"]
            )
            arguments = Contract(definition.parameters)
        except Exception as error:
            raise KnowledgeError(f"the definition of tool {name} cannot be used: {error}") from error
        if not _NAME.fullmatch(definition.name):
            raise KnowledgeError(
                f'tool {name} calls itself "{definition.name}"', hint="at most 64 letters, digits, _ and -"
            )
        return cls(provider, definition, arguments)


class Toolbox:
    """What one worker's model may call.

    Args:
        tools: Their names are all different.
        worker: Whose they are.
    """

    def __init__(self, tools: Sequence[Tool], worker: str) -> None:
        self._tools = {tool.definition.name: tool for tool in tools}
        self._worker = worker

    @property
    def definitions(self) -> tuple[ToolDefinition, ...]:
        """What the model is told."""
        return tuple(tool.definition for tool in self._tools.values())

    async def call(self, call: ToolCall, *, timeout_s: float, idempotency_key: str) -> LLMMessage:
        """Make one call; what goes wrong is the answer to it, for the model to make the best of.

        Args:
            timeout_s: How long it may take.
        """
        try:
            text = await self._result(call, timeout_s, CallContext(idempotency_key, self._worker))
        except (LoomqSignal, asyncio.CancelledError):
            raise
        except BaseException as error:  # noqa: BLE001  (whatever a tool raises, sys.exit() too, the model is told)
            return _answer(call, json.dumps({"error": _told(error)}, ensure_ascii=False), is_error=True)
        return _answer(call, text)

    async def _result(self, call: ToolCall, timeout_s: float, context: CallContext) -> str:
        tool = self._tools.get(call.name)
        if tool is None:
            near = suggest(call.name, self._tools) or f"there are: {', '.join(self._tools) or 'none'}"
            raise _RefusedCallError(f'there is no tool "{call.name}"; {near}')
        if call.malformed is not None:
            raise _RefusedCallError("the arguments are no JSON object")
        if faults := tool.arguments.errors(call.arguments):
            raise _RefusedCallError(f"the arguments break the tool's schema: {'; '.join(faults)}")
        entering(context)
        try:
            async with asyncio.timeout(timeout_s) as limit:
                found: Any = await tool.provider.execute(call.arguments)
        except TimeoutError:
            if not limit.expired():
                raise
            raise _RefusedCallError(f"the tool took longer than {timeout_s:g} s") from None
        return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)


class _RefusedCallError(Exception):
    """A call that was not made, or not to its end; its text is for the model."""


def _told(error: BaseException) -> str:
    if isinstance(error, LoomqError | _RefusedCallError):
        text = str(getattr(error, "message", None) or error)
    else:
        text = f"{type(error).__name__}: {error}"
    return redacted(text)[:_LONGEST_FAULT]


def _answer(call: ToolCall, text: str, *, is_error: bool = False) -> LLMMessage:
    if len(text) > MAX_RESULT_CHARS:
        text = f"{text[:MAX_RESULT_CHARS]}\n[cut off here: the result has {len(text):,} characters]"
    return LLMMessage(role="tool", content=text, tool_call_id=call.id, tool_name=call.name, is_error=is_error)


class Toolboxes:
    """The tools of one process, built once for each class and configuration.

    Args:
        project: The folder that user code is imported from.
        allow: Packages that tools may come from, besides our own.
    """

    def __init__(self, project: Path, allow: Sequence[str]) -> None:
        self._project = project
        self._allow = tuple(allow)
        self._built: dict[str, Tool] = {}
        self._lock = threading.Lock()

    def of(self, worker: str, silos: Sequence[ToolSilo]) -> tuple[Toolbox, list[str]]:
        """Give a worker's tools, and what is to be said of those that are missing and may be.

        Raises:
            KnowledgeError: One that is required cannot be loaded, or two have the same name.
        """
        tools: list[Tool] = []
        degraded: list[str] = []
        for silo in silos:
            try:
                tools.append(self._tool(silo))
            except LoomqError as error:
                if silo.required:
                    raise KnowledgeError(f"tool {silo.name}: {error.message}", hint=error.hint) from error
                degraded.append(f"tool {silo.name}: {redacted(error.message)}")
        names = [tool.definition.name for tool in tools]
        if len(set(names)) < len(names):
            raise KnowledgeError(f"two tools of worker {worker} have the same name: {', '.join(sorted(names))}")
        return Toolbox(tools, worker), degraded

    def _tool(self, silo: ToolSilo) -> Tool:
        key = f"{silo.provider} {json.dumps(silo.config, sort_keys=True)}"
        with self._lock:
            if key not in self._built:
                project_on_path(self._project)
                provider = load_tool_provider(silo.provider, silo.config, allow=self._allow)
                self._built[key] = Tool.of(provider, silo.name)
            return self._built[key]
