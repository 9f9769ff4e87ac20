"""The chat of an Ollama server, streamed or whole."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from loomq.llm.fake_server.wire import (
    REFUSAL,
    Answer,
    Call,
    FakeWire,
    Offer,
    RefusedError,
    encoded,
    is_integer,
    is_number,
    text_of,
    turns,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

ROLES = ("system", "user", "assistant", "tool")
_MILLISECOND = 1_000_000


class OllamaWire(FakeWire):
    """``POST /api/chat`` and ``GET /api/tags``; unknown keys are ignored, as there."""

    name = "ollama"

    def admit(self, headers: Mapping[str, str], offer: Offer) -> None:
        """Let everybody in."""

    def read(self, headers: Mapping[str, str], body: Any, offer: Offer) -> Call:  # noqa: ARG002
        """Understand a request for a chat."""
        if not isinstance(body, dict):
            raise self.error(400, "invalid character in request body, looking for beginning of value")
        model, messages = body.get("model"), body.get("messages") or []
        if not model:
            raise self.error(400, "model is required")
        options = body.get("options") or {}
        for name, fits, kind in (("num_predict", is_integer, "integer"), ("temperature", is_number, "float32")):
            if name in options and not fits(options[name]):
                raise self.error(400, f'option "{name}" must be of type {kind}')
        for message in messages:
            if not isinstance(message, dict) or message.get("role") not in ROLES:
                raise self.error(400, "invalid role in messages")
        if model not in offer.models and model.removesuffix(":latest") not in offer.models:
            raise self.error(404, f"model '{model}' not found")
        prompts = turns(messages, "user")
        limit = options.get("num_predict")
        return Call(
            wire=self.name,
            model=model,
            system="\n".join(turns(messages, "system")),
            prompt=prompts[-1] if prompts else "",
            text="\n".join(text_of(message.get("content")) for message in messages),
            max_tokens=limit if limit is not None and limit >= 0 else None,  # -1 and -2 stand for no limit
            temperature=options.get("temperature"),
            stream=body.get("stream") is not False,
            body=body,
        )

    def render(self, call: Call, answer: Answer) -> bytes:
        """Write the answer, as one object or as two lines: the text, and the end."""
        message: dict[str, Any] = {
            "role": "assistant",
            "content": REFUSAL if answer.stop == "refusal" else answer.text,
        }
        if answer.tool_calls:
            called = [{"function": {"name": name, "arguments": arguments}} for name, arguments in answer.tool_calls]
            message |= {"content": "", "tool_calls": called}
        head = {"model": answer.model, "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z")}
        end = {
            "done": True,
            "done_reason": "length" if answer.stop == "length" else "stop",
            "total_duration": 3 * _MILLISECOND,
            "load_duration": _MILLISECOND,
            "prompt_eval_count": answer.prompt_tokens,
            "prompt_eval_duration": _MILLISECOND,
            "eval_count": answer.completion_tokens,
            "eval_duration": _MILLISECOND,
        }
        if not call.stream:
            return encoded({**head, "message": message, **end})
        last = {"role": "assistant", "content": ""}
        lines = ({**head, "message": message, "done": False}, {**head, "message": last, **end})
        return b"".join(encoded(line) + b"\n" for line in lines)

    def models(self, offer: Offer, query: Mapping[str, str], name: str | None) -> Mapping[str, Any]:  # noqa: ARG002
        """List the models on the imaginary disk."""
        details = {"parent_model": "", "format": "gguf", "family": "fake", "families": ["fake"]}
        return {
            "models": [
                {
                    "name": one,
                    "model": one,
                    "modified_at": "2026-01-01T00:00:00Z",
                    "size": 1_000_000,
                    "digest": "0" * 64,
                    "details": {**details, "parameter_size": "1M", "quantization_level": "F16"},
                }
                for one in offer.models
            ]
        }

    def error(self, status: int, message: str, code: str | None = None) -> RefusedError:  # noqa: ARG002
        """Make an error, which has no kinds here."""
        return RefusedError(status, {"error": message})
