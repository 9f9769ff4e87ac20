"""The server: one loopback address for all three wires, with the rules' faults done to real connections."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from loomq.llm.fake_server import extractive
from loomq.llm.fake_server.anthropic import AnthropicWire
from loomq.llm.fake_server.journal import Entry, Journal, without_keys
from loomq.llm.fake_server.ollama import OllamaWire
from loomq.llm.fake_server.openai import OpenAIWire
from loomq.llm.fake_server.rules import DEFAULT_MODELS, Rule, Rules
from loomq.llm.fake_server.wire import FakeWire, Offer, RefusedError, encoded, new_id

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from loomq.llm.fake_server.rules import Answerer
    from loomq.llm.fake_server.wire import Call

HOST = "127.0.0.1"
MAX_REQUEST_BYTES = 16 * 1024 * 1024
_WIRES: dict[str, FakeWire] = {wire.name: wire for wire in (AnthropicWire(), OpenAIWire(), OllamaWire())}
_ANSWERS = {"/v1/messages": "anthropic", "/v1/chat/completions": "openai", "/api/chat": "ollama"}
_LISTS = {"/v1/models", "/api/tags"}
_LOOK_EVERY_S = 0.05


class FakeServer:
    """A provider on a port of this machine; a context manager that serves in threads of its own.

    Args:
        rules: What it answers; without any it echoes the prompt as JSON.
        models: What it lists, and the only ones that it answers for.
        labels: What a model is called in replies, where that differs.
        keys: Accepted keys; empty accepts any.
        needs_key: Whether Anthropic's and OpenAI's wires refuse calls without a key.
        port: 0 takes a free one.
        journal_file: Where the journal is also written, a line of JSON a request.

    Raises:
        OSError: The port is taken.
    """

    def __init__(
        self,
        rules: Sequence[Rule | Mapping[str, Any] | Answerer] = (),
        *,
        models: Sequence[str] = DEFAULT_MODELS,
        labels: Mapping[str, str] | None = None,
        keys: Sequence[str] = (),
        needs_key: bool = True,
        port: int = 0,
        journal_file: Path | None = None,
    ) -> None:
        self.rules = Rules(rules)
        self.offer = Offer(tuple(models), dict(labels or {}), frozenset(keys), needs_key)
        self.journal = Journal(journal_file)
        self.stopping = threading.Event()
        self._http = _Listener((HOST, port), _Handler, self)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), name="fake-llm", daemon=True)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._http.server_address[1])

    @property
    def url(self) -> str:
        """The address for Anthropic's and Ollama's clients."""
        return f"http://{HOST}:{self.port}"

    @property
    def openai_url(self) -> str:
        """The address for OpenAI's clients, which want the version in it."""
        return f"{self.url}/v1"

    def environment(self, wire: str, key: str = "fake-key") -> dict[str, str]:
        """Give the variables that make loomq ask this server on all tiers, by one wire."""
        model = self.offer.models[0]
        tiers = {f"{tier}_BACKEND": wire for tier in ("LOCAL", "STANDARD", "FRONTIER")}
        return {
            **tiers,
            "OLLAMA_URL": self.url,
            "OLLAMA_MODEL": model,
            "ANTHROPIC_BASE_URL": self.url,
            "ANTHROPIC_API_KEY": key,
            "ANTHROPIC_MODEL": model,
            "OPENAI_BASE_URL": self.openai_url,
            "OPENAI_API_KEY": key,
            "OPENAI_MODEL": model,
        }

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._http.shutdown()
        self._http.close_connections()
        self._http.server_close()
        self._thread.join()


