"""File locks that tell processes of one another, and that the kernel frees when a process dies."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def try_lock(path: Path, *, shared: bool) -> int | None:
    """Take a lock without waiting.

    The lock lives as long as any copy of the descriptor, so a forked child keeps it too. To give it up, close
    the descriptor; unlocking would take it from the copies as well.

    Returns:
        The locked descriptor, or ``None`` if somebody holds a lock that excludes this one.

    Raises:
        OSError: The file cannot be opened.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    if not is_file(descriptor, path):
        os.close(descriptor)
        return None
    return descriptor


def is_locked(path: Path) -> bool:
    """Say whether somebody holds the lock exclusively."""
    if not path.exists():
        return False
    descriptor = try_lock(path, shared=True)
    if descriptor is None:
        return True
    os.close(descriptor)
    return False


def is_file(descriptor: int, path: Path) -> bool:
    """Say whether an open descriptor is still the file at ``path``, which may have been removed or replaced."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False
