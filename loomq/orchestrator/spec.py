"""What an orchestrator's YAML file may say (formats.md §3)."""

from __future__ import annotations

from typing import Literal

from loomq.config import JsonSchema, Name, NotYet, Seconds, Size, Spec, Text
from loomq.messages import ModelTier

#: The whole file is read and then refused, until the orchestrator exists.
NOT_YET = (NotYet(""),)


class AvailableWorker(Spec):
    """A worker that the orchestrator may use, as the model is told of it."""

    name: Name
    description: str = ""
    input_schema: JsonSchema | None = None
    default_model_tier: ModelTier | None = None


class CheckpointRules(Spec):
    """When a long conversation is compressed."""

    token_threshold: Size = 50_000
    recent_window: Size = 5
    ttl_seconds: Seconds = 86_400


class PlanCache(Spec):
    """How long a plan may be used again."""

    ttl_seconds: Seconds


class OrchestratorSpec(Spec):
    """One orchestrator: a model splits the goal, workers do the parts, the parts are put together."""

    name: Name
    kind: Literal["orchestrator"] = "orchestrator"
    description: str = ""
    system_prompt: Text | None = None
    available_workers: tuple[AvailableWorker, ...] | Literal["all"] = "all"
    max_concurrent_goals: Size | None = None
    max_concurrent_tasks: Size = 5
    """A window: the rest waits."""
    max_rounds: Size = 3
    timeout_seconds: Seconds = 300
    synthesis: Literal["merge", "llm"] = "merge"
    checkpoint: CheckpointRules = CheckpointRules()
    plan_cache: PlanCache | None = None
