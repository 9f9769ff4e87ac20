"""What a goal gives: what its ``output`` selects of its stages' results, or all that an orchestrator's tasks gave."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from loomq.orchestrator.outline import SYNTHESIS
from loomq.orchestrator.synthesize import merged
from loomq.runs.orchestration import history

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loomq.runs.plan import Plan
    from loomq.store.engine import Database


def result_of(database: Database, plan: Plan, goal: Mapping[str, Any], finished: Mapping[str, Any]) -> dict[str, Any]:
    """Give a goal's result.

    Args:
        goal: ``goal_id``, ``instruction`` and ``context``.
        finished: The stages that have a result, as mappings see them.

    Raises:
        PipelineMappingError: ``output`` needs what is not there.
    """
    if plan.kind == "orchestrator":
        conclusion = (finished.get(SYNTHESIS) or {}).get("output")
        return merged(history(database, UUID(goal["goal_id"]), tokens=True), conclusion)
    if plan.kind == "worker":
        return dict((finished.get(plan.name) or {}).get("output") or {})
    if plan.output is None:
        return {name: finished[name]["output"] for name in plan.stages if name in finished}
    return plan.output.apply(goal, finished)
