"""Receive what the last stages stamp."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from benchmarks.work import SOCKET

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

_ROOM = 8 << 20
_LOOK_S = 0.5


class Stamps:
    """A socket that every process of a benchmark may write to.

    Args:
        folder: Where its file is made.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "stamps"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _ROOM)
        self._socket.bind(str(self.path))
        self.path.chmod(0o777)
        self._socket.settimeout(_LOOK_S)
        self._found: dict[str, int] = {}
        os.environ[SOCKET] = str(self.path)

    def wait(self, runs: Collection[str], timeout_s: float, check: Callable[[], None]) -> dict[str, int]:
        """Wait until all of these runs are stamped; gives nanoseconds of the monotonic clock by run.

        Args:
            check: Called while nothing comes; raises if a system has ended.

        Raises:
            TimeoutError: They were not, in so many seconds.
        """
        until = time.monotonic() + timeout_s
        missing = set(runs) - self._found.keys()
        while missing:
            try:
                self._read()
            except TimeoutError:
                check()
            missing -= self._found.keys()
            if missing and time.monotonic() > until:
                raise TimeoutError(f"{len(missing)} of {len(runs)} runs did not end within {timeout_s:g} s")
        return {run: self._found.pop(run) for run in runs}

    def _read(self) -> None:
        run, at = self._socket.recv(256).decode().split()
        self._found.setdefault(run, int(at))

    def close(self) -> None:
        """Take the socket away."""
        self._socket.close()
        with suppress(FileNotFoundError):
            self.path.unlink()
