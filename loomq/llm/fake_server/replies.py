"""What a request is replied with: routes, rules, and the faults that can be told before a byte is sent."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from loomq.llm.fake_server.anthropic import AnthropicWire
from loomq.llm.fake_server.ollama import OllamaWire
from loomq.llm.fake_server.openai import OpenAIWire
from loomq.llm.fake_server.wire import FakeWire, RefusedError, encoded, new_id

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loomq.llm.fake_server.rules import Rule, Rules
    from loomq.llm.fake_server.wire import Call, Offer

OVERLOADED = "Overloaded, as a rule of loomq's fake server has it"
_WIRES: dict[str, FakeWire] = {wire.name: wire for wire in (AnthropicWire(), OpenAIWire(), OllamaWire())}
_CHATS = {"/v1/messages": "anthropic", "/v1/chat/completions": "openai", "/api/chat": "ollama"}
_EMBEDS = {"/v1/embeddings": "openai", "/api/embed": "ollama"}
_ANSWERS = _CHATS | _EMBEDS
_LISTS = {"/v1/models", "/api/tags"}


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it came.

    Args:
        target: Path and query.
        headers: By lower-case name.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    raw: bytes = b""


@dataclass(frozen=True, slots=True)
class Reply:
    """A response, before it is sent.

    Args:
        status: ``None`` for no response at all.
        pieces: The body; a stream sends one after the other.
        is_stream: Whether the body has no length.
        is_cut: End the connection after the pieces, as if there were more.
        delay_s: How long the answer takes.
        piece_delay_s: How long to wait between pieces.
        rule: The number of the rule that answered.
        fault: What the rule does to the answer.
    """

    status: int | None
    pieces: tuple[bytes, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    is_stream: bool = False
    is_cut: bool = False
    delay_s: float = 0
    piece_delay_s: float = 0
    rule: int | None = None
    fault: str | None = None


def reply_to(request: Request, offer: Offer, rules: Rules) -> Reply:
    """Find the reply to a request."""
    wire = wire_of(request)
    try:
        return _reply(wire, request, offer, rules)
    except RefusedError as refusal:
        return refused(wire, refusal)


def refused(wire: FakeWire, refusal: RefusedError, retry_after: float | None = None) -> Reply:
    """Reply with an error."""
    if isinstance(refusal.body, str):
        return _whole(wire, refusal.status, refusal.body.encode(), "text/plain")
    found = _whole(wire, refusal.status, encoded(refusal.body))
    wait = {} if retry_after is None else {"retry-after": f"{retry_after:g}"}
    return replace(found, headers={**found.headers, **wait})


def wire_of(request: Request) -> FakeWire:
    """Tell whose client this is: by the path, and on paths that two providers share by Anthropic's header."""
    path = urlsplit(request.target).path
    if path in _ANSWERS:
        return _WIRES[_ANSWERS[path]]
    if path.startswith("/v1/"):
        theirs = "anthropic-version" in request.headers or "x-api-key" in request.headers
        return _WIRES["anthropic" if theirs else "openai"]
    return _WIRES["ollama"]


