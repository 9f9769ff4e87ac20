"""Chat completions as OpenAI serves them, as far as one answer without streaming goes."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from loomq.llm.fake_server.wire import (
    REFUSAL,
    Answer,
    Call,
    FakeWire,
    Offer,
    RefusedError,
    bearer,
    encoded,
    is_integer,
    is_number,
    new_id,
    text_of,
    turns,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

FIELDS = {
    "messages", "model", "audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs",
    "max_completion_tokens", "max_tokens", "metadata", "modalities", "moderation", "n", "parallel_tool_calls",
    "prediction", "presence_penalty", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
    "reasoning_effort", "response_format", "safety_identifier", "seed", "service_tier", "stop", "store", "stream",
    "stream_options", "temperature", "tool_choice", "tools", "top_logprobs", "top_p", "user", "verbosity",
    "web_search_options",
}  # fmt: skip
ROLES = ("developer", "system", "user", "assistant", "tool", "function")
STOPS = {"end": "stop", "length": "length", "tools": "tool_calls", "refusal": "stop"}
KINDS = {401: "invalid_request_error", 429: "requests"}
CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded"}
HOTTEST = 2


class OpenAIWire(FakeWire):
    """``POST /v1/chat/completions`` and ``GET /v1/models``."""

    name = "openai"
    id_header = "x-request-id"

    def admit(self, headers: Mapping[str, str], offer: Offer) -> None:
        """Check the key."""
        key = bearer(headers)
        if not offer.admits(key):
            raise self.error(401, "Incorrect API key provided." if key else "You didn't provide an API key.")

    def read(self, headers: Mapping[str, str], body: Any, offer: Offer) -> Call:
        """Understand a request for a completion."""
        self.admit(headers, offer)
        if not isinstance(body, dict):
            raise self.error(400, "We could not parse the JSON body of your request.")
        if unknown := sorted(body.keys() - FIELDS):
            raise self._argument(unknown[0], f"Unrecognized request argument supplied: {unknown[0]}")
        for name in ("model", "messages"):
            if not body.get(name):
                raise self._argument(name, f"Missing required parameter: '{name}'.", "missing_required_parameter")
        limit = self._limit(body)
        self._check_messages(body["messages"])
        if body["model"] not in offer.models:
            said = f"The model `{body['model']}` does not exist or you do not have access to it."
            raise self.error(404, said, "model_not_found")
        if body.get("stream"):
            raise self._argument("stream", "loomq's fake server does not stream.")
        messages = body["messages"]
        prompts = turns(messages, "user")
        return Call(
            wire=self.name,
            model=body["model"],
            system="\n".join(turns(messages, "system") + turns(messages, "developer")),
            prompt=prompts[-1] if prompts else "",
            text="\n".join(text_of(message.get("content")) for message in messages),
            max_tokens=limit,
            temperature=body.get("temperature"),
            stream=False,
            body=body,
        )

    def _limit(self, body: Mapping[str, Any]) -> int | None:
        """Check the numbers, and give the one that limits the answer."""
        limits = [name for name in ("max_completion_tokens", "max_tokens") if body.get(name) is not None]
        if len(limits) > 1:
            raise self._argument("max_tokens", "'max_tokens' and 'max_completion_tokens' cannot both be set.")
        for name in limits:
            if not is_integer(body[name]) or body[name] < 1:
                raise self._argument(name, f"Invalid value for '{name}': expected a positive integer.")
        temperature = body.get("temperature")
        if temperature is not None and not (is_number(temperature) and 0 <= temperature <= HOTTEST):
            raise self._argument("temperature", "Invalid 'temperature': expected a number from 0 to 2.")
        return body[limits[0]] if limits else None

    def _check_messages(self, messages: Any) -> None:
        if not isinstance(messages, list):
            raise self._argument("messages", "Invalid type for 'messages': expected an array of objects.")
        for at, message in enumerate(messages):
            if not isinstance(message, dict) or message.get("role") not in ROLES:
                raise self._argument(f"messages[{at}].role", f"Invalid value for 'messages[{at}].role'.")

    def _argument(self, name: str, message: str, code: str | None = None) -> RefusedError:
        return self.error(400, message, code, param=name)

    def render(self, call: Call, answer: Answer) -> bytes:  # noqa: ARG002
        """Write a completion of one choice."""
        refused = answer.stop == "refusal"
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if refused or answer.tool_calls else answer.text,
            "refusal": REFUSAL if refused else None,
            "annotations": [],
        }
        if answer.tool_calls:
            message["tool_calls"] = [
                {
                    "id": new_id("call_"),
                    "type": "function",
                    "function": {"name": name, "arguments": json.dumps(arguments)},
                }
                for name, arguments in answer.tool_calls
            ]
        return encoded(
            {
                "id": new_id("chatcmpl-"),
                "object": "chat.completion",
                "created": int(time.time()),
                "model": answer.model,
                "choices": [
                    {"index": 0, "message": message, "logprobs": None, "finish_reason": STOPS[answer.stop]},
                ],
                "usage": {
                    "prompt_tokens": answer.prompt_tokens,
                    "completion_tokens": answer.completion_tokens,
                    "total_tokens": answer.prompt_tokens + answer.completion_tokens,
                },
                "service_tier": "default",
            }
        )

    def models(self, offer: Offer, query: Mapping[str, str], name: str | None) -> Mapping[str, Any]:  # noqa: ARG002
        """List the models, or describe one."""
        if name is None:
            return {"object": "list", "data": [_described(one, offer) for one in offer.models]}
        if name not in offer.models:
            raise self.error(404, f"The model '{name}' does not exist", "model_not_found")
        return _described(name, offer)

    def error(self, status: int, message: str, code: str | None = None, *, param: str | None = None) -> RefusedError:
        """Make an error of the kind that goes with its status."""
        kind = KINDS.get(status) or ("server_error" if status >= 500 else "invalid_request_error")  # noqa: PLR2004
        found = code or CODES.get(status)
        if found == "insufficient_quota":
            kind = found
        return RefusedError(status, {"error": {"message": message, "type": kind, "param": param, "code": found}})


def _described(name: str, offer: Offer) -> dict[str, Any]:
    owner = offer.labels.get(name, "loomq-fake")
    return {"id": name, "object": "model", "created": 1_767_225_600, "owned_by": owner}
