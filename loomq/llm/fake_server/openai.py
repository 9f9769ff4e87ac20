"""Chat completions and embeddings as OpenAI serves them: answers whole and streamed, tools, structured output."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from loomq.llm.fake_server import openai_reply
from loomq.llm.fake_server.conversation import everything_in, prompt_of, turns
from loomq.llm.fake_server.embeddings import DIMENSIONS, MAX_DIMENSIONS, packed, vector
from loomq.llm.fake_server.openai_request import (
    argument,
    check_messages,
    check_response_format,
    check_tool_choice,
    check_tools,
    error,
)
from loomq.llm.fake_server.wire import (
    Answer,
    Call,
    FakeWire,
    Offer,
    RefusedError,
    bearer,
    is_integer,
    is_number,
    tokens,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FIELDS = {
    "messages", "model", "audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs",
    "max_completion_tokens", "max_tokens", "metadata", "modalities", "moderation", "n", "parallel_tool_calls",
    "prediction", "presence_penalty", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
    "reasoning_effort", "response_format", "safety_identifier", "seed", "service_tier", "stop", "store", "stream",
    "stream_options", "temperature", "tool_choice", "tools", "top_logprobs", "top_p", "user", "verbosity",
    "web_search_options",
}  # fmt: skip
EMBED_FIELDS = {"input", "model", "dimensions", "encoding_format", "user"}
HOTTEST = 2
MOST_INPUTS = 2048


class OpenAIWire(FakeWire):
    """``POST /v1/chat/completions``, ``POST /v1/embeddings`` and ``GET /v1/models``."""

    name = "openai"
    id_header = "x-request-id"
    stream_end = "data: [DONE]\n\n"

    def admit(self, headers: Mapping[str, str], offer: Offer) -> None:
        """Check the key."""
        key = bearer(headers)
        if not offer.admits(key):
            raise self.error(401, "Incorrect API key provided." if key else "You didn't provide an API key.")

    def read(self, headers: Mapping[str, str], body: Any, offer: Offer) -> Call:
        """Understand a request for a completion."""
        self._begin(headers, body, offer, FIELDS, ("model", "messages"))
        limit = _limit(body)
        messages = body["messages"]
        results = check_messages(messages)
        tools = check_tools(body)
        choice = check_tool_choice(body, tools)
        schema = check_response_format(body)
        if body.get("stream_options") is not None and not (
            body.get("stream") and isinstance(body["stream_options"], dict)
        ):
            said = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
            raise argument("stream_options", said)
        self._find(body["model"], offer)
        return Call(
            wire=self.name,
            model=body["model"],
            system="\n".join(turns(messages, "system") + turns(messages, "developer")),
            prompt=prompt_of(messages),
            text="\n".join(map(everything_in, messages)),
            max_tokens=limit,
            temperature=body.get("temperature"),
            stream=bool(body.get("stream")),
            body=body,
            tools=tools,
            tool_results=results,
            tool_choice=choice,
            schema=schema,
        )

    def read_inputs(self, headers: Mapping[str, str], body: Any, offer: Offer) -> Call:
        """Understand a request for embeddings."""
        self._begin(headers, body, offer, EMBED_FIELDS, ("model",))
        inputs = [body["input"]] if isinstance(body.get("input"), str) else body.get("input")
        if not inputs or not isinstance(inputs, list) or not all(isinstance(text, str) for text in inputs):
            raise self.error(400, "'$.input' is invalid. Please check the API reference.")
        if not all(inputs):
            raise argument("input", "Invalid 'input': input cannot be an empty string.", "empty_string")
        if len(inputs) > MOST_INPUTS:
            said = f"Invalid 'input': array too long. Expected an array with maximum length {MOST_INPUTS}."
            raise argument("input", said, "array_above_max_length")
        dimensions = body.get("dimensions", DIMENSIONS)
        if not is_integer(dimensions) or not 1 <= dimensions <= MAX_DIMENSIONS:
            raise argument("dimensions", f"Invalid value for 'dimensions': expected 1 to {MAX_DIMENSIONS}.")
        if body.get("encoding_format", "float") not in ("float", "base64"):
            raise argument("encoding_format", "Invalid value for 'encoding_format': expected 'float' or 'base64'.")
        self._find(body["model"], offer)
        text = "\n".join(inputs)
        return Call(
            self.name, body["model"], "", text, text, None, None, stream=False, body=body, kind="embed",
            inputs=tuple(inputs),
        )  # fmt: skip

    def _begin(
        self, headers: Mapping[str, str], body: Any, offer: Offer, known: set[str], required: tuple[str, ...]
    ) -> None:
        """Check who calls, and that all keys of a request are there and known."""
        self.admit(headers, offer)
        if not isinstance(body, dict):
            raise self.error(400, "We could not parse the JSON body of your request.")
        if unknown := sorted(body.keys() - known):
            raise argument(unknown[0], f"Unrecognized request argument supplied: {unknown[0]}")
        for name in required:
            if not body.get(name):
                raise argument(name, f"Missing required parameter: '{name}'.", "missing_required_parameter")

    def _find(self, model: Any, offer: Offer) -> None:
        if model not in offer.models:
            said = f"The model `{model}` does not exist or you do not have access to it."
            raise self.error(404, said, "model_not_found")

    def render(self, call: Call, answer: Answer) -> Mapping[str, Any]:
        """Write a completion of one choice."""
        return openai_reply.completion(call, answer)

    def stream(self, call: Call, answer: Answer) -> Iterator[Mapping[str, Any]]:
        """Write a completion as chunks."""
        return openai_reply.chunks(call, answer)

    def framed(self, event: Mapping[str, Any]) -> str:
        """Write a chunk."""
        return f"data: {json.dumps(event, ensure_ascii=False)}\n\n"

    def render_vectors(self, call: Call, label: str) -> Mapping[str, Any]:
        """Write embeddings, as numbers or packed."""
        vectors = [vector(text, call.body.get("dimensions", DIMENSIONS)) for text in call.inputs]
        is_packed = call.body.get("encoding_format") == "base64"
        counted = sum(map(tokens, call.inputs))
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": packed(one) if is_packed else one}
                for index, one in enumerate(vectors)
            ],
            "model": label,
            "usage": {"prompt_tokens": counted, "total_tokens": counted},
        }

    def models(self, offer: Offer, query: Mapping[str, str], name: str | None) -> Mapping[str, Any]:  # noqa: ARG002
        """List the models, or describe one."""
        if name is None:
            return {"object": "list", "data": [_described(one, offer) for one in offer.models]}
        if name not in offer.models:
            raise self.error(404, f"The model '{name}' does not exist", "model_not_found")
        return _described(name, offer)

    def error(self, status: int, message: str, code: str | None = None) -> RefusedError:
        """Make an error of the kind that goes with its status."""
        return error(status, message, code)

    def no_structured_output(self, call: Call) -> RefusedError | None:
        """Refuse ``response_format`` as a key that nobody knows, unless it asks for text."""
        if (call.body.get("response_format") or {}).get("type", "text") == "text":
            return None
        return argument("response_format", "Unrecognized request argument supplied: response_format")


def _limit(body: Mapping[str, Any]) -> int | None:
    """Check the numbers, and give the one that limits the answer."""
    limits = [name for name in ("max_completion_tokens", "max_tokens") if body.get(name) is not None]
    if len(limits) > 1:
        raise argument("max_tokens", "'max_tokens' and 'max_completion_tokens' cannot both be set.")
    for name in limits:
        if not is_integer(body[name]) or body[name] < 1:
            raise argument(name, f"Invalid value for '{name}': expected a positive integer.")
    temperature = body.get("temperature")
    if temperature is not None and not (is_number(temperature) and 0 <= temperature <= HOTTEST):
        raise argument("temperature", "Invalid 'temperature': expected a number from 0 to 2.")
    return body[limits[0]] if limits else None


def _described(name: str, offer: Offer) -> dict[str, Any]:
    owner = offer.labels.get(name, "loomq-fake")
    return {"id": name, "object": "model", "created": 1_767_225_600, "owned_by": owner}
