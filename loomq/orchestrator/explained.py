"""The prompt of a step that has run, put together again from what is kept; nothing is asked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from loomq.errors import NotFoundError
from loomq.orchestrator.history import entries_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from loomq.llm.base import LLMReply, LLMRequest
    from loomq.messages import CheckpointState
    from loomq.orchestrator.decompose import Decompose
    from loomq.orchestrator.synthesize import Synthesize


@dataclass(frozen=True)
class Kept:
    """Checkpoints that were made, to be read only: the newest of them is the latest."""

    states: Sequence[CheckpointState] = ()

    def latest(self, goal_id: UUID) -> CheckpointState | None:  # noqa: ARG002  (all are of one goal)
        """Give the newest."""
        return max(self.states, key=lambda state: state.checkpoint_number, default=None)

    def save(self, state: CheckpointState, ttl_s: float) -> None:
        """Do nothing."""

    def forget(self, goal_id: UUID) -> None:
        """Do nothing."""


def prompt_of(
    program: Decompose | Synthesize, states: Sequence[CheckpointState]
) -> tuple[LLMRequest | None, str | None]:
    """Give the first question of a step, or say why it cannot be told.

    Args:
        states: The goal's checkpoints.
    """
    if not getattr(program, "asks", True):
        return None, None
    known = len(entries_of(program.rounds))
    kept = Kept([state for state in states if state.covers <= known])
    memory = replace(program, store=kept).memory(_refuse)
    try:
        return program.request(memory), None
    except NotFoundError as error:
        return None, error.message


def _refuse(request: LLMRequest, number: int) -> LLMReply:  # noqa: ARG001
    raise NotFoundError("its conversation is too long to be told whole, and the checkpoint that stood for it is gone")
