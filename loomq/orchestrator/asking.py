"""What the steps of an orchestrator have in common: how an answer and its notes are given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loomq.workers.llm import Answer

if TYPE_CHECKING:
    from loomq.orchestrator.memory import Memory
    from loomq.workers.conversation import Conversation


def answer_of(talk: Conversation, output: dict[str, Any], model: str, notes: dict[str, Any]) -> Answer:
    """Give a step's result with what its calls have used."""
    used = talk.used
    told = {
        "stood_in": list(talk.stood_in.values()),
        "from_cache": used.from_cache,
        "reused": used.reused,
        **notes,
    }
    return Answer(
        output=output,
        model_used=model,
        token_usage={"prompt_tokens": used.prompt_tokens, "completion_tokens": used.completion_tokens},
        notes={name: value for name, value in told.items() if value},
        updates=[],
        accept=talk.accept,
        reject=talk.reject,
    )


def memory_notes(memory: Memory) -> dict[str, Any]:
    """Say what a step could not tell the model word by word."""
    return {"checkpoints": memory.made, "lost_minutes": memory.lost, "shortened": memory.shortened}
