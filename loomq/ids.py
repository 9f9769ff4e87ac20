"""Ids that sort by time: UUID version 7 (RFC 9562), so that tables can be partitioned by id."""

from __future__ import annotations

import os
import time
from uuid import UUID

_VERSION_AND_VARIANT = (0x7 << 76) | (0b10 << 62)


def uuid7() -> UUID:
    """Make a new id: 48 bits of milliseconds since 1970, then 74 random bits.

    The standard library has ``uuid.uuid7`` from Python 3.14 on; this one serves the versions before it.
    """
    milliseconds = time.time_ns() // 1_000_000
    noise = int.from_bytes(os.urandom(10), "big")
    high, low = noise >> 68, noise & ((1 << 62) - 1)
    return UUID(int=(milliseconds << 80) | _VERSION_AND_VARIANT | (high << 64) | low)
