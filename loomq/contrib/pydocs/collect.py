"""Collect: list the standard library's sources and deal them to shards of equal size."""

from __future__ import annotations

import os
import platform
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loomq.contrib.pydocs.place import workspace
from loomq.errors import BackendError
from loomq.workers.base import SyncProcessingBackend

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SKIPPED_FOLDERS = {"__pycache__", "dist-packages", "idlelib", "site-packages", "test", "tests", "turtledemo"}
TOPICS = "pydoc_data/topics.py"


class Collect(SyncProcessingBackend):
    """List the ``.py`` files of the running interpreter's standard library.

    Args:
        shards: How many lists to deal the files to.
        root: Another folder of sources than the standard library.
    """

    def __init__(self, shards: int = 4, root: str | None = None) -> None:
        self._shards = shards
        self._root = root

    def process_sync(self, payload: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        """Write one list of files a shard.

        Raises:
            BackendError: This Python carries no sources.
        """
        root = Path(self._root or sysconfig.get_path("stdlib"))
        files = sorted(sources(root))
        if not files:
            raise BackendError(
                f"there are no Python sources in {root}", hint="use a Python that has its library as files"
            )
        space = workspace()
        refs = [
            space.write_json(f"{payload['goal_id']}/sources_{number}.json", {"root": str(root), "files": names})
            for number, names in enumerate(deal(files, self._shards))
        ]
        output = {
            "shards": refs,
            "root": str(root),
            "python": platform.python_version(),
            "files": len(files),
            "bytes": sum(size for _, size in files),
        }
        return {"output": output, "model_used": None}


def sources(root: Path, below: str = "") -> Iterator[tuple[str, int]]:
    """Find the sources, as names relative to ``root`` and sizes in bytes; links are not followed."""
    with os.scandir(root / below) as entries:
        for entry in entries:
            name = f"{below}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                wanted = entry.name.isidentifier() and entry.name not in SKIPPED_FOLDERS
                if wanted and (below or entry.name != "pydoc_data"):
                    yield from sources(root, f"{name}/")
            elif entry.name.endswith(".py") and entry.is_file():
                yield name, entry.stat().st_size
    if not below and (root / TOPICS).is_file():
        yield TOPICS, (root / TOPICS).stat().st_size


def deal(files: list[tuple[str, int]], shards: int) -> list[list[str]]:
    """Deal files to shards, the biggest first, each to the shard that has least so far."""
    dealt: list[list[str]] = [[] for _ in range(shards)]
    loads = [0] * shards
    for name, size in sorted(files, key=lambda file: (-file[1], file[0])):
        lightest = loads.index(min(loads))
        dealt[lightest].append(name)
        loads[lightest] += size
    return dealt
