"""The outline of every orchestrator's goal: plan and tasks, round by round, and the synthesis at its end."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

_NAME = re.compile(r"(plan|tasks)_([0-9]+)")
SYNTHESIS = "synthesis"


@dataclass(frozen=True, slots=True)
class Step:
    """One stage of an orchestrator's goal.

    Args:
        kind: ``plan`` asks the model what to do, ``tasks`` is done when its tasks are, ``synthesis`` ends the goal.
        round: From 1; 0 of the synthesis.
    """

    kind: Literal["plan", "tasks", "synthesis"]
    round: int = 0

    @property
    def name(self) -> str:
        """The stage's name."""
        return f"{self.kind}_{self.round}" if self.round else self.kind

    @property
    def above(self) -> str | None:
        """The stage that it waits for, within the rounds."""
        if self.kind == "tasks":
            return Step("plan", self.round).name
        return Step("tasks", self.round - 1).name if self.round > 1 else None

    @classmethod
    def of(cls, name: str) -> Step | None:
        """Read a stage's name back; ``None`` if it is none of these."""
        if name == SYNTHESIS:
            return cls("synthesis")
        found = _NAME.fullmatch(name)
        return cls("plan" if found[1] == "plan" else "tasks", int(found[2])) if found else None


def steps(max_rounds: int) -> list[Step]:
    """List the stages of a goal in their order: a line, in which rounds that nobody asks for are skipped."""
    rounds = range(1, max_rounds + 1)
    return [*(step for at in rounds for step in (Step("plan", at), Step("tasks", at))), Step("synthesis")]
