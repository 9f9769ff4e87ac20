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
    from loomq.services.events import GoalEvent
    from loomq.services.letters import DeadLetter
    from loomq.services.sessions import (
        create_session,
        delete_session,
        get_session,
        list_sessions,
        rename_session,
        search_sessions,
    )
    from loomq.services.submit import GoalHandle, submit_goal, submit_goals, submit_task
    from loomq.services.transcripts import Session

__version__ = "0.1.0"

__all__ = [
    "DeadLetter",
    "GoalEvent",
    "GoalHandle",
    "Session",
    "__version__",
    "create_session",
    "delete_session",
    "drop_dead_letter",
    "edit_dead_letter",
    "get_dead_letter",
    "get_session",
    "list_dead_letters",
    "list_sessions",
    "rename_session",
    "replay_dead_letter",
    "replay_dead_letters",
    "search_sessions",
    "submit_goal",
    "submit_goals",
    "submit_task",
]

_HOMES = {
    "DeadLetter": "loomq.services.letters",
    "GoalEvent": "loomq.services.events",
    "GoalHandle": "loomq.services.submit",
    "Session": "loomq.services.transcripts",
    "create_session": "loomq.services.sessions",
    "delete_session": "loomq.services.sessions",
    "drop_dead_letter": "loomq.services.dead_letters",
    "edit_dead_letter": "loomq.services.dead_letters",
    "get_dead_letter": "loomq.services.dead_letters",
    "get_session": "loomq.services.sessions",
    "list_dead_letters": "loomq.services.dead_letters",
    "list_sessions": "loomq.services.sessions",
    "rename_session": "loomq.services.sessions",
    "replay_dead_letter": "loomq.services.dead_letters",
    "replay_dead_letters": "loomq.services.dead_letters",
    "search_sessions": "loomq.services.sessions",
    "submit_goal": "loomq.services.submit",
    "submit_goals": "loomq.services.submit",
    "submit_task": "loomq.services.submit",
}


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'loomq' has no attribute {name!r}")
    return getattr(import_module(home), name)
