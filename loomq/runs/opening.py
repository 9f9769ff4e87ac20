"""Before a stage's work: whether it runs at all, once, or once an item of a list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loomq.errors import PipelineValidationError
from loomq.store.openings import Element

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loomq.runs.plan import StagePlan

MOST_ITEMS = 10_000


@dataclass(frozen=True, slots=True)
class Skip:
    """The stage is not run.

    Args:
        reason: Why, in one line.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class FanOut:
    """The stage runs once an element."""

    elements: tuple[Element, ...]


def why_skipped(stage: StagePlan, goal: Mapping[str, Any], inputs: Mapping[str, Any]) -> str | None:
    """Say why a stage is skipped, or give ``None`` if it runs.

    Args:
        goal: ``goal_id``, ``instruction`` and ``context``.
        inputs: Those of the stages that it reads which have a result.
    """
    missing = next((name for name in stage.needs if name not in inputs), None)
    if missing is not None:
        return f"it needs {missing}, which has no result"
    if stage.asks_nothing(inputs):
        return "the plan asks for no more tasks"
    when = stage.spec.when if stage.spec else None
    if when is None or when.reads_item:
        return None
    roots = {**inputs, "goal": goal}
    return None if when.evaluate(roots) else when.told(roots)


def opening(stage: StagePlan, goal: Mapping[str, Any], inputs: Mapping[str, Any]) -> Skip | FanOut | None:
    """Decide what to do with a stage in hand; ``None`` means: its work. Arguments as ``why_skipped``.

    Raises:
        PipelineMappingError: The list of a ``for_each`` is not there.
        PipelineValidationError: It is too long.
    """
    reason = why_skipped(stage, goal, inputs)
    if reason is not None:
        return Skip(reason)
    if stage.each is None:
        return None
    roots = {**inputs, "goal": goal}
    found = stage.each.evaluate(roots)
    if len(found) > MOST_ITEMS:
        raise PipelineValidationError(
            f"for_each takes up to {MOST_ITEMS:,} items, and {stage.each.path.text} has {len(found):,}",
            stage=stage.name,
            hint="let each item be a batch of them",
        )
    return FanOut(tuple(_element(stage, roots, index, value) for index, value in enumerate(found)))


def _element(stage: StagePlan, roots: Mapping[str, Any], index: int, value: Any) -> Element:
    when = stage.spec.when if stage.spec else None
    if when is None or not when.reads_item:
        return Element(index, value)
    at_item = {**roots, "item": value, "index": index}
    return Element(index, value, None if when.evaluate(at_item) else when.told(at_item))
