"""Processor time over all processes involved: steadier than wall time on a machine that others use too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable


def cpu_s(roots: Iterable[int]) -> float:
    """Add up user and system time of processes and of all that they have started, ended ones too."""
    seen: dict[int, float] = {}
    for root in roots:
        try:
            family = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
        for process in family:
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            seen[process.pid] = times.user + times.system + times.children_user + times.children_system
    return sum(seen.values())


def rss_mb(root: int) -> float:
    """Add up the memory of a process and its children, each page counted once by its share."""
    total = 0
    for process in [psutil.Process(root), *psutil.Process(root).children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
    return total / 2**20
