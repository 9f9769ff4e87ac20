"""LLM workers: prompt in, one JSON object out."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from loomq.errors import LLMAnswerError, LLMError

if TYPE_CHECKING:
    from loomq.llm.base import LLMReply, LLMRequest
    from loomq.llm.tiers import Tiers
    from loomq.workers.loop import EventLoop
    from loomq.workers.spec import WorkerSpec

# English takes some 4 bytes a token, JSON and other scripts about 3: better to count too many.
BYTES_A_TOKEN = 3


class LLMWorkers:
    """The language models of one process.

    Args:
        tiers: Which backend serves which tier.
        loop: Where calls run.
    """

    def __init__(self, tiers: Tiers, loop: EventLoop) -> None:
        self._tiers = tiers
        self._loop = loop

    def run(self, spec: WorkerSpec, payload: dict[str, Any], tier: str, timeout_s: float) -> dict[str, Any]:
        """Ask the tier's model, and read the object in its answer.

        Returns:
            ``{"output": {...}, "model_used": str, "token_usage": {...}}``.

        Raises:
            ConfigError: The tier has no backend or no model.
            LLMError: The prompt is too long, the call failed, or the answer cannot be used. Transport and an answer
                without an object are ``retryable``; an object that breaks its contract is not (formats.md §2).
            SoftDeadline: The time was up.
        """
        reply = self.ask(request_of(spec, payload, timeout_s), tier)
        return {
            "output": output_of(spec, reply),
            "model_used": reply.model,
            "token_usage": {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens},
        }

    def most_tokens(self, spec: WorkerSpec, payload: dict[str, Any]) -> int:
        """Estimate how many tokens a task may use: its prompt's, and all that it may answer."""
        prompt = (spec.system_prompt or "") + json.dumps(payload, ensure_ascii=False, indent=2)
        return estimated_tokens(prompt) + spec.max_output_tokens

    def ask(self, request: LLMRequest, tier: str) -> LLMReply:
        """Ask the tier's model; errors as in ``run``."""
        return self._loop.run(self._tiers.backend(tier).complete(request), request.timeout_s)


def request_of(spec: WorkerSpec, payload: dict[str, Any], timeout_s: float) -> LLMRequest:
    """Build the prompt: the system prompt, and the payload as indented JSON.

    Raises:
        LLMError: It is longer than ``max_input_tokens``.
    """
    from loomq.llm.base import LLMMessage, LLMRequest

    system = spec.system_prompt or ""
    user = json.dumps(payload, ensure_ascii=False, indent=2)
    estimate = estimated_tokens(system) + estimated_tokens(user)
    if spec.max_input_tokens is not None and estimate > spec.max_input_tokens:
        raise LLMError(
            f"the prompt of worker {spec.name} is some {estimate:,} tokens long (a token for every {BYTES_A_TOKEN}"
            f" bytes); its max_input_tokens is {spec.max_input_tokens:,}",
            hint="send less, or raise max_input_tokens",
        )
    return LLMRequest(
        system=system,
        messages=(LLMMessage(role="user", content=user),),
        max_output_tokens=spec.max_output_tokens,
        temperature=spec.temperature,
        timeout_s=timeout_s,
    )


def output_of(spec: WorkerSpec, reply: LLMReply) -> dict[str, Any]:
    """Read the object in an answer.

    Raises:
        LLMAnswerError: There is none.
        LLMError: The answer was cut off.
    """
    from loomq.llm.base import StopReason
    from loomq.llm.parsing import parse_object

    if reply.stop_reason == StopReason.MAX_TOKENS:
        raise LLMError(
            f"the answer of {reply.model} was cut off at max_output_tokens, {spec.max_output_tokens:,}",
            hint=f"raise max_output_tokens in worker {spec.name}, or ask for less",
        )
    if reply.stop_reason in (StopReason.TOOL_USE, StopReason.PAUSE_TURN):
        raise LLMAnswerError(f"{reply.model} stopped for {reply.stop_reason}, and worker {spec.name} has no tools")
    return parse_object(reply.content)


def estimated_tokens(text: str) -> int:
    """Count a text's tokens without its model's tokenizer, rather too many than too few."""
    return math.ceil(len(text.encode("utf-8", "replace")) / BYTES_A_TOKEN)
