"""The connections against servers that mean no good: endless, huge, compressed, redirecting, or not HTTP at all."""

from __future__ import annotations

import asyncio
import gzip
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from loomq.errors import LLMAnswerError, LLMError, LLMUnavailableError
from loomq.llm.base import LLMMessage, LLMRequest
from loomq.llm.endpoint import Endpoint, Wire
from loomq.llm.http import MAX_RESPONSE_BYTES, HttpPool
from loomq.llm.ollama import OllamaBackend
from loomq.testing import fake_llm


class Anything(Wire):
    """A body that we take whatever is in it."""


@contextmanager
def raw_server(answer: Callable[[socket.socket], None]) -> Iterator[tuple[str, list[bytes]]]:
    """Answer every connection with a function; gives the address and what was received."""
    listener = socket.create_server(("127.0.0.1", 0))
    received: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(10)
                received.append(connection.recv(65536))
                try:
                    answer(connection)
                except OSError:
                    continue

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", received
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)
        assert not thread.is_alive()


def call(url: str, timeout_s: float = 5.0) -> Anything:
    async def run() -> Anything:
        pool = HttpPool()
        try:
            return await Endpoint(pool, "X", url).get("/x", Anything, timeout_s)
        finally:
            await pool.aclose()

    return asyncio.run(run())


def sending(head: str, *parts: bytes) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        connection.sendall(f"HTTP/1.1 {head}\r\n\r\n".encode())
        for part in parts:
            connection.sendall(part)

    return answer


def test_a_response_within_the_limit_is_read():
    body = b'{"a": "' + b"x" * (MAX_RESPONSE_BYTES - 9) + b'"}'
    with raw_server(sending(f"200 OK\r\ncontent-length: {len(body)}", body)) as (url, _):
        assert call(url) == Anything()


def test_a_response_that_does_not_end_is_stopped_at_the_limit():
    block = b"x" * 65536
    sent = 0

    def flood(connection: socket.socket) -> None:
        nonlocal sent
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(10_000):
            connection.sendall(block)
            sent += len(block)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with raw_server(flood) as (url, _), pytest.raises(LLMError, match="larger than 8 MB") as caught:
        call(url)
    assert not caught.value.retryable
    assert sent < 4 * MAX_RESPONSE_BYTES
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KB


def test_a_compressed_response_is_not_unpacked():
    bomb = gzip.compress(b"\0" * 50_000_000)
    head = f"200 OK\r\ncontent-encoding: gzip\r\ncontent-length: {len(bomb)}"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with raw_server(sending(head, bomb)) as (url, _), pytest.raises(LLMError, match="compressed"):
        call(url)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_a_response_that_comes_a_byte_at_a_time_is_too_late():
    stop = threading.Event()

    def drip(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        while not stop.wait(0.05):
            connection.sendall(b" ")

    with raw_server(drip) as (url, _):
        with pytest.raises(LLMUnavailableError, match=r"within 0\.5 s"):
            call(url, 0.5)
        stop.set()


def test_a_redirect_is_not_followed():
    with raw_server(sending("200 OK\r\ncontent-length: 2", b"{}")) as (inner, reached):
        head = f"302 Found\r\nlocation: {inner}/secret\r\ncontent-length: 0"
        with raw_server(sending(head)) as (url, _), pytest.raises(LLMError, match="302") as caught:
            call(url)
        assert not reached
    assert "redirects are not followed" in caught.value.hint


def test_cookies_are_not_kept():
    head = "200 OK\r\nset-cookie: a=b; Path=/\r\ncontent-length: 2\r\nconnection: close"

    async def twice(url: str) -> None:
        pool = HttpPool()
        for _ in range(2):
            await Endpoint(pool, "X", url).get("/x", Anything, 5)
        await pool.aclose()

    with raw_server(sending(head, b"{}")) as (url, received):
        asyncio.run(twice(url))
    assert len(received) == 2
    assert b"cookie" not in received[1].lower()


def test_a_proxy_of_the_environment_is_not_used(monkeypatch):
    fine, broken = sending("200 OK\r\ncontent-length: 2", b"{}"), sending("500 no\r\ncontent-length: 0")
    with raw_server(fine) as (url, _), raw_server(broken) as (proxy, reached):
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy)
        assert call(url) == Anything()
        assert not reached


