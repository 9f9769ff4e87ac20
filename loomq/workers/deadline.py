"""A stage's own deadlines in a forked child: soft by a timer signal, hard by a watchdog that needs no GIL."""

from __future__ import annotations

import faulthandler
import signal
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from loomq.errors import LeaseLost, LoomqSignal, SoftDeadline

if TYPE_CHECKING:
    from collections.abc import Iterator


_SLACK_S = 5.0

#: Tells a pool child that the goal of what it runs has ended; it arrives at any time, also between two stages.
INTERRUPTION = signal.SIGUSR2


def ignore_interruptions() -> None:
    """Let interruptions pass that come while this process runs no stage; unhandled they would end it."""
    signal.signal(INTERRUPTION, signal.SIG_IGN)


@contextmanager
def soft_deadline(timeout_s: float) -> Iterator[None]:
    """Raise ``SoftDeadline`` in the block when its time is up, and ``LeaseLost`` when it is interrupted.

    Only the main thread can be interrupted so; elsewhere (Celery's threads pool) the block runs on, and its late
    result is refused by its token.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    outer = _signals.are_heard  # by a task that runs this one
    try:
        _signals.take(timeout_s)
        yield
    finally:
        _signals.are_heard = outer  # before any call, in which a signal might be raised
        _signals.leave()


class _Signals:
    """The handlers of both signals; to set and to restore them for each of many small tasks is felt."""

    def __init__(self) -> None:
        self._kept = 0
        self._timeout_s = 0.0
        self.are_heard = False
        self._on_alarm, self._on_interruption = self._ring, self._interrupt
        self._before: tuple[Any, Any] | None = None  # the handlers that ours stand in for

    def _ring(self, *_: Any) -> None:
        if self.are_heard:
            _shield.strike(SoftDeadline(f"interrupted after {self._timeout_s:g} s"))

    def _interrupt(self, *_: Any) -> None:
        if self.are_heard:
            _shield.strike(LeaseLost("the goal has ended"))

    def take(self, timeout_s: float) -> None:
        """Let a task be interrupted."""
        self._timeout_s = timeout_s
        # A task before may have set a handler of its own, and left it.
        if self._before is None or signal.getsignal(signal.SIGALRM) is not self._on_alarm:
            self._install()
        self.are_heard = True
        signal.setitimer(signal.ITIMER_REAL, timeout_s)

    def _install(self) -> None:
        alarm, unheard = signal.signal(signal.SIGALRM, self._on_alarm), None
        if signal.getsignal(INTERRUPTION) == signal.SIG_IGN:
            unheard = signal.signal(INTERRUPTION, self._on_interruption)
        if self._before is None:
            self._before = (alarm, unheard)

    def leave(self) -> None:
        """Let nothing be interrupted any more."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._restore()
        hears = self._before is not None and self._before[1] is not None
        if hears and signal.getsignal(INTERRUPTION) is not self._on_interruption:  # the task has left its own
            signal.signal(INTERRUPTION, self._on_interruption)

    def _restore(self) -> None:
        """Put the handlers of before back, if nobody needs ours any more."""
        if self._before is None or self._kept or self.are_heard:
            return
        (alarm, unheard), self._before = self._before, None
        signal.signal(signal.SIGALRM, alarm)
        if unheard is not None:
            signal.signal(INTERRUPTION, unheard)

    @contextmanager
    def keep(self) -> Iterator[None]:
        """Let tasks in the block share the handlers, which do nothing between them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._kept += 1
        try:
            yield
        finally:
            self._kept -= 1
            self._restore()


_signals = _Signals()


class _Shield:
    """What is put off in the main thread: it is interrupted by signals, which know nothing of where it stands."""

    def __init__(self) -> None:
        self.depth = 0
        self.late: LoomqSignal | None = None

    def strike(self, interruption: LoomqSignal) -> None:
        """Raise an interruption, now or when the shield is off."""
        if self.depth:
            self.late = self.late or interruption
            return
        raise interruption


_shield = _Shield()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let the block come to its end before an interruption is raised: a query that is broken off costs its connection.

    For moments only: the hard deadline does not wait.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _shield.depth += 1
    try:
        yield
    finally:
        _shield.depth -= 1
        if not _shield.depth and _shield.late is not None:
            late, _shield.late = _shield.late, None
            raise late


@contextmanager
def hard_deadline(timeout_s: float, *, own_process: bool) -> Iterator[None]:
    """End this process when the block is still running after so long, with its stack on stderr.

    Args:
        timeout_s: Seconds.
        own_process: Whether this process exists for this one task, as a forked pool child does; otherwise nothing is
            ended, and the sweeper takes the stage back when its lease runs out.
    """
    if not own_process:
        yield
        return
    _watchdog.watch(timeout_s)
    try:
        yield
    finally:
        _watchdog.rest()


class _Watchdog:
    """The thread that ends the process: to start and to end one costs more than a small task."""

    def __init__(self) -> None:
        self._kept = 0
        self._until = 0.0

    def watch(self, timeout_s: float) -> None:
        """End the process after so long and at most a tenth longer."""
        slack_s = min(_SLACK_S, timeout_s / 10) if self._kept else 0.0
        until = time.monotonic() + timeout_s
        if not until <= self._until <= until + slack_s:
            self._until = until + slack_s
            faulthandler.dump_traceback_later(timeout_s + slack_s, exit=True, file=sys.__stderr__ or sys.stderr)

    def rest(self) -> None:
        """Watch no longer, unless it is kept: then the next task may do with the same thread."""
        if not self._kept:
            self._cancel()

    def _cancel(self, *_: Any) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._until = 0.0

    @contextmanager
    def keep(self) -> Iterator[None]:
        """Let tasks in the block share the thread, and those of the next block.

        Whoever waits for the next one for long is not ended: a timer calls the watchdog off before.
        """
        self._kept += 1
        try:
            yield
        finally:
            self._kept -= 1
            if self._until:
                left_s = self._until - time.monotonic() - _SLACK_S / 2
                if left_s > 0 and threading.current_thread() is threading.main_thread():
                    signal.signal(signal.SIGALRM, self._cancel)
                    signal.setitimer(signal.ITIMER_REAL, left_s)
                else:
                    self._cancel()


_watchdog = _Watchdog()


@contextmanager
def shared_deadlines() -> Iterator[None]:
    """Let tasks in the block share what their deadlines need: to set it up anew for each small task is felt."""
    with _watchdog.keep(), _signals.keep():
        yield
