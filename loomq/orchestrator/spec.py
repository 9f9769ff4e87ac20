"""What an orchestrator's YAML file may say (formats.md §3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from loomq.config import Count, JsonSchema, Name, Number, Seconds, Size, Spec, Text, contradiction
from loomq.messages import ModelTier
from loomq.workers.spec import Backoff, WorkerSpec

if TYPE_CHECKING:
    from loomq.config import NotYet

NOT_YET: tuple[NotYet, ...] = ()
MOST_ROUNDS = 20


class AvailableWorker(Spec):
    """A worker, a pipeline or another orchestrator that plans may use, as the model is told of it."""

    name: Name
    description: str = ""
    """Empty: what its own file says."""
    input_schema: JsonSchema | None = None
    """What the model is told that it takes, and held to; none: what its own file says. That holds in any case."""
    default_model_tier: ModelTier | None = None
    """None: the worker's own."""
    tiers: tuple[ModelTier, ...] = ()
    """Other tiers that a plan may ask for; their queues are served like those of pipelines' stages."""


class CheckpointRules(Spec):
    """When a long conversation is compressed."""

    token_threshold: Size = 50_000
    """The longest conversation that the model is sent, in estimated tokens."""
    recent_window: Size = 5
    """How many of the last plans and results it is told word by word all the same."""
    ttl_seconds: Seconds = 86_400
    """How long a checkpoint is kept."""
    store: Literal["postgres", "redis"] = "postgres"
    """Redis forgets them when it loses its data; they are then made, and paid for, anew."""


class PlanCache(Spec):
    """How long a first plan may be used again, for goals that ask the same of the same workers."""

    ttl_seconds: Seconds
    match: Literal["goal", "shape"] = "goal"
    """goal: same instruction and context. shape: same instruction and kinds of context; the model is told no values."""


class OrchestratorSpec(Spec):
    """One orchestrator: a model splits the goal, workers do the parts, the parts are put together."""

    name: Name
    kind: Literal["orchestrator"] = "orchestrator"
    description: str = ""
    system_prompt: Text | None = None
    """What the model is told before the rules of planning."""
    available_workers: Annotated[
        Annotated[tuple[AvailableWorker, ...], Tag("some")] | Annotated[Literal["all"], Tag("all")],
        Discriminator(lambda value: "all" if isinstance(value, str) else "some"),
    ] = "all"
    """all: every worker of the project."""
    max_concurrent_goals: Size | None = None
    """How many goals of this orchestrator run at once, over the whole cluster; the others wait."""
    max_concurrent_tasks: Size = 5
    """A window: so many tasks of a goal are under way, the rest waits."""
    max_rounds: Annotated[int, Field(strict=True, ge=1, le=MOST_ROUNDS)] = 3
    """After each but the last the model may ask for more tasks."""
    timeout_seconds: Seconds = 300
    """The limit of the whole goal, from when it may begin."""
    synthesis: Literal["merge", "llm"] = "merge"
    """merge: all results side by side; llm: a model also draws the conclusion."""
    checkpoint: CheckpointRules = CheckpointRules()
    plan_cache: PlanCache | None = None
    default_model_tier: ModelTier = ModelTier.STANDARD
    """Whose model plans and draws conclusions."""
    max_output_tokens: Size = 4000
    """Of one plan, or of one conclusion."""
    temperature: Number | None = None
    step_timeout_seconds: Seconds = 120
    """The limit of making one plan, or of drawing the conclusion."""
    max_retries: Count = 2
    """Of one such step, when the model's provider fails."""
    retry_backoff: Backoff = Backoff()

    @model_validator(mode="after")
    def _has_names(self) -> Self:
        if self.available_workers == "all":
            return self
        names = [one.name for one in self.available_workers]
        if not names:
            raise contradiction("an orchestrator without workers can do nothing", "available_workers", id="LQ111")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise contradiction(f"{twice[0]} stands twice among them", "available_workers")
        if self.name in names:
            raise contradiction("an orchestrator cannot be its own worker", "available_workers", id="LQ217")
        return self

    @property
    def named(self) -> tuple[AvailableWorker, ...]:
        """The workers that it names; none if it takes all."""
        return () if self.available_workers == "all" else self.available_workers

    @property
    def tiers_asked(self) -> tuple[tuple[str, ModelTier], ...]:
        """Workers with a tier that a plan may ask for, besides the worker's own."""
        return tuple(
            (one.name, tier)
            for one in self.named
            for tier in (*([one.default_model_tier] if one.default_model_tier else []), *one.tiers)
        )

    @property
    def as_worker(self) -> WorkerSpec:
        """The worker that its own steps are tasks of: they share its queue, its limits and its retries."""
        return WorkerSpec(
            name=self.name,
            description=self.description,
            system_prompt=self.system_prompt or "You plan work and draw conclusions.",
            default_model_tier=self.default_model_tier,
            max_output_tokens=self.max_output_tokens,
            temperature=self.temperature,
            timeout_seconds=self.step_timeout_seconds,
            max_retries=self.max_retries,
            retry_backoff=self.retry_backoff,
        )
