"""Child processes that end with the process that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def die_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """Give a ``preexec_fn`` by which the kernel ends a child when we die, however that happens; only Linux can.

    The kernel means the thread that starts the child, so that thread must live as long as the process.
    """
    if sys.platform != "linux":
        return None
    libc, parent = ctypes.CDLL(None), os.getpid()

    def arrange() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, int(number))
        # We may have died before the call, and then no signal comes.
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    return arrange
