"""The server: one loopback address for all three wires, with the rules' faults done to real connections."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

from loomq.llm.fake_server import extractive, planning
from loomq.llm.fake_server.journal import Entry, Journal, without_keys
from loomq.llm.fake_server.replies import Request, json_or_text, refused, reply_to, wire_of
from loomq.llm.fake_server.rules import DEFAULT_MODELS, Rule, Rules
from loomq.llm.fake_server.wire import Offer, RefusedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from loomq.llm.fake_server.replies import Reply
    from loomq.llm.fake_server.rules import Answerer
    from loomq.llm.fake_server.wire import FakeWire

HOST = "127.0.0.1"
MAX_REQUEST_BYTES = 16 * 1024 * 1024
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
    wbufsize = -1  # one write a response, or a piece of one
    server: _Listener

    def log_message(self, *_: Any) -> None:
        """Say nothing; the journal knows."""

    def _serve(self) -> None:
        """Find the reply, write the journal, and only then let the client see it."""
        started = time.monotonic()
        at = datetime.now(UTC).isoformat()
        fake = self.server.fake
        request = Request(self.command, self.path, {name.lower(): value for name, value in self.headers.items()})
        wire = wire_of(request)
        try:
            request = replace(request, raw=self._read(wire, request.headers))
            reply = reply_to(request, fake.offer, fake.rules)
        except RefusedError as refusal:
            reply = refused(wire, refusal)
        if reply.delay_s:
            fake.stopping.wait(reply.delay_s)
        shown, text = without_keys(request.headers, request.raw.decode("utf-8", "replace"))
        seconds = round(time.monotonic() - started, 4)
        body = json_or_text(text) if text else None
        fake.journal.add(
            Entry(
                at, wire.name, self.command, self.path, shown, body, reply.status, reply.rule, reply.fault, seconds
            )
        )  # fmt: skip
        if reply.status is None:
            self._hang()
        else:
            self._send(reply.status, reply)

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

    def _hang(self) -> None:
        """Hold the connection until the client or the server gives up."""
        self.close_connection = True
        while not self.server.fake.stopping.wait(_LOOK_EVERY_S):
            readable, _, _ = select.select([self.connection], [], [], 0)
            if readable and not self.connection.recv(1, socket.MSG_PEEK):
                return

    def _send(self, status: int, reply: Reply) -> None:
        self.send_response(status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.is_stream:
            self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        with contextlib.suppress(OSError):  # who asked may be gone
            is_whole = self._send_pieces(reply)
            if reply.is_stream and is_whole:
                self.wfile.write(b"0\r\n\r\n")
            self.wfile.flush()
            self.close_connection |= not is_whole

    def _send_pieces(self, reply: Reply) -> bool:
        """Send the body; says whether that is all of it."""
        for number, piece in enumerate(reply.pieces):
            if number and self.server.fake.stopping.wait(reply.piece_delay_s):
                return False
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if reply.is_stream else piece)
            self.wfile.flush()
        return not reply.is_cut


def extractive_server(*, port: int = 0, journal_file: Path | None = None) -> FakeServer:
    """Make a server whose one model sums up the prompt by quoting it; it asks for no key and says that it is no LLM."""
    return FakeServer(
        [lambda call: Rule(text=planning.answer(call) or extractive.answer(call.prompt))],
        models=[extractive.MODEL],
        labels={extractive.MODEL: extractive.LABEL},
        needs_key=False,
        port=port,
        journal_file=journal_file,
    )
