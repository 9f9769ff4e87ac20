"""What a pipeline's YAML file may say (formats.md §2)."""

from __future__ import annotations

from functools import cached_property, partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from loomq.config import Count, DottedName, JsonSchema, Name, NotYet, Seconds, Size, Spec, Text, contradiction
from loomq.errors import ConfigError
from loomq.messages import ModelTier, TaskPriority
from loomq.pipelines.condition import Condition
from loomq.pipelines.for_each import ForEach
from loomq.pipelines.mapping import Mapping
from loomq.pipelines.scanner import MalformedError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

#: Keys that are read and then refused; an issue that gives one its behaviour deletes its row.
NOT_YET: tuple[NotYet, ...] = ()

# What a stage may say of its worker, and a stage that runs a pipeline may not.
_OF_A_WORKER = ("tier", "max_retries", "input_schema", "output_schema", "input_schema_ref", "output_schema_ref")

# Keys that nodes of the first release refuse: a plan that does not use them leaves them out.
_NEWER = {"pipeline": None, "max_parallel": None, "on_item_failure": "fail", "fallback": None}


class Fallback(Spec):
    """What stands in for a stage, or an item of it, that failed for good: another worker, or a value."""

    worker_type: Name | None = None
    """It gets the same input, and its own contracts hold."""
    tier: ModelTier | None = None
    """None: that worker's default_model_tier."""
    value: dict[str, Any] | None = None
    """The output itself."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.worker_type is None) == (self.value is None):
            raise contradiction("a fallback is either a worker_type or a value")
        if self.tier is not None and self.worker_type is None:
            raise contradiction("a value has no tier", "tier", hint="remove the key")
        return self


class StageSpec(Spec):
    """One stage: a worker or a pipeline, what it is given, and how it differs from the worker's own limits."""

    name: Name
    worker_type: Name | None = None
    """The worker that it runs; exactly one of worker_type and pipeline is written."""
    pipeline: Name | None = None
    """The pipeline that it runs, as a goal of its own; input_mapping gives that goal's context."""
    tier: ModelTier | None = None
    """None: the worker's default_model_tier."""
    input_mapping: dict[str, Any] = Field(default_factory=dict)
    """target: path, with paths such as goal.context.text or <stage>.output.items[0]."""
    depends_on: tuple[Name, ...] | None = None
    """None: inferred from the mapping; written, even empty, it replaces inference."""
    condition: Text | None = None
    """path op value, joined by and, or, not: if it is false the stage is skipped."""
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
    """The path of a list: the stage runs once an item, and its output is {items, errors}."""
    max_parallel: Size | None = None
    """How many items run at once; None: as many as there is room for."""
    on_item_failure: Literal["fail", "continue"] = "fail"
    """fail: the first item that fails for good fails the stage; continue: it is null, and in errors."""
    fallback: Fallback | None = None
    """What stands in when the stage, or an item of it, fails for good."""
    priority: TaskPriority | None = None
    """None: the goal's."""

    @model_serializer(mode="wrap")
    def _readable_by_older_nodes(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        said: dict[str, Any] = dump(self)
        return {key: value for key, value in said.items() if key not in _NEWER or value != _NEWER[key]}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.worker_type is None and self.pipeline is None:
            raise contradiction('the key "worker_type" is missing, or "pipeline"', id="LQ111")
        if self.worker_type is not None and self.pipeline is not None:
            raise contradiction("a stage runs either a worker or a pipeline", "pipeline", hint="keep one of the keys")
        if self.for_each is None:
            if self.max_parallel is not None:
                raise contradiction("max_parallel needs a for_each", "max_parallel")
            if self.on_item_failure != "fail":
                raise contradiction("on_item_failure needs a for_each", "on_item_failure")
        if self.pipeline is not None:
            self._of_a_pipeline()
        return self

    def _of_a_pipeline(self) -> None:
        for key in _OF_A_WORKER:
            if getattr(self, key) is not None:
                message = f"{key} makes no sense for a stage that runs a pipeline"
                raise contradiction(message, key, hint=f"write it in the stages of {self.pipeline}")
        if self.fallback is not None and self.fallback.worker_type is not None:
            message = "a stage that runs a pipeline has no other worker"
            raise contradiction(message, "fallback", hint=f"write a value here, or fallbacks in {self.pipeline}")

    @cached_property
    def mapping(self) -> Mapping:
        """The parsed ``input_mapping``.

        Raises:
            ConfigError: It is malformed, which ``load_catalog`` has refused before.
        """
        return Mapping.parse(self.input_mapping, has_items=self.for_each is not None)

    @cached_property
    def when(self) -> Condition | None:
        """The parsed ``condition``; errors as ``mapping``."""
        parse = partial(Condition.parse, has_items=self.for_each is not None)
        return None if self.condition is None else _parsed("condition", parse, self.condition)

    @cached_property
    def items(self) -> ForEach | None:
        """The parsed ``for_each``; errors as ``mapping``."""
        return None if self.for_each is None else _parsed("for_each", ForEach.parse, self.for_each)

    @cached_property
    def reads(self) -> tuple[str, ...]:
        """The stages that its mapping, its condition or its for_each reads; errors as ``mapping``."""
        sources = (self.mapping, self.when, self.items)
        return tuple(dict.fromkeys(name for one in sources if one is not None for name in one.roots))

    @cached_property
    def needs(self) -> tuple[str, ...]:
        """Those of ``reads`` without which it cannot run: skipped they skip it too. A condition needs none."""
        sources = (self.mapping, self.items)
        return tuple(dict.fromkeys(name for one in sources if one is not None for name in one.needs))

    @property
    def skips_items(self) -> bool:
        """Whether the condition is asked for each item; else it is asked once, for the whole stage."""
        return self.when is not None and self.when.reads_item

    @property
    def worker_types(self) -> tuple[str, ...]:
        """The workers that it may run: its own and that of its fallback."""
        named = (self.worker_type, self.fallback.worker_type if self.fallback else None)
        return tuple(name for name in named if name is not None)


def _parsed(key: str, parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except MalformedError as error:
        raise ConfigError(f"the {key} is malformed: {error.message}", hint=error.hint or None) from error


class PipelineSpec(Spec):
    """One pipeline: stages that form a DAG."""

    name: Name
    description: str = ""
    pipeline_stages: Annotated[tuple[StageSpec, ...], Field(min_length=1)]
    timeout_seconds: Seconds | None = None
    """The limit of each stage that has none of its own; None: each worker's."""
    goal_timeout_seconds: Seconds | None = None
    """The limit of the whole goal, from when it may begin."""
    max_concurrent_goals: Size | None = None
    """How many goals of this pipeline run at once, over the whole cluster; the others wait."""
    input_schema: JsonSchema | None = None
    """JSON Schema of goal.context."""
    output: dict[str, Any] | None = None
    """A mapping, like input_mapping, that selects the goal's result; None: every stage's output."""
    on_failure: Literal["fail", "continue_partial"] = "fail"
    """continue_partial: what does not need the failed stage still runs."""

    @cached_property
    def output_mapping(self) -> Mapping | None:
        """The parsed ``output``, or None when every stage's output is the result.

        Raises:
            ConfigError: It is malformed, which ``load_catalog`` has refused before.
        """
        return None if self.output is None else Mapping.parse(self.output)

    @property
    def worker_types(self) -> tuple[str, ...]:
        """Every worker that its stages may run, each once, by name."""
        return tuple(sorted({name for stage in self.pipeline_stages for name in stage.worker_types}))

    @property
    def tiers_asked(self) -> tuple[tuple[str, ModelTier], ...]:
        """Workers with a tier that a stage or a fallback asks for, instead of the worker's own."""
        sources = [one for stage in self.pipeline_stages for one in (stage, stage.fallback) if one is not None]
        return tuple((one.worker_type, one.tier) for one in sources if one.worker_type and one.tier)

    @cached_property
    def by_name(self) -> dict[str, StageSpec]:
        """The stages by their names."""
        return {stage.name: stage for stage in self.pipeline_stages}

    def timeout_of(self, stage: StageSpec, worker_timeout: float) -> float:
        """Give a stage's limit in seconds: its own, else the pipeline's if written, else the worker's."""
        return stage.timeout_seconds or self.timeout_seconds or worker_timeout
