"""Ask a server over its socket whether it serves, and read what its log says if not."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_TIMEOUT_S = 2.0
_PROTOCOL_3 = 196608


def answers(name: str, path: Path) -> bool:
    """Say whether ``postgres`` or ``redis`` serves requests at the socket ``path``."""
    return _postgres_answers(path) if name == "postgres" else _redis_answers(path)


def log_tail(path: Path, lines: int = 15) -> str:
    """Read the last lines of a log; empty if there is none."""
    with contextlib.suppress(OSError), path.open("rb") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - 8192))
        return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
    return ""


def _postgres_answers(path: Path) -> bool:
    """Log in: a server that is still starting accepts the connection and then answers with an error."""
    options = b"user\0loomq\0database\0loomq\0application_name\0loomq probe\0\0"
    greeting = struct.pack("!ii", len(options) + 8, _PROTOCOL_3) + options
    # R is AuthenticationOk, E an error; X says good-bye.
    return _ask(path, greeting, b"R", farewell=b"X\0\0\0\x04")


def _redis_answers(path: Path) -> bool:
    return _ask(path, b"PING\r\n", b"+PONG")


def _ask(path: Path, request: bytes, expected: bytes, farewell: bytes = b"") -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_TIMEOUT_S)
        connection.connect(os.fspath(path))
        connection.sendall(request)
        served = connection.recv(len(expected)) == expected
        if served:
            connection.sendall(farewell)
        return served
    return False
