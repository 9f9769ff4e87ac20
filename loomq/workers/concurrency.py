"""Which semaphore a task needs for itself: its concurrency key's, or that of a backend which writes alone."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, NamedTuple

from loomq.redaction import redacted

if TYPE_CHECKING:
    from loomq.workers.spec import WorkerSpec

_ROOT = "payload."
_LONGEST = 120


class Semaphore(NamedTuple):
    """A number of slots over the whole cluster.

    Args:
        name: Whoever names it shares it.
        slots: How many may hold it at once.
    """

    name: str
    slots: int


def of_key(spec: WorkerSpec, payload: dict[str, Any]) -> Semaphore | None:
    """Give the semaphore that a worker's ``concurrency_key`` means for a payload.

    A path (``payload.customer.id``) makes one for each value of this worker; tasks without a value share one. Any other
    text is the name of one that all workers with it share.
    """
    if spec.concurrency_key is None:
        return None
    slots = spec.max_concurrent or 1
    if not spec.concurrency_key.startswith(_ROOT):
        return Semaphore(spec.concurrency_key, slots)
    value: Any = payload
    for part in spec.concurrency_key.removeprefix(_ROOT).split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return Semaphore(
        f"{spec.name}:{_short(value if isinstance(value, str) else json.dumps(value, sort_keys=True))}", slots
    )


def of_writes(spec: WorkerSpec) -> Semaphore:
    """Give the semaphore of a backend that writes alone: the same class with the same configuration."""
    config = json.dumps(spec.backend_config, sort_keys=True, default=str)
    return Semaphore(f"writes:{spec.processing_backend}:{_digest(config)}", 1)


def _short(value: str) -> str:
    shown = redacted(value)
    if len(value) <= _LONGEST and shown == value and value.isprintable():
        return value
    return f"{shown[:40]!r}:{_digest(value)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
