"""One event loop a process, in a thread of its own, alive as long as the process, so that connections are kept."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from loomq.errors import SoftDeadline

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")

_MAX_THREADS = 128  # for tools that block; made when they are needed
_MAX_CLERKS = 32
_PATIENCE_S = 2.0  # for a cancelled coroutine to give way


class EventLoop:
    """Run coroutines from synchronous code, with a deadline that cancels them.

    The thread starts on first use, so never before a fork; a forked child starts its own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._clerks: concurrent.futures.Executor | None = None
        self._pid = 0

    async def aside(self, work: Callable[[], T]) -> T:
        """Do something short that blocks, a database call, in a thread that no tool can keep busy; to be awaited."""
        return await asyncio.get_running_loop().run_in_executor(self._clerks, work)

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float) -> T:
        """Run a coroutine to its end and give its result.

        A coroutine that blocks its loop cannot be cancelled: that loop is then left alone, and the next work gets
        another one.

        Raises:
            SoftDeadline: It took longer than ``timeout_s``.
        """
        loop = self._running()
        future = asyncio.run_coroutine_threadsafe(_within(work, timeout_s), loop)
        try:
            return future.result(timeout_s + _PATIENCE_S)
        except concurrent.futures.TimeoutError:
            if future.done():  # the work's own TimeoutError, which is the same class
                raise
            self._abandon(loop)
            raise SoftDeadline(f"blocked the event loop beyond its {timeout_s:g} s") from None
        except BaseException:
            future.cancel()  # a signal in this thread must not leave the work running
            raise

    def _abandon(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            if self._loop is loop:
                self._loop = None

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            is_alive = self._thread is not None and self._thread.is_alive()
            if self._loop is None or self._pid != os.getpid() or not is_alive:
                self._loop, self._pid = asyncio.new_event_loop(), os.getpid()
                self._loop.set_default_executor(_threads("loomq-aside", _MAX_THREADS))
                self._clerks = _threads("loomq-clerk", _MAX_CLERKS)
                self._thread = threading.Thread(target=self._loop.run_forever, name="loomq-loop", daemon=True)
                self._thread.start()
            return self._loop


def _threads(name: str, most: int) -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(most, thread_name_prefix=name)


async def _within(work: Coroutine[Any, Any, T], timeout_s: float) -> T:
    try:
        async with asyncio.timeout(timeout_s) as limit:
            return await work
    except TimeoutError as error:
        if limit.expired():
            raise SoftDeadline(f"cancelled after {timeout_s:g} s") from error
        raise
