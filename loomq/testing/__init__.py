"""What people who build on loomq use in their own tests."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from loomq.testing.llm import fake_llm

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["fake_llm", "wait_until"]

T = TypeVar("T")


def wait_until(condition: Callable[[], T], what: str = "the condition", timeout_s: float = 30.0) -> T:
    """Call a condition until it gives something true, and give that.

    Args:
        what: Its name in the failure.

    Raises:
        AssertionError: It stayed false for ``timeout_s`` seconds.
    """
    until = time.monotonic() + timeout_s
    while not (found := condition()):
        if time.monotonic() > until:
            raise AssertionError(f"waited {timeout_s:g} s in vain for {what}")
        time.sleep(0.02)
    return found
