"""The rounds of an orchestrator's goal as a tree: what was planned, why, and how each task stands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loomq.cli.goal import told, told_tokens
from loomq.cli.output import console, duration
from loomq.cli.spending import dollars
from loomq.cli.terminal import printable, shortened
from loomq.redaction import redacted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from loomq.services.inspect import GoalView
    from loomq.services.rounds import RoundView, TaskView

_MOST_TASKS = 50


def print_rounds(view: GoalView) -> None:
    """Print the tree of a goal's rounds; nothing for a goal that has none."""
    if view.rounds:
        out = console()
        out.print("\nplan")
        for line in _lines(view.rounds):
            out.print(line, soft_wrap=True)


def _lines(rounds: Sequence[RoundView]) -> Iterator[str]:
    for at, one in enumerate(rounds):
        is_last = at == len(rounds) - 1
        yield f"{'└─' if is_last else '├─'} round {one.number}: {one.told}"
        margin = "   " if is_last else "│  "
        shown = one.tasks[:_MOST_TASKS]
        for place, task in enumerate(shown):
            is_end = place == len(one.tasks) - 1
            yield f"{margin}{'└─' if is_end else '├─'} {_head(task)}"
            yield from (f"{margin}{'   ' if is_end else '│  '}   {line}" for line in _more(task))
        if len(shown) < len(one.tasks):
            yield f"{margin}└─ … and {len(one.tasks) - len(shown):,} more: loomq show {one.goal_id}"


def _head(task: TaskView) -> str:
    stage = task.stage
    parts = [task.name, task.worker_type, str(stage.status)]
    if stage.attempt > 1:
        parts.append(f"attempt {stage.attempt}")
    if stage.wall_time_ms is not None:
        parts.append(str(duration(stage.wall_time_ms)))
    if stage.tokens and any(stage.tokens.values()):
        parts.append(told_tokens(stage.tokens))
    if stage.spent is not None:
        parts.append(f"cost {dollars(stage.spent.cost)}")
    return "  ".join(parts)


def _more(task: TaskView) -> Iterator[str]:
    stage = task.stage
    if task.depends_on:
        yield f"after {', '.join(task.depends_on)}"
    if task.rationale:
        yield f"since: {shortened(printable(redacted(task.rationale)))}"
    if stage.error and stage.state in {"failed", "dead"}:
        yield told(stage.error)
    elif stage.status == "skipped" and stage.reason:
        yield f"skipped: {printable(redacted(stage.reason))}"
    for child in task.children:
        yield f"its work is goal {child.goal_id} ({child.pipeline}, {child.status})"
