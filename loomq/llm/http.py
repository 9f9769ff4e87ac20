"""The one place that speaks HTTP to providers: connections that are kept, an event loop each, limits on everything.

A call has a connection for itself: httpx's own pool looks at all of its connections, several times a request, and with
a hundred of them that took half of a process's time (``benchmarks/llm.py``).
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from loomq import __version__
from loomq.errors import LLMError, LLMUnavailableError
from loomq.redaction import redacted

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable, Mapping

    import httpx

MAX_RESPONSE_BYTES = 8 * 1024 * 1024
MAX_CONNECTIONS = 256
MAX_IDLE_CONNECTIONS = 100  # of one provider: as many tasks come back for their next call
KEEPALIVE_S = 60.0
CONNECT_TIMEOUT_S = 10.0
_HEADERS = {
    "accept": "application/json",
    "accept-encoding": "identity",
    "user-agent": f"loomq/{__version__}",
}


@dataclass(frozen=True, slots=True)
class Response:
    """What came back: the status, the headers by lower-case name, and the whole body unless it was streamed."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpPool:
    """The connections of one process.

    Proxies of the environment are not used, redirects are not followed, cookies are not kept, and a compressed
    response is refused: none was asked for, and a small one could unpack to gigabytes.
    """

    def __init__(self) -> None:
        self._of_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _Lines] = WeakKeyDictionary()

    async def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None,
        timeout_s: float,
        provider: str,
        secrets: tuple[str, ...] = (),
        on_line: Callable[[bytes], None] | None = None,
    ) -> Response:
        """Make one request and read the whole response.

        Args:
            timeout_s: From the first byte sent to the last one read.
            on_line: Gets each line of a successful response when it comes, in place of the body.
            provider: Who is called, for error texts.
            secrets: What error texts must not hold.

        Raises:
            LLMUnavailableError: Nobody answered, or not to the end, or not in time.
            LLMError: The response is too large or compressed, or the address is none.
        """
        import httpx

        try:
            async with asyncio.timeout(timeout_s) as limit:
                return await self._exchange(method, url, headers, body, timeout_s, provider, on_line)
        except TimeoutError:
            if not limit.expired():
                raise
            raise LLMUnavailableError(f"{provider} did not answer within {timeout_s:g} s", kind="timeout") from None
        except httpx.TimeoutException as error:
            told = f"{provider} did not answer in time ({type(error).__name__})"
            raise LLMUnavailableError(told, kind="timeout") from None
        except (httpx.UnsupportedProtocol, httpx.InvalidURL, httpx.LocalProtocolError) as error:
            # Its text may quote a header, and so the key.
            raise LLMError(f"the request to {provider} could not be made ({type(error).__name__})") from None
        except httpx.HTTPError as error:
            told = redacted(str(error), *secrets) or "the connection was lost"
            raise LLMUnavailableError(
                f"{provider} at {_origin(url)} is out of reach ({type(error).__name__}: {told})", kind="connection"
            ) from None

    async def _exchange(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        timeout_s: float,
        provider: str,
        on_line: Callable[[bytes], None] | None,
    ) -> Response:
        import httpx

        timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S))
        request = httpx.Request(
            method, url, headers={**_HEADERS, **headers}, content=body, extensions={"timeout": timeout.as_dict()}
        )
        if request.url.scheme not in ("http", "https"):
            raise httpx.UnsupportedProtocol(f"{request.url.scheme} is not spoken here", request=request)
        async with self._lines().of(_origin(url)) as line:
            response = await line.handle_async_request(request)
            try:
                return await _read(response, provider, on_line)
            finally:
                await response.aclose()

    def _lines(self) -> _Lines:
        loop = asyncio.get_running_loop()
        if loop not in self._of_loops:
            self._of_loops[loop] = _Lines()
        return self._of_loops[loop]

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""
        lines = self._of_loops.pop(asyncio.get_running_loop(), None)
        if lines is not None:
            await lines.aclose()


class _Lines:
    """The connections of one event loop, the idle ones by the server that they lead to."""

    def __init__(self) -> None:
        self._idle: dict[str, list[httpx.AsyncHTTPTransport]] = {}
        self._places = asyncio.Semaphore(MAX_CONNECTIONS)
        self._closing: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def of(self, origin: str) -> AsyncIterator[httpx.AsyncHTTPTransport]:
        """Lend a connection to a server, the one that was used last."""
        idle = self._idle.setdefault(origin, [])
        async with self._places:
            line = idle.pop() if idle else _new_line()
            try:
                yield line
            except BaseException:
                self._leave(line)  # a call that was broken off may have left it in any state
                raise
            if len(idle) < MAX_IDLE_CONNECTIONS:
                idle.append(line)
            else:
                await line.aclose()

    def _leave(self, line: httpx.AsyncHTTPTransport) -> None:
        """Close a connection beside what goes on, which may be the end of a cancelled task."""
        closing = asyncio.get_running_loop().create_task(line.aclose())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def aclose(self) -> None:
        """Close those that are idle; nobody must use one any more."""
        await asyncio.gather(*self._closing, return_exceptions=True)
        for lines in self._idle.values():
            while lines:
                await lines.pop().aclose()


async def _read(response: httpx.Response, provider: str, on_line: Callable[[bytes], None] | None) -> Response:
    """Read a response to its end, or hand its lines on."""
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise LLMError(f"{provider} sent a compressed response, which was not asked for")
    received, size = bytearray(), 0
    hear = on_line if response.status_code == 200 else None  # noqa: PLR2004
    async for part in response.aiter_raw():
        size += len(part)
        if size > MAX_RESPONSE_BYTES:
            raise LLMError(f"the response of {provider} is larger than {MAX_RESPONSE_BYTES // 1024**2} MB")
        received += part
        if hear is not None and b"\n" in part:
            *lines, received[:] = received.split(b"\n")
            for line in lines:
                hear(bytes(line).rstrip(b"\r"))
    if hear is not None and received:
        hear(bytes(received).rstrip(b"\r"))
        received.clear()
    return Response(response.status_code, dict(response.headers), bytes(received))


def _new_line() -> httpx.AsyncHTTPTransport:
    import httpx

    limits = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=KEEPALIVE_S)
    return httpx.AsyncHTTPTransport(verify=_certificates(), trust_env=False, limits=limits)


@lru_cache(maxsize=1)
def _certificates() -> ssl.SSLContext:
    """Read the certificates that servers are known by, once: that takes some 20 ms."""
    import httpx

    return httpx.create_ssl_context(trust_env=False)


def _origin(url: str) -> str:
    return "/".join(url.split("/", 3)[:3])
