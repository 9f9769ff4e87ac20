"""What a stage gives as it is kept, and what a goal gives: what its ``output`` selects, or what all tasks gave."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import UUID

from loomq.errors import InlineValueError, PipelineValidationError
from loomq.inline import inline_json
from loomq.orchestrator.outline import SYNTHESIS
from loomq.orchestrator.synthesize import merged
from loomq.redaction import redacted_written
from loomq.runs.orchestration import history

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loomq.runs.plan import Plan
    from loomq.settings import Settings
    from loomq.store.engine import Database
    from loomq.workers.runtime import Done


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


def kept(done: Done, stage: str, settings: Settings) -> tuple[Done, str]:
    """Write a stage's output as the JSON text that is kept, and show what is kept to whoever comes next.

    Raises:
        PipelineValidationError: It is not JSON, or too large.
    """
    try:
        text = inline_json(done.output, what=f"the output of stage {stage}", limit_bytes=settings.max_inline_bytes)
    except InlineValueError as error:
        done.reject()
        raise PipelineValidationError(error.message, stage=stage, hint=error.hint) from error
    shown = redacted_written(text) if settings.redact_outputs else text
    return (done if shown is text else replace(done, output=json.loads(shown))), shown
