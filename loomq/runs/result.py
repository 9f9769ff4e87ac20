"""What a goal gives: the selection of its stages' results that its pipeline's ``output`` makes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loomq.runs.plan import Plan


def result_of(plan: Plan, goal: Mapping[str, Any], finished: Mapping[str, Any]) -> dict[str, Any]:
    """Give a goal's result.

    Args:
        goal: ``goal_id``, ``instruction`` and ``context``.
        finished: The stages that have a result, as mappings see them.

    Raises:
        PipelineMappingError: ``output`` needs what is not there.
    """
    if plan.kind == "worker":
        return dict((finished.get(plan.name) or {}).get("output") or {})
    if plan.output is None:
        return {name: finished[name]["output"] for name in plan.stages if name in finished}
    return plan.output.apply(goal, finished)