@pytest.mark.parametrize(
    "answer", [sending("nonsense"), lambda connection: connection.sendall(b"\0\1\2SSH-2.0\r\n\r\n")]
)
def test_what_is_no_http_is_out_of_reach(answer):
    with raw_server(answer) as (url, _), pytest.raises(LLMUnavailableError):
        call(url)


def test_an_error_page_is_quoted_and_not_parsed():
    page = b"<html>Bad Gateway</html>"
    answer = sending(f"502 Bad Gateway\r\ncontent-length: {len(page)}", page)
    with raw_server(answer) as (url, _), pytest.raises(LLMUnavailableError, match="502: <html>Bad Gateway"):
        call(url)


def test_a_server_may_forbid_another_try():
    head = "500 no\r\nx-should-retry: false\r\ncontent-length: 0"
    with raw_server(sending(head)) as (url, _), pytest.raises(LLMUnavailableError) as caught:
        call(url)
    assert not caught.value.retryable


@pytest.mark.parametrize("block", [b'data: {"a": 1}\n\n' * 4096, b"data: " + b"x" * 65536])
def test_a_stream_that_does_not_end_is_stopped_at_the_limit(block):
    """Of many events, and of one that never ends."""
    sent, heard = 0, 0

    def flood(connection: socket.socket) -> None:
        nonlocal sent
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(10_000):
            connection.sendall(block)
            sent += len(block)

    def hear(_: dict[str, object]) -> None:
        nonlocal heard
        heard += 1

    async def run(url: str) -> None:
        pool = HttpPool()
        try:
            await Endpoint(pool, "X", url).stream("/x", {}, hear, 20)
        finally:
            await pool.aclose()

    with raw_server(flood) as (url, _), pytest.raises(LLMError, match="larger than 8 MB"):
        asyncio.run(run(url))
    assert sent < 4 * MAX_RESPONSE_BYTES
    assert (heard > 1000) == block.endswith(b"\n")


@pytest.mark.parametrize("event", ["[1]", "7", '{"type": "message_start", "message": 7}', "{", '{"choices": [7]}'])
def test_an_event_of_another_shape_is_malformed_and_no_crash(event):
    from loomq.llm import openai

    stream = openai._Stream(lambda _: None)

    async def run(url: str) -> None:
        pool = HttpPool()
        try:
            await Endpoint(pool, "X", url).stream("/x", {}, stream.hear, 5)
        finally:
            await pool.aclose()

    body = f"data: {event}\n\n".encode()
    with raw_server(sending(f"200 OK\r\ncontent-length: {len(body)}", body)) as (url, _):
        if event.startswith('{"type"'):
            asyncio.run(run(url))
            assert not stream.is_over
        else:
            with pytest.raises(LLMAnswerError, match="malformed"):
                asyncio.run(run(url))


def test_many_calls_at_once_have_connections_of_their_own_which_are_used_again():
    async def run(url: str) -> None:
        pool = HttpPool()
        endpoint = Endpoint(pool, "X", url, headers={"authorization": "Bearer k"})
        for _ in range(3):
            await asyncio.gather(*(endpoint.get("/v1/models", Anything, 5) for _ in range(20)))
        await pool.aclose()

    with fake_llm() as server:
        asyncio.run(run(server.url))
        assert len(server.journal) == 60
        assert server._http.accepted <= 20


def test_a_connection_that_a_call_was_broken_off_on_is_not_used_again():
    """A call that is cancelled while it gets its connection can leave that one taken for ever."""

    async def run(url: str) -> list[object]:
        pool = HttpPool()
        backend = OllamaBackend(pool, "fake-small", base_url=url)

        async def many(count: int, timeout_s: Callable[[int], float]) -> list[object]:
            hello = (LLMMessage(role="user", content="hi"),)
            asked = (LLMRequest(messages=hello, max_output_tokens=5, timeout_s=timeout_s(n)) for n in range(count))
            found = await asyncio.gather(*(backend.complete(one) for one in asked), return_exceptions=True)
            return [getattr(one, "content", one) for one in found]

        for _ in range(5):
            assert "ok" not in await many(40, lambda number: 0.002 + 0.003 * number)
        found = await many(80, lambda _: 10)
        await pool.aclose()
        return found

    with fake_llm([{"text": "ok", "delay_seconds": 0.3, "times": 200}, {"text": "ok"}]) as server:
        found = asyncio.run(run(server.url))
    assert found == ["ok"] * 80
