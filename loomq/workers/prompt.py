"""What a model is told: knowledge, system prompt and payload, each in a place of its own."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loomq.errors import KnowledgeError
from loomq.knowledge.load import load_folder, load_source
from loomq.knowledge.prompt import UPDATES_SCHEMA, delimited, writable
from loomq.llm.base import LLMMessage, LLMRequest
from loomq.redaction import redacted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from loomq.knowledge.load import Piece
    from loomq.knowledge.spec import FolderSilo
    from loomq.llm.base import ToolDefinition
    from loomq.workers.spec import WorkerSpec

UPDATES = "silo_updates"


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What was loaded for one task.

    Args:
        degraded: What could not be loaded and need not be.
    """

    pieces: tuple[Piece, ...] = ()
    degraded: tuple[str, ...] = ()


NOTHING = Knowledge()


def knowledge_of(spec: WorkerSpec, project: Path, settle: Callable[[FolderSilo], None]) -> Knowledge:
    """Load what a worker knows.

    Args:
        settle: Called with each folder before it is read: has the changes made that it waits for.

    Raises:
        KnowledgeError: Something that is required cannot be loaded.
    """
    pieces: list[Piece] = []
    degraded: list[str] = []
    for source in spec.knowledge_sources:
        with _tolerated(f"source {source.path}", degraded, is_required=source.required):
            pieces.append(load_source(project, source))
    for silo in spec.folders:
        settle(silo)
        with _tolerated(f"silo {silo.name}", degraded, is_required=silo.required):
            pieces.extend(load_folder(project, silo))
    return Knowledge(tuple(pieces), tuple(degraded))


@contextmanager
def _tolerated(what: str, degraded: list[str], *, is_required: bool) -> Iterator[None]:
    """Note a failure to load what is not required."""
    try:
        yield
    except KnowledgeError as error:
        if is_required:
            raise
        degraded.append(f"{what}: {redacted(error.message)}")


def request_of(
    spec: WorkerSpec,
    payload: dict[str, Any],
    timeout_s: float,
    knowledge: Knowledge = NOTHING,
    tools: Sequence[ToolDefinition] = (),
) -> LLMRequest:
    """Build the prompt: what the worker knows, its system prompt, and the payload as indented JSON."""
    changeable = [silo for silo in spec.folders if silo.permissions == "read_write"]
    parts = (delimited(knowledge.pieces), writable(changeable), spec.system_prompt or "")
    return LLMRequest(
        system="\n\n".join(part for part in parts if part),
        messages=(LLMMessage(role="user", content=json.dumps(payload, ensure_ascii=False, indent=2)),),
        max_output_tokens=spec.max_output_tokens,
        temperature=spec.temperature,
        timeout_s=timeout_s,
        tools=tuple(tools),
        output_schema=_answer_schema(spec, may_change=bool(changeable)),
    )


def _answer_schema(spec: WorkerSpec, *, may_change: bool) -> dict[str, Any] | None:
    """Give the contract of the answer, with the changes of silos that it may come with."""
    schema = spec.output_schema
    if schema is None or not may_change or not isinstance(schema.get("properties"), dict):
        return None if may_change else schema
    return {**schema, "properties": {**schema["properties"], UPDATES: UPDATES_SCHEMA}}
