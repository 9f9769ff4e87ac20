"""Ask the worker nodes to read the project's files again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loomq.queues.control import RELOAD
from loomq.services import inspect

if TYPE_CHECKING:
    from loomq.loom import Loom

_PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class NodeReload:
    """What one node made of it.

    Args:
        outcome: ``read``, ``refused`` (its files have errors, and what they said before stays) or ``silent``.
        change: Names that were ``added``, ``changed`` or ``removed``, new ``queues``, whether the ``rules`` are others.
        error: Why it was refused.
    """

    node: str
    outcome: str
    change: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Describe it."""
        return {"node": self.node, "outcome": self.outcome, "change": self.change, "error": self.error}


def reload(loom: Loom, patience_s: float = _PATIENCE_S) -> list[NodeReload]:
    """Let every live worker node read its files again.

    The files of this process are read first: what is broken here is told without asking anybody.

    Args:
        patience_s: How long to wait for nodes to answer.

    Raises:
        ConfigError: The files have errors.
        EnvironmentNotReadyError: The database or the broker cannot be used.
    """
    loom.configs.reload()
    expected = {node.hostname for node in inspect.live_nodes(loom)}
    if not expected:
        return []
    loom.app.broker.ping()
    answers = loom.app.control.broadcast(RELOAD, reply=True, timeout=patience_s, limit=len(expected))
    found = {name: _read(name, said) for answer in answers or () for name, said in answer.items()}
    found |= {name: NodeReload(name, "silent") for name in expected - found.keys()}
    return [found[name] for name in sorted(found)]


def _read(name: str, said: dict[str, Any]) -> NodeReload:
    if "ok" in said:
        return NodeReload(name, "read", change=said.get("change") or {})
    return NodeReload(name, "refused", error=said.get("refused") or {"message": str(said.get("error"))})
