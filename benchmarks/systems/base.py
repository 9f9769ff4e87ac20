"""What every compared system can do."""

from __future__ import annotations

import os
import signal
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.harness import Node

LINKS = 50
WIDTH = 100


class System(ABC):
    """A system with its worker node at work. Each call hands work in and returns; the last stage stamps each run."""

    name: ClassVar[str]
    #: Which kinds of work it has, of those below.
    kinds: ClassVar[frozenset[str]] = frozenset({"diamond", "fan", "chain", "noop"})
    #: Which part of a round's work it is given, if it would take too long otherwise.
    share: ClassVar[float] = 1.0
    node: Node | None = None

    @abstractmethod
    def hand_in(self, kind: str, runs: Sequence[str]) -> None:
        """Hand in runs of one kind: ``diamond``, ``fan``, ``chain`` or ``noop``."""

    def hand_in_many(self, kind: str, runs: Sequence[str]) -> None:
        """Hand in many at once, by the system's own way for that."""
        self.hand_in(kind, runs)

    def settle(self) -> None:  # noqa: B027  (most have nothing to wait for)
        """Wait until what follows the last stamp is over."""

    def roots(self) -> list[int]:
        """Name the processes whose time counts, besides this one's and the servers'."""
        return [self.node.process.pid] if self.node else []

    def check(self) -> None:
        """Find out whether the node still runs.

        Raises:
            RuntimeError: It has ended; the error quotes its log.
        """
        if self.node is not None and self.node.process.poll() is not None:
            raise RuntimeError(f"{self.name}: the node ended\n{self.node.log.read_text()[-3000:]}")

    def hold(self) -> None:
        """Stop the node, so that what is handed in waits."""
        if self.node is not None:
            os.killpg(self.node.process.pid, signal.SIGSTOP)

    def let_go(self) -> None:
        """Let the node go on."""
        if self.node is not None:
            os.killpg(self.node.process.pid, signal.SIGCONT)

    def close(self) -> None:
        """End it."""
        if self.node is not None:
            self.let_go()
            self.node.process.terminate()
            self.node.stop()
