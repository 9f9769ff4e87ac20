"""The chat and the embeddings of an Ollama server, streamed or whole."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from loomq.llm.fake_server.conversation import blocks_of, everything_in, prompt_of, rounds, turns
from loomq.llm.fake_server.embeddings import DIMENSIONS, MAX_DIMENSIONS, vector
from loomq.llm.fake_server.schemas import schema_fault
from loomq.llm.fake_server.wire import (
    REFUSAL,
    Answer,
    Call,
    FakeWire,
    Offer,
    RefusedError,
    is_integer,
    is_number,
    pieces,
    tokens,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROLES = ("system", "user", "assistant", "tool")
_MILLISECOND = 1_000_000


class OllamaWire(FakeWire):
    """``POST /api/chat``, ``POST /api/embed`` and ``GET /api/tags``; unknown keys are ignored, as there."""

    name = "ollama"
    stream_type = "application/x-ndjson"

    def admit(self, headers: Mapping[str, str], offer: Offer) -> None:
        """Let everybody in."""

    def read(self, headers: Mapping[str, str], body: Any, offer: Offer) -> Call:  # noqa: ARG002
        """Understand a request for a chat."""
        model = self._model(body)
        messages = body.get("messages") or []
        limit, temperature = self._options(body.get("options"))
        if not isinstance(messages, list):
            raise self.error(400, "json: cannot unmarshal messages into []api.Message")
        for message in messages:
            if not isinstance(message, dict) or message.get("role") not in ROLES:
                raise self.error(400, "invalid role in messages")
            self._check_calls(message)
        self._find(model, offer)
        tools = self._tools(body)
        return Call(
            wire=self.name,
            model=model,
            system="\n".join(turns(messages, "system")),
            prompt=prompt_of(messages),
            text="\n".join(map(everything_in, messages)),
            max_tokens=limit if limit is not None and limit >= 0 else None,  # -1 and -2 stand for no limit
            temperature=temperature,
            stream=body.get("stream") is not False,
            body=body,
            tools=tools,
            tool_results=rounds(messages),
            tool_choice="auto" if tools else "none",
            schema=self._format(body.get("format")),
        )

    def read_inputs(self, headers: Mapping[str, str], body: Any, offer: Offer) -> Call:  # noqa: ARG002
        """Understand a request for embeddings; an empty text is no input, as there."""
        model = self._model(body)
        inputs = body.get("input") or []
        inputs = [inputs] if isinstance(inputs, str) else inputs
        if not isinstance(inputs, list) or not all(isinstance(text, str) for text in inputs):
            raise self.error(400, "invalid input type")
        if not is_integer(body.get("dimensions") or 0) or not 0 <= (body.get("dimensions") or 0) <= MAX_DIMENSIONS:
            raise self.error(400, "invalid dimensions")
        self._find(model, offer)
        text = "\n".join(inputs)
        return Call(
            self.name, model, "", text, text, None, None, stream=False, body=body, kind="embed", inputs=tuple(inputs)
        )  # fmt: skip

    def _model(self, body: Any) -> str:
        if not isinstance(body, dict):
            raise self.error(400, "invalid character in request body, looking for beginning of value")
        if not body.get("model"):
            raise self.error(400, "model is required")
        return str(body["model"])

    def _find(self, model: str, offer: Offer) -> None:
        if model not in offer.models and model.removesuffix(":latest") not in offer.models:
            raise self.error(404, f"model '{model}' not found")

    def _options(self, options: Any) -> tuple[int | None, float | None]:
        if options is None:
            return None, None
        if not isinstance(options, dict):
            raise self.error(400, "json: cannot unmarshal options into a map")
        for name, fits, kind in (("num_predict", is_integer, "integer"), ("temperature", is_number, "float32")):
            if name in options and not fits(options[name]):
                raise self.error(400, f'option "{name}" must be of type {kind}')
        return options.get("num_predict"), options.get("temperature")

    def _check_calls(self, message: Mapping[str, Any]) -> None:
        for call in blocks_of(message.get("tool_calls")):
            function = call.get("function")
            if not isinstance(function, dict) or not isinstance(function.get("arguments"), dict):
                raise self.error(400, "json: cannot unmarshal tool_calls.function.arguments into a map")

    def _tools(self, body: Mapping[str, Any]) -> tuple[str, ...]:
        tools = body.get("tools") or []
        functions = [tool.get("function") for tool in blocks_of(tools)]
        if not isinstance(tools, list) or not all(isinstance(one, dict) for one in functions):
            raise self.error(400, "json: cannot unmarshal tools into []api.Tool")
        return tuple(str(function.get("name")) for function in functions if function)

    def _format(self, wanted: Any) -> Mapping[str, Any] | None:
        if wanted in (None, "", "json"):
            return None
        if not isinstance(wanted, dict):
            told = f'invalid format: {json.dumps(wanted)}; expected "json" or a valid JSON Schema object'
            raise self.error(500, told)  # the real one finds it where it no longer knows whose fault it is
        if schema_fault(wanted):
            raise self.error(500, "invalid JSON schema in format")
        return wanted

    def render(self, call: Call, answer: Answer) -> Mapping[str, Any]:
        """Write the answer as one object."""
        message: dict[str, Any] = {"role": "assistant", "content": _content(answer)}
        if answer.thinking:
            message["thinking"] = answer.thinking
        if answer.tool_calls:
            message["tool_calls"] = _calls(call, answer)
        return {**_head(answer), "message": message, **_end(answer)}

    def stream(self, call: Call, answer: Answer) -> Iterator[Mapping[str, Any]]:
        """Write the answer as lines: what the model thinks, pieces of text, the tool calls, the end."""
        head = _head(answer)
        said: list[dict[str, Any]] = [{"content": "", "thinking": part} for part in pieces(answer.thinking)]
        said += [{"content": part} for part in pieces(_content(answer))]
        said += [{"content": "", "tool_calls": [one]} for one in _calls(call, answer)]
        for message in said:
            yield {**head, "message": {"role": "assistant", **message}, "done": False}
        yield {**head, "message": {"role": "assistant", "content": ""}, **_end(answer)}

    def framed(self, event: Mapping[str, Any]) -> str:
        """Write a line."""
        return json.dumps(event, ensure_ascii=False) + "\n"

    def render_vectors(self, call: Call, label: str) -> Mapping[str, Any]:
        """Write embeddings."""
        dimensions = call.body.get("dimensions") or DIMENSIONS
        return {
            "model": label,
            "embeddings": [vector(text, dimensions) for text in call.inputs],
            "total_duration": 2 * _MILLISECOND,
            "load_duration": _MILLISECOND,
            "prompt_eval_count": sum(map(tokens, call.inputs)),
        }

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


def _content(answer: Answer) -> str:
    return REFUSAL if answer.stop == "refusal" else answer.text


def _calls(call: Call, answer: Answer) -> list[dict[str, Any]]:
    return [
        {
            "id": call.tool_id("call_", number),
            "function": {"index": number, "name": one.name, "arguments": one.understood},
        }
        for number, one in enumerate(answer.tool_calls)
    ]


def _head(answer: Answer) -> dict[str, Any]:
    return {"model": answer.model, "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z")}


def _end(answer: Answer) -> dict[str, Any]:
    return {
        "done": True,
        "done_reason": "length" if answer.stop == "length" else "stop",
        "total_duration": 3 * _MILLISECOND,
        "load_duration": _MILLISECOND,
        "prompt_eval_count": answer.prompt_tokens,
        "prompt_eval_duration": _MILLISECOND,
        "eval_count": answer.completion_tokens,
        "eval_duration": _MILLISECOND,
    }
