"""What a pipeline's YAML file may say (formats.md §2)."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field

from loomq.config import Count, DottedName, JsonSchema, Name, NotYet, Seconds, Size, Spec, Text
from loomq.messages import ModelTier, TaskPriority
from loomq.pipelines.mapping import Mapping

#: Keys that are read and then refused; an issue that gives one its behaviour deletes its row.
NOT_YET = (
    NotYet("goal_timeout_seconds"),
    NotYet("max_concurrent_goals"),
    NotYet("on_failure", values=("continue_partial",)),
    NotYet("pipeline_stages.*.condition"),
    NotYet("pipeline_stages.*.for_each"),
)


class StageSpec(Spec):
    """One stage: a worker, what it is given, and how it differs from the worker's own limits."""

    name: Name
    worker_type: Name
    tier: ModelTier | None = None
    """None: the worker's default_model_tier."""
    input_mapping: dict[str, Any] = Field(default_factory=dict)
    """target: path, with paths such as goal.context.text or <stage>.output.items[0]."""
    depends_on: tuple[Name, ...] | None = None
    """None: inferred from the mapping; written, even empty, it replaces inference."""
    condition: Text | None = None
    timeout_seconds: Seconds | None = None
    """None: the pipeline's if it has one, else the worker's."""
    max_retries: Count | None = None
    """None: the worker's."""
    input_schema: JsonSchema | None = None
    """In place of the worker's."""
    output_schema: JsonSchema | None = None
    """In place of the worker's."""
    input_schema_ref: DottedName | None = None
    output_schema_ref: DottedName | None = None
    for_each: Text | None = None
    priority: TaskPriority | None = None
    """None: the goal's."""

    @cached_property
    def mapping(self) -> Mapping:
        """The parsed ``input_mapping``.

        Raises:
            ConfigError: It is malformed, which ``load_catalog`` has refused before.
        """
        return Mapping.parse(self.input_mapping)


class PipelineSpec(Spec):
    """One pipeline: stages that form a DAG."""

    name: Name
    description: str = ""
    pipeline_stages: Annotated[tuple[StageSpec, ...], Field(min_length=1)]
    timeout_seconds: Seconds | None = None
    """The limit of each stage that has none of its own; None: each worker's."""
    goal_timeout_seconds: Seconds | None = None
    max_concurrent_goals: Size | None = None
    input_schema: JsonSchema | None = None
    """JSON Schema of goal.context."""
    output: dict[str, Any] | None = None
    """A mapping, like input_mapping, that selects the goal's result; None: every stage's output."""
    on_failure: Literal["fail", "continue_partial"] = "fail"

    @cached_property
    def output_mapping(self) -> Mapping | None:
        """The parsed ``output``, or None when every stage's output is the result.

        Raises:
            ConfigError: It is malformed, which ``load_catalog`` has refused before.
        """
        return None if self.output is None else Mapping.parse(self.output)

    @cached_property
    def by_name(self) -> dict[str, StageSpec]:
        """The stages by their names."""
        return {stage.name: stage for stage in self.pipeline_stages}

    def timeout_of(self, stage: StageSpec, worker_timeout: float) -> float:
        """Give a stage's limit in seconds: its own, else the pipeline's if written, else the worker's."""
        return stage.timeout_seconds or self.timeout_seconds or worker_timeout
