"""Hand goals in from a process of its own: ``python -m tests.chaos.client``, requests on stdin, answers on stdout.

What is refused is handed in again under the same idempotency key until it is accepted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_AGAIN_S = 0.1
_CHUNK = 1 << 16


class Client:
    """The storm's side of that process.

    Args:
        environment: Names the project, with its broker and its database.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.goal_ids: dict[int, str] = {}
        self.took_ms: list[float] = []
        self.refused = 0
        self.asked = 0
        self._rest = b""
        self._log = folder / "logs" / "client.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.client"],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)

    def ask(self, shape: str, context: dict[str, Any], key: str) -> None:
        """Hand in goal ``context["n"]``."""
        assert self._process.stdin is not None
        line = json.dumps({"shape": shape, "context": context, "key": key})
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()
        self.asked += 1

    def look(self) -> None:
        """Read the answers that have come."""
        assert self._process.stdout is not None
        *lines, self._rest = (self._rest + (self._process.stdout.read() or b"")).split(b"\n")
        for line in lines:
            answer = json.loads(line)
            self.goal_ids[answer["n"]] = answer["goal_id"]
            self.took_ms.append(answer["took_ms"])
            self.refused += answer["refused"]
        if self._process.poll() is not None:
            raise RuntimeError(f"the client ended with {self._process.returncode}: {self._log.read_text()}")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def _main() -> None:
    from loomq.errors import EnvironmentNotReadyError
    from loomq.loom import Loom
    from loomq.services.submit import submit_goal
    from loomq.settings import Settings

    loom = Loom(Settings.load())
    for line in sys.stdin:
        asked, refused = json.loads(line), 0
        while True:
            began = time.monotonic()
            try:
                handle = submit_goal(
                    "go", pipeline=asked["shape"], context=asked["context"], idempotency_key=asked["key"], loom=loom
                )
                break
            except EnvironmentNotReadyError:
                refused += 1
                time.sleep(_AGAIN_S)
        answer = {
            "n": asked["context"]["n"],
            "goal_id": str(handle.goal_id),
            "took_ms": (time.monotonic() - began) * 1000,
            "refused": refused,
        }
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
