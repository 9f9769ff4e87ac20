"""A relay before Postgres that can swallow answers: what was asked is done, and whoever asked sees a broken connection.

``python -m tests.chaos.proxy SOCKET TARGET LOG``; each SIGUSR1 adds one answer to swallow.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

_CALLS = (b"loomq_submit", b"loomq_claim", b"loomq_complete", b"loomq_turn", b"loomq_fail", b"loomq_take")
_WRITES = (*_CALLS, b"UPDATE stages")
_CHUNK = 1 << 16


class Relay:
    """Relay connections from one socket to another.

    Args:
        log: Gets a line for each answer that was swallowed.
    """

    def __init__(self, target: str, log: Path) -> None:
        self._target = target
        self._log = log
        self._to_swallow = 0

    def arm(self) -> None:
        """Swallow one more answer."""
        self._to_swallow += 1

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay one connection until either side closes it."""
        asked: list[bytes] = []
        try:
            back, forth = await asyncio.open_unix_connection(self._target)
        except OSError:
            writer.close()
            return
        pumps = [
            asyncio.ensure_future(self._requests(reader, forth, asked)),
            asyncio.ensure_future(self._answers(back, writer, asked)),
        ]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        for side in (writer, forth):
            with suppress(OSError):
                side.close()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: list[bytes]) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                asked[:] = [each for each in _WRITES if each in data]
                writer.write(data)
                await writer.drain()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: list[bytes]) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                # The server answers after its commit: with the first bytes here, the statement has taken effect.
                if asked and self._to_swallow:
                    self._to_swallow -= 1
                    with self._log.open("a") as out:
                        out.write(f"{asked[0].decode()} {time.time():.3f}\n")
                    return
                writer.write(data)
                await writer.drain()


async def _main(socket: str, target: str, log: Path) -> None:
    relay = Relay(target, log)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, relay.arm)
    server = await asyncio.start_unix_server(relay.serve, socket)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
