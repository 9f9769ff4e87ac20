"""The one place that speaks HTTP to providers: a pool of connections an event loop, with limits on everything."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from loomq import __version__
from loomq.errors import LLMError, LLMUnavailableError
from loomq.redaction import redacted

if TYPE_CHECKING:
    from collections.abc import Mapping

    import httpx

MAX_RESPONSE_BYTES = 8 * 1024 * 1024
MAX_CONNECTIONS = 100
MAX_IDLE_CONNECTIONS = 20
CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Response:
    """What came back: the status, the headers by lower-case name, and the whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpPool:
    """The connections of one process.

    Proxies of the environment are not used, redirects are not followed, cookies are not kept, and a compressed
    response is refused: none was asked for, and a small one could unpack to gigabytes.
    """

    def __init__(self) -> None:
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = WeakKeyDictionary()

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
    ) -> Response:
        """Make one request and read the whole response.

        Args:
            timeout_s: From the first byte sent to the last one read.
            provider: Who is called, for error texts.
            secrets: What error texts must not hold.

        Raises:
            LLMUnavailableError: Nobody answered, or not to the end, or not in time.
            LLMError: The response is too large or compressed, or the address is none.
        """
        import httpx

        try:
            async with asyncio.timeout(timeout_s) as limit:
                return await self._exchange(method, url, headers, body, timeout_s, provider)
        except TimeoutError:
            if not limit.expired():
                raise
            raise LLMUnavailableError(f"{provider} did not answer within {timeout_s:g} s") from None
        except httpx.TimeoutException as error:
            raise LLMUnavailableError(f"{provider} did not answer in time ({type(error).__name__})") from None
        except (httpx.UnsupportedProtocol, httpx.InvalidURL, httpx.LocalProtocolError) as error:
            # Its text may quote a header, and so the key.
            raise LLMError(f"the request to {provider} could not be made ({type(error).__name__})") from None
        except httpx.HTTPError as error:
            told = redacted(str(error), *secrets) or "the connection was lost"
            raise LLMUnavailableError(
                f"{provider} at {_origin(url)} is out of reach ({type(error).__name__}: {told})"
            ) from None

    async def _exchange(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        timeout_s: float,
        provider: str,
    ) -> Response:
        import httpx

        timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S))
        request = self._client().stream(method, url, headers=dict(headers), content=body, timeout=timeout)
        async with request as response:
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise LLMError(f"{provider} sent a compressed response, which was not asked for")
            received = bytearray()
            async for part in response.aiter_raw():
                received += part
                if len(received) > MAX_RESPONSE_BYTES:
                    raise LLMError(f"the response of {provider} is larger than {MAX_RESPONSE_BYTES // 1024**2} MB")
            return Response(response.status_code, dict(response.headers), bytes(received))

    def _client(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            self._clients[loop] = _new_client()
        return self._clients[loop]

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()


def _new_client() -> httpx.AsyncClient:
    import httpx

    headers: dict[str, Any] = {
        "accept": "application/json",
        "accept-encoding": "identity",
        "user-agent": f"loomq/{__version__}",
    }
    return httpx.AsyncClient(
        headers=headers,
        limits=httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_IDLE_CONNECTIONS),
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        trust_env=False,
        follow_redirects=False,
    )


def _origin(url: str) -> str:
    return "/".join(url.split("/", 3)[:3])