def json_or_text(raw: str) -> Any:
    """Read JSON; what is none stays a text, which no wire takes for a body."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return raw


def _reply(wire: FakeWire, request: Request, offer: Offer, rules: Rules) -> Reply:
    parts = urlsplit(request.target)
    base, _, name = parts.path.partition("/v1/models/")
    is_list = parts.path in _LISTS or (not base and bool(name))
    if not is_list and parts.path not in _ANSWERS:
        raise _no_such_path(wire, request.method, parts.path)
    if request.method != ("GET" if is_list else "POST"):
        raise _no_such_method(wire, request.method, parts.path)
    if is_list:
        wire.admit(request.headers, offer)
        listed = wire.models(offer, dict(parse_qsl(parts.query)), unquote(name) or None)
        return _whole(wire, 200, encoded(listed))
    read = wire.read_inputs if parts.path in _EMBEDS else wire.read
    call = read(request.headers, json_or_text(request.raw.decode("utf-8", "replace")), offer)
    found = rules.find(call)
    if found is None:
        raise wire.error(400, "loomq's fake server has no rule for this request")
    rule, number = found
    answered = _followed(wire, rule, call, offer.labels.get(call.model, call.model))
    return replace(answered, rule=number, fault=rule.fault, delay_s=rule.delay_seconds)


def _followed(wire: FakeWire, rule: Rule, call: Call, label: str) -> Reply:
    """Do what a rule says."""
    if rule.fault == "hang":
        return Reply(None)
    if refusal := _refusal(wire, rule, call):
        return refused(wire, refusal, rule.retry_after)
    if call.kind == "embed":
        return _damaged(wire, encoded(wire.render_vectors(call, label)), rule)
    answer = rule.answer(call, label)
    if call.stream:
        return _streamed(wire, [wire.framed(event) for event in wire.stream(call, answer)], rule)
    return _damaged(wire, encoded(wire.render(call, answer)), rule)


def _refusal(wire: FakeWire, rule: Rule, call: Call) -> RefusedError | None:
    """Find the error that a rule answers with."""
    if rule.status is not None:
        return wire.error(rule.status, rule.message or "scripted by a rule of loomq's fake server", rule.code)
    refusal = None if rule.structured else wire.no_structured_output(call)
    if refusal is None and rule.stop == "context":
        refusal = wire.context_exceeded()
    if refusal is None and rule.fault == "stream_error" and not call.stream:
        refusal = wire.error(wire.overloaded, OVERLOADED)
    return refusal


def _damaged(wire: FakeWire, body: bytes, rule: Rule) -> Reply:
    """Reply with a body; half of it if the rule says so, by a wrong content or by a wrong end."""
    half = body[: len(body) // 2]
    if rule.fault == "cut":
        found = _whole(wire, 200, body)
        return replace(found, pieces=(half,), is_cut=True)
    return _whole(wire, 200, half if rule.fault == "malformed" else body)


def _streamed(wire: FakeWire, events: list[str], rule: Rule) -> Reply:
    """Reply with a stream, and do to the event in its middle what the rule says."""
    half = len(events) // 2
    parts = [*events, *([wire.stream_end] if wire.stream_end else [])]
    if rule.fault == "cut":
        parts = [*events[:half], _broken(events[half]).rstrip("\n")]
    elif rule.fault == "malformed":
        parts[half] = _broken(parts[half])
    elif rule.fault == "stream_error":
        body = wire.error(wire.overloaded, OVERLOADED).body
        assert not isinstance(body, str)
        parts = [*events[:half], wire.framed(body)]
    return Reply(
        200,
        tuple(part.encode() for part in parts),
        {"content-type": wire.stream_type, "cache-control": "no-cache", **_named(wire)},
        is_stream=True,
        is_cut=rule.fault == "cut",
        piece_delay_s=rule.piece_delay_seconds,
    )


def _broken(event: str) -> str:
    """Leave out the second half of an event's JSON, but not the end of its line."""
    line = event.rstrip("\n")
    return line[: (line.index("{") + len(line)) // 2] + event[len(line) :]


def _whole(wire: FakeWire, status: int, body: bytes, content_type: str = "application/json") -> Reply:
    headers = {"content-type": content_type, "content-length": str(len(body)), **_named(wire)}
    return Reply(status, (body,), headers)


def _named(wire: FakeWire) -> dict[str, str]:
    return {wire.id_header: new_id("req_")} if wire.id_header else {}


def _no_such_path(wire: FakeWire, method: str, path: str) -> RefusedError:
    if wire.name == "ollama":
        return RefusedError(404, "404 page not found")
    return wire.error(404, f"Invalid URL ({method} {path})" if wire.name == "openai" else "Not Found")


def _no_such_method(wire: FakeWire, method: str, path: str) -> RefusedError:
    if wire.name == "ollama":
        return RefusedError(405, "405 method not allowed")
    told = f"Not allowed to {method} on {path}." if wire.name == "openai" else "Method Not Allowed"
    return wire.error(405, told, "method_not_supported" if wire.name == "openai" else None)