class _Listener(ThreadingHTTPServer):
    daemon_threads = False  # none outlives the server: closing it ends their connections and joins them
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], fake: FakeServer) -> None:
        super().__init__(address, handler)
        self.fake = fake
        self._open: set[socket.socket] = set()
        self.accepted = 0  # connections so far

    def server_bind(self) -> None:
        """Bind without the reverse lookup of ``HTTPServer``, which may take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        self.accepted += 1
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Take a client that is gone for what it is."""

    def close_connections(self) -> None:
        for request in list(self._open):
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "loomq-fake-llm"
    sys_version = ""
    disable_nagle_algorithm = True
    wbufsize = -1  # one write a response
    server: _Listener

    def log_message(self, *_: Any) -> None:
        """Say nothing; the journal knows."""

    def _serve(self) -> None:
        """Find the answer, write the journal, and only then let the client see it."""
        started = time.monotonic()
        at = datetime.now(UTC).isoformat()
        self._rule: int | None = None
        self._fault: str | None = None
        headers = {name.lower(): value for name, value in self.headers.items()}
        parts = urlsplit(self.path)
        wire = _wire_of(parts.path, headers)
        raw = b""
        try:
            raw = self._read(wire, headers)
            reply = self._answer(wire, parts.path, dict(parse_qsl(parts.query)), headers, raw)
        except RefusedError as refusal:
            reply = _refusal(wire, refusal)
        shown, text = without_keys(headers, raw.decode("utf-8", "replace"))
        seconds = round(time.monotonic() - started, 4)
        body, status = _json(text) if text else None, reply.status if reply else None
        self.server.fake.journal.add(
            Entry(at, wire.name, self.command, self.path, shown, body, status, self._rule, self._fault, seconds)
        )
        if reply is None:
            self._hang()
        else:
            self._send(reply)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _serve  # noqa: N815  (the names are the library's)

    def _read(self, wire: FakeWire, headers: Mapping[str, str]) -> bytes:
        length = headers.get("content-length", "0")
        if "transfer-encoding" in headers or not length.isdigit():
            self.close_connection = True
            raise wire.error(411, "Length Required")
        if int(length) > MAX_REQUEST_BYTES:
            self.close_connection = True
            raise wire.error(413, "Request exceeds the maximum size")
        return self.rfile.read(int(length))

    def _answer(
        self, wire: FakeWire, path: str, query: Mapping[str, str], headers: Mapping[str, str], raw: bytes
    ) -> _Reply | None:
        """Give the reply, or ``None`` for none at all."""
        fake = self.server.fake
        base, _, name = path.partition("/v1/models/")
        is_list = path in _LISTS or (not base and bool(name))
        if not is_list and path not in _ANSWERS:
            raise _no_such_path(wire, self.command, path)
        if self.command != ("GET" if is_list else "POST"):
            raise _no_such_method(wire, self.command, path)
        if is_list:
            wire.admit(headers, fake.offer)
            return _Reply(200, encoded(wire.models(fake.offer, query, unquote(name) or None)), wire)
        call = wire.read(headers, _json(raw.decode("utf-8", "replace")), fake.offer)
        found = fake.rules.find(call)
        if found is None:
            raise wire.error(400, "loomq's fake server has no rule for this request")
        rule, self._rule = found
        self._fault = rule.fault
        return self._follow(wire, rule, call)

    def _follow(self, wire: FakeWire, rule: Rule, call: Call) -> _Reply | None:
        """Do what a rule says."""
        fake = self.server.fake
        if rule.delay_seconds:
            fake.stopping.wait(rule.delay_seconds)
        if rule.fault == "hang":
            return None
        if rule.status is not None:
            refusal = wire.error(rule.status, rule.message or "scripted by a rule of loomq's fake server", rule.code)
            return _refusal(wire, refusal, rule.retry_after)
        label = fake.offer.labels.get(call.model, call.model)
        body = wire.render(call, rule.answer(call, label))
        if rule.fault == "malformed":
            body = body[: len(body) // 2]
        kind = "application/x-ndjson" if call.stream else "application/json"
        return _Reply(200, body, wire, kind, cut=rule.fault == "cut")

    def _hang(self) -> None:
        """Hold the connection until the client or the server gives up."""
        self.close_connection = True
        while not self.server.fake.stopping.wait(_LOOK_EVERY_S):
            readable, _, _ = select.select([self.connection], [], [], 0)
            if readable and not self.connection.recv(1, socket.MSG_PEEK):
                return

    def _send(self, reply: _Reply) -> None:
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        body = reply.body
        if reply.cut:
            self.close_connection = True
            body = body[: len(body) // 2]
        self.end_headers()
        with contextlib.suppress(OSError):  # who asked may be gone
            self.wfile.write(body)
            self.wfile.flush()


@dataclass(frozen=True, slots=True)
class _Reply:
    """A response, before it is sent.

    Args:
        cut: Send half of the body and end the connection.
    """

    status: int
    body: bytes
    wire: FakeWire
    kind: str = "application/json"
    retry_after: float | None = None
    cut: bool = False

    @property
    def headers(self) -> dict[str, str]:
        """The headers that go with it."""
        found = {"content-type": self.kind, "content-length": str(len(self.body))}
        if self.wire.id_header:
            found[self.wire.id_header] = new_id("req_")
        if self.retry_after is not None:
            found["retry-after"] = f"{self.retry_after:g}"
        return found


def _refusal(wire: FakeWire, refusal: RefusedError, retry_after: float | None = None) -> _Reply:
    if isinstance(refusal.body, str):
        return _Reply(refusal.status, refusal.body.encode(), wire, "text/plain", retry_after)
    return _Reply(refusal.status, encoded(refusal.body), wire, retry_after=retry_after)


def extractive_server(*, port: int = 0, journal_file: Path | None = None) -> FakeServer:
    """Make a server whose one model sums up the prompt by quoting it; it asks for no key and says that it is no LLM."""
    return FakeServer(
        [lambda call: Rule(text=extractive.answer(call.prompt))],
        models=[extractive.MODEL],
        labels={extractive.MODEL: extractive.LABEL},
        needs_key=False,
        port=port,
        journal_file=journal_file,
    )


def _wire_of(path: str, headers: Mapping[str, str]) -> FakeWire:
    """Tell whose client this is: by the path, and on paths that two providers share by Anthropic's header."""
    if path in _ANSWERS:
        return _WIRES[_ANSWERS[path]]
    if path.startswith("/v1/"):
        theirs = "anthropic-version" in headers or "x-api-key" in headers
        return _WIRES["anthropic" if theirs else "openai"]
    return _WIRES["ollama"]


def _no_such_path(wire: FakeWire, method: str, path: str) -> RefusedError:
    if wire.name == "ollama":
        return RefusedError(404, "404 page not found")
    return wire.error(404, f"Invalid URL ({method} {path})" if wire.name == "openai" else "Not Found")


def _no_such_method(wire: FakeWire, method: str, path: str) -> RefusedError:
    if wire.name == "ollama":
        return RefusedError(405, "405 method not allowed")
    told = f"Not allowed to {method} on {path}." if wire.name == "openai" else "Method Not Allowed"
    return wire.error(405, told, "method_not_supported" if wire.name == "openai" else None)


def _json(text: str) -> Any:
    """Read JSON; what is none stays a text, which no wire takes for a body."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
