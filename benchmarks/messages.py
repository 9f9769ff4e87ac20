"""What messages weigh: each process of a run notes what it puts on a Redis queue, in a file that all append to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kombu.transport.redis import Channel, dumps

if TYPE_CHECKING:
    from uuid import UUID

_ROOT = Path(__file__).parents[1]


_put = Channel._put  # noqa: SLF001  (kombu has no other place that all messages pass)


def install(file: Path) -> None:
    """Note the id and the size of each message that this process sends from now on, as it is on the queue."""

    def noted(channel: Any, queue: str, message: dict[str, Any], **more: Any) -> Any:
        line = f"{(message.get('headers') or {}).get('id')} {len(dumps(message).encode())}\n"
        # Opened anew for each line: a pool's children close what they inherit.
        with file.open("ab", buffering=0) as log:
            log.write(line.encode())
        return _put(channel, queue, message, **more)

    Channel._put = noted  # noqa: SLF001


def environment(file: Path) -> dict[str, str]:
    """Give the variables that make a process note its messages in that file."""
    before = os.environ.get("PYTHONPATH")
    path = [str(Path(__file__).parent / "site"), str(_ROOT), *([before] if before else [])]
    return {"PYTHONPATH": os.pathsep.join(path), "BENCH_MESSAGES": str(file)}


def sizes(file: Path, goal_id: UUID) -> list[int]:
    """List the bytes of each message that a goal's stages were sent by."""
    pairs = (line.rsplit(" ", 1) for line in file.read_text().splitlines())
    return [int(size) for name, size in pairs if name.startswith(f"{goal_id}:")]
