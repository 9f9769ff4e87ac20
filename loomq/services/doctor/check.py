"""One check of the doctor's, all of them together, and how those that may take long are made side by side."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from loomq.errors import LoomqError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SCHEMA_VERSION = 1
PATIENCE_S = 1.6  # from the first look, for whatever answers over a socket: all of it is asked at once
_LEAST_S = 0.6  # for each of them to answer in, once its libraries are there
_BUSY_S = 10.0
Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Args:
        status: ``warn`` does not stop goals from being run, ``fail`` does.
        fix: The command or the edit that repairs it; empty when nothing has to be.
    """

    name: str
    status: Status
    message: str
    fix: str = ""

    def to_json(self) -> dict[str, Any]:
        """Describe the check."""
        return {"name": self.name, "status": self.status, "message": self.message, "fix": self.fix or None}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All checks, in the order in which one would repair."""

    checks: tuple[Check, ...]
    took_ms: int

    @property
    def is_healthy(self) -> bool:
        """Whether nothing fails; warnings do not count."""
        return all(check.status != "fail" for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Describe the diagnosis."""
        return {
            "schema_version": SCHEMA_VERSION,
            "healthy": self.is_healthy,
            "took_ms": self.took_ms,
            "checks": [check.to_json() for check in self.checks],
        }


class Asked:
    """Checks that are made in a thread of their own, which is left behind if it does not come to an end.

    Args:
        fix: What helps if it does not.
    """

    def __init__(self, name: str, work: Callable[[], Iterable[Check]], *, fix: str) -> None:
        self._name = name
        self._fix = fix
        self._prepared = threading.Event()
        self._prepared_at = 0.0
        self._found: list[Check] = []
        self._work = work
        self._thread = threading.Thread(target=self._run, name=f"doctor-{name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            checks = self._work()
            self._prepared_at = time.monotonic()
            self._prepared.set()
            for check in checks:
                self._found.append(check)
        except LoomqError as error:
            self._found.append(Check(self._name, "fail", error.message, error.hint or ""))
        except Exception as error:  # noqa: BLE001  (one check that breaks must not hide the others)
            self._found.append(Check(self._name, "fail", f"{type(error).__name__}: {error}", self._fix))
        finally:
            self._prepared.set()

    def answer(self, until: float) -> list[Check]:
        """Give what was found by a moment of the monotonic clock."""
        # A machine that is busy importing is no service that does not answer.
        if self._prepared.wait(_BUSY_S):
            until = max(until, self._prepared_at + _LEAST_S)
        self._thread.join(max(0.0, until - time.monotonic()))
        found = list(self._found)
        if self._thread.is_alive():
            found.append(Check(self._name, "fail", "no answer in time", self._fix))
        return found
