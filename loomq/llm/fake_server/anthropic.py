"""The Messages API as Anthropic serves it, as far as one answer without streaming goes."""

from __future__ import annotations

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

NEW_VERSION = "2026-10-21"
VERSIONS = ("2023-06-01", NEW_VERSION)
SAMPLING = ("temperature", "top_p", "top_k")
FIELDS = {
    "max_tokens", "messages", "model", "cache_control", "container", "diagnostics", "inference_geo", "metadata",
    "output_config", "service_tier", "speed", "stop_sequences", "system", "thinking", "tool_choice", "tools",
    "user_profile_id", "workspace_id", "stream",
}  # fmt: skip
KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
STOPS = {"end": "end_turn", "length": "max_tokens", "tools": "tool_use", "refusal": "refusal"}
PAGE = 20


class AnthropicWire(FakeWire):
    """``POST /v1/messages`` and ``GET /v1/models``, in both API versions."""

    name = "anthropic"
    id_header = "request-id"

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
        for name in ("model", "max_tokens", "messages"):
            if name not in body:
                raise self.error(400, f"{name}: Field required")
        self._check_sampling(body, headers["anthropic-version"])
        if unknown := sorted(body.keys() - FIELDS - set(SAMPLING)):
            raise self.error(400, f"{unknown[0]}: Extra inputs are not permitted")
        if not is_integer(body["max_tokens"]) or body["max_tokens"] < 0:
            raise self.error(400, "max_tokens: Input should be a valid integer")
        self._check_messages(body["messages"])
        if body["model"] not in offer.models:
            raise self.error(404, f"model: {body['model']}")
        if body.get("stream"):
            raise self.error(400, "stream: loomq's fake server does not stream")
        system = text_of(body.get("system", ""))
        prompts = turns(body["messages"], "user")
        return Call(
            wire=self.name,
            model=body["model"],
            system=system,
            prompt=prompts[-1] if prompts else "",
            text="\n".join([system, *(text_of(message["content"]) for message in body["messages"])]),
            max_tokens=body["max_tokens"],
            temperature=body.get("temperature"),
            stream=False,
            body=body,
        )

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

    def _check_messages(self, messages: Any) -> None:
        if not isinstance(messages, list) or not messages:
            raise self.error(400, "messages: at least one message is required")
        for at, message in enumerate(messages):
            if not isinstance(message, dict) or message.get("role") not in ("user", "assistant", "system"):
                raise self.error(400, f"messages.{at}.role: Input should be 'user', 'assistant' or 'system'")
            if unknown := sorted(message.keys() - {"role", "content"}):
                raise self.error(400, f"messages.{at}.{unknown[0]}: Extra inputs are not permitted")
            if not isinstance(message.get("content"), str | list):
                raise self.error(400, f"messages.{at}.content: Field required")
            if not message["content"]:
                raise self.error(400, f"messages.{at}: all messages must have non-empty content")

    def render(self, call: Call, answer: Answer) -> bytes:  # noqa: ARG002
        """Write a message."""
        blocks: list[dict[str, Any]] = []
        if answer.text and answer.stop != "refusal":
            blocks.append({"type": "text", "text": answer.text, "citations": None})
        for name, arguments in answer.tool_calls:
            blocks.append({"type": "tool_use", "id": new_id("toolu_"), "name": name, "input": arguments})
        refusal = {"type": "refusal", "category": "general_harms", "explanation": REFUSAL}
        return encoded(
            {
                "id": new_id("msg_"),
                "type": "message",
                "role": "assistant",
                "model": answer.model,
                "content": blocks,
                "container": None,
                "diagnostics": None,
                "stop_reason": STOPS[answer.stop],
                "stop_sequence": None,
                "stop_details": refusal if answer.stop == "refusal" else None,
                "usage": {
                    "input_tokens": answer.prompt_tokens,
                    "output_tokens": answer.completion_tokens,
                    "cache_creation_input_tokens": 0,
                    "cache_read_input_tokens": 0,
                    "service_tier": "standard",
                },
            }
        )

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
        kind = code or KINDS.get(status) or ("api_error" if status >= 500 else KINDS[400])  # noqa: PLR2004
        error = {"type": kind, "message": message}
        return RefusedError(status, {"type": "error", "error": error, "request_id": new_id("req_")})


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
