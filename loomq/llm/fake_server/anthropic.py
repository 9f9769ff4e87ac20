"""The Messages API as Anthropic serves it: answers whole and streamed, tools, structured output."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from loomq.llm.fake_server import anthropic_reply
from loomq.llm.fake_server.anthropic_request import (
    check_messages,
    check_output,
    check_tool_choice,
    check_tools,
    error,
)
from loomq.llm.fake_server.conversation import everything_in, prompt_of, text_of
from loomq.llm.fake_server.wire import Answer, Call, FakeWire, Offer, RefusedError, bearer, is_integer, is_number

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

NEW_VERSION = "2026-10-21"
VERSIONS = ("2023-06-01", NEW_VERSION)
SAMPLING = ("temperature", "top_p", "top_k")
FIELDS = {
    "max_tokens", "messages", "model", "cache_control", "container", "diagnostics", "inference_geo", "metadata",
    "output_config", "service_tier", "speed", "stop_sequences", "system", "thinking", "tool_choice", "tools",
    "user_profile_id", "workspace_id", "stream",
}  # fmt: skip
PAGE = 20


class AnthropicWire(FakeWire):
    """``POST /v1/messages`` and ``GET /v1/models``, in both API versions."""

    name = "anthropic"
    id_header = "request-id"
    overloaded = 529

    def admit(self, headers: Mapping[str, str], offer: Offer) -> None:
        """Check version and key; the old version takes the key in ``x-api-key`` only."""
        version = headers.get("anthropic-version")
        if version is None:
            raise self.error(400, "anthropic-version: header is required")
        if version not in VERSIONS:
            raise self.error(400, f'anthropic-version: "{version}" is not a valid version')
        key = headers.get("x-api-key", "") or (bearer(headers) if version == NEW_VERSION else "")
        if not offer.admits(key):
            header = "authorization" if version == NEW_VERSION else "x-api-key"
            raise self.error(401, f"invalid {header}" if key else f"{header} header is required")

    def read(self, headers: Mapping[str, str], body: Any, offer: Offer) -> Call:
        """Understand a request for a message."""
        self.admit(headers, offer)
        if not isinstance(body, dict):
            raise self.error(400, "The request body is not valid JSON: expected an object")
        self._check_fields(body, headers["anthropic-version"])
        tools = check_tools(body)
        choice = check_tool_choice(body, tools)
        schema = check_output(body)
        results = check_messages(body["messages"], has_tools=bool(tools))
        if body["model"] not in offer.models:
            raise self.error(404, f"model: {body['model']}")
        system = text_of(body.get("system", ""))
        return Call(
            wire=self.name,
            model=body["model"],
            system=system,
            prompt=prompt_of(body["messages"]),
            text="\n".join([system, *map(everything_in, body["messages"])]),
            max_tokens=body["max_tokens"],
            temperature=body.get("temperature"),
            stream=bool(body.get("stream")),
            body=body,
            tools=tools,
            tool_results=results,
            tool_choice=choice,
            schema=schema,
        )

    def _check_fields(self, body: Mapping[str, Any], version: str) -> None:
        for name in ("model", "max_tokens", "messages"):
            if name not in body:
                raise self.error(400, f"{name}: Field required")
        self._check_sampling(body, version)
        if unknown := sorted(body.keys() - FIELDS - set(SAMPLING)):
            raise self.error(400, f"{unknown[0]}: Extra inputs are not permitted")
        if not is_integer(body["max_tokens"]) or body["max_tokens"] < 0:
            raise self.error(400, "max_tokens: Input should be a valid integer")
        if not isinstance(body.get("stream", False), bool):
            raise self.error(400, "stream: Input should be a valid boolean")
        if not isinstance(body.get("thinking", {}), dict):
            raise self.error(400, "thinking: Input should be a valid dictionary or object")

    def _check_sampling(self, body: Mapping[str, Any], version: str) -> None:
        for name in SAMPLING:
            if name not in body:
                continue
            if version == NEW_VERSION:
                raise self.error(400, f"{name}: Extra inputs are not permitted")
            if not is_number(body[name]):
                raise self.error(400, f"{name}: Input should be a valid number")
            if name != "top_k" and not 0 <= body[name] <= 1:
                raise self.error(400, f"{name}: range: 0..1")

    def render(self, call: Call, answer: Answer) -> Mapping[str, Any]:
        """Write a message."""
        return anthropic_reply.message(call, answer)

    def stream(self, call: Call, answer: Answer) -> Iterator[Mapping[str, Any]]:
        """Write a message as events."""
        return anthropic_reply.events(call, answer)

    def framed(self, event: Mapping[str, Any]) -> str:
        """Write an event under its name."""
        return f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n"

    def models(self, offer: Offer, query: Mapping[str, str], name: str | None) -> Mapping[str, Any]:
        """List the models in pages, or describe one."""
        if name is not None:
            if name not in offer.models:
                raise self.error(404, f"model: {name}")
            return _described(name, offer)
        names = list(offer.models)
        limit = query.get("limit", str(PAGE))
        if not limit.isdigit() or not 1 <= int(limit) <= 1000:  # noqa: PLR2004
            raise self.error(400, "limit: Input should be between 1 and 1000")
        after = query.get("after_id")
        start = names.index(after) + 1 if after in names else 0
        page = names[start : start + int(limit)]
        return {
            "data": [_described(one, offer) for one in page],
            "has_more": start + int(limit) < len(names),
            "first_id": page[0] if page else None,
            "last_id": page[-1] if page else None,
        }

    def error(self, status: int, message: str, code: str | None = None) -> RefusedError:
        """Make an error of the kind that goes with its status, unless ``code`` names another."""
        return error(status, message, code)

    def no_structured_output(self, call: Call) -> RefusedError | None:
        """Refuse ``output_config``, which is where structured output is asked for."""
        asked = "output_config" in call.body
        return self.error(400, "output_config: Extra inputs are not permitted") if asked else None

    def context_exceeded(self) -> RefusedError | None:
        """Leave it to the stop reason."""
        return None


def _described(name: str, offer: Offer) -> dict[str, Any]:
    return {
        "type": "model",
        "id": name,
        "display_name": offer.labels.get(name, name),
        "created_at": "2026-01-01T00:00:00Z",
        "lifecycle": "active",
        "max_input_tokens": 200_000,
        "max_tokens": 64_000,
    }
