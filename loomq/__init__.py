"""Declare LLM and Python work in YAML, run it on Celery, keep every goal in Postgres.

Importing this package opens nothing and costs next to nothing: the public names below are loaded when
they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loomq.services.dead_letters import (
        drop_dead_letter,
        edit_dead_letter,
        get_dead_letter,
        list_dead_letters,
        replay_dead_letter,
        replay_dead_letters,
    )
    from loomq.services.letters import DeadLetter
    from loomq.services.submit import GoalHandle, submit_goal, submit_task

__version__ = "0.1.0"

__all__ = [
    "DeadLetter",
    "GoalHandle",
    "__version__",
    "drop_dead_letter",
    "edit_dead_letter",
    "get_dead_letter",
    "list_dead_letters",
    "replay_dead_letter",
    "replay_dead_letters",
    "submit_goal",
    "submit_task",
]

_HOMES = {
    "DeadLetter": "loomq.services.letters",
    "GoalHandle": "loomq.services.submit",
    "drop_dead_letter": "loomq.services.dead_letters",
    "edit_dead_letter": "loomq.services.dead_letters",
    "get_dead_letter": "loomq.services.dead_letters",
    "list_dead_letters": "loomq.services.dead_letters",
    "replay_dead_letter": "loomq.services.dead_letters",
    "replay_dead_letters": "loomq.services.dead_letters",
    "submit_goal": "loomq.services.submit",
    "submit_task": "loomq.services.submit",
}


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'loomq' has no attribute {name!r}")
    return getattr(import_module(home), name)
