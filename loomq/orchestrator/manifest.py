"""The manifest: what an orchestrator's model is told that it may use, frozen with the goal."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from loomq.contracts import Contract
from loomq.orchestrator.spec import OrchestratorSpec

if TYPE_CHECKING:
    from loomq.pipelines.spec import PipelineSpec

#: What an orchestrator takes when it does a task of another one.
ORCHESTRATOR_INPUT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "instruction": {"type": "string", "minLength": 1, "description": "What is wanted, in words."},
        "context": {"type": "object", "description": "Data that it takes to do it."},
    },
    "required": ["instruction"],
    "additionalProperties": False,
}


class Offer(BaseModel):
    """One worker, pipeline or orchestrator that tasks may name.

    Args:
        input_schema: What the model is told that it takes; ``None`` is anything.
        own_schema: What it really takes, where that differs.
        output_keys: What its outputs have, as far as that is known.
        tier: Where its tasks run when the plan says nothing; ``None`` of pipelines and orchestrators.
        tiers: Where they may run.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    kind: Literal["worker", "pipeline", "orchestrator"] = "worker"
    description: str = ""
    input_schema: dict[str, Any] | None = None
    own_schema: dict[str, Any] | None = None
    output_keys: tuple[str, ...] = ()
    tier: str | None = None
    tiers: tuple[str, ...] = ()

    @cached_property
    def contracts(self) -> tuple[Contract, ...]:
        """What a payload must hold."""
        return tuple(Contract(schema) for schema in (self.input_schema, self.own_schema) if schema is not None)

    def told(self) -> dict[str, Any]:
        """Describe it for the model."""
        found: dict[str, Any] = {"worker_type": self.name, "description": self.description}
        if self.input_schema is not None:
            found["payload_schema"] = self.input_schema
        if self.output_keys:
            found["output_keys"] = list(self.output_keys)
        if len(self.tiers) > 1:
            found |= {"model_tiers": list(self.tiers), "default_model_tier": self.tier}
        return found


class Frozen(BaseModel):
    """An orchestrator as a goal's snapshot keeps it: what its file says, and what it may use."""

    model_config = ConfigDict(frozen=True)

    spec: OrchestratorSpec
    offers: tuple[Offer, ...]

    @cached_property
    def by_name(self) -> dict[str, Offer]:
        """The offers by their names."""
        return {offer.name: offer for offer in self.offers}

    def of_kind(self, kind: str) -> list[str]:
        """Name the offers of a kind."""
        return [offer.name for offer in self.offers if offer.kind == kind]

    def dumped(self) -> dict[str, Any]:
        """Give it as the snapshot has it."""
        return self.model_dump(mode="json", exclude_defaults=True)


def context_schema(pipeline: PipelineSpec) -> dict[str, Any]:
    """Say what a pipeline's goals take: its ``input_schema``, or the keys of the context that its mappings read."""
    if pipeline.input_schema is not None:
        return pipeline.input_schema
    keys: dict[str, bool] = {}
    for stage in pipeline.pipeline_stages:
        for _, path in stage.mapping.paths:
            if path.root == "goal" and path.parts[:1] == ("context",) and len(path.parts) > 1:
                key = str(path.parts[1])
                keys[key] = keys.get(key, False) or not path.is_optional
    return {
        "type": "object",
        "properties": {key: {} for key in keys},
        "required": [key for key, is_required in keys.items() if is_required],
    }
