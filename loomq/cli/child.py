"""Run a command in the foreground as ``env`` and ``nice`` do: its signals and its exit code are the caller's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import click

from loomq.processes import die_with_parent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager
    from types import FrameType

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_child(command: Sequence[str], environment: Mapping[str, str], during: AbstractContextManager[object]) -> int:
    """Run a command to its end, passing signals on to it.

    Args:
        during: Entered when the command has been started, left when it has ended.

    Returns:
        Its exit code; 128 and the signal's number if a signal ended it, as in a shell.

    Raises:
        click.UsageError: It cannot be started.
    """
    passing = _Passing()
    # What is ignored, as under nohup, stays ignored in the child too.
    heard = [number for number in _PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, passing.on) for number in heard}
    try:
        process = _start(command, environment)
        passing.to(process)
        with during:
            code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 - code if code < 0 else code


def _start(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(  # noqa: S603  (the user's own command)
            list(command),
            env=dict(environment),
            # Without a terminal, who signals our whole group would reach the child twice.
            process_group=None if sys.__stdin__ and sys.__stdin__.isatty() else 0,
            preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509  (no thread runs yet)
        )
    except OSError as error:
        raise click.UsageError(f"{command[0]} cannot be started: {error.strerror}") from None


class _Passing:
    """Pass signals on to a process, also those that came while it was being started."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []

    def on(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  (the signature is signal's)
        if number == signal.SIGINT and _is_in_foreground():
            return  # the terminal has sent it to the child as well
        if self._process is None:
            self._early.append(number)
        else:
            self._process.send_signal(number)

    def to(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        for number in self._early:
            process.send_signal(number)


def _is_in_foreground() -> bool:
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:  # stdin is no terminal
        return False
