"""What a worker's YAML file may say (formats.md §1)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import AliasChoices, ConfigDict, Field, model_validator

from loomq.config import (
    ConcurrencyKey,
    Count,
    DottedName,
    Flag,
    JsonSchema,
    Name,
    NotYet,
    Number,
    Rate,
    Seconds,
    Size,
    Spec,
    Text,
    contradiction,
    publish_x_keys,
    refuse_no_rate,
)
from loomq.knowledge.spec import FolderSilo, KnowledgeSource
from loomq.messages import ModelTier
from loomq.tools.spec import ToolSilo

#: Keys that are read and then refused; an issue that gives one its behaviour deletes its row.
NOT_YET = (NotYet("worker_kind", values=("agent",)),)


class Backoff(Spec):
    """The wait before a retry: ``initial`` seconds, doubled each time up to ``max``."""

    initial: Number = 1
    max: Number = 60
    jitter: Flag = True

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.initial > self.max:
            raise contradiction(f"initial ({self.initial:g}) is more than max ({self.max:g})", "initial")
        return self


class Batch(Spec):
    """Payloads that one call takes together, where a process has several tasks of the worker in hand (-P threads)."""

    max_size: Size
    max_wait_ms: Count


class Cache(Spec):
    """Answers that are given again to whoever asks the same: same prompt, model, contract and tools."""

    ttl_seconds: Seconds


class Schemas(NamedTuple):
    """The contracts that hold for a worker or a stage; None checks nothing."""

    input: JsonSchema | None
    output: JsonSchema | None


def _publish(schema: dict[str, Any]) -> None:
    publish_x_keys(schema)
    schema["properties"]["default_tier"] = {**schema["properties"]["default_model_tier"], "title": "Default Tier"}


class WorkerSpec(Spec):
    """One worker: its task is ``loomq.worker.<name>``, its queues ``<name>.<tier>``."""

    model_config = ConfigDict(json_schema_extra=_publish)

    name: Name
    """The worker_type that stages and tasks name."""
    description: str = ""
    worker_kind: Literal["llm", "processor", "agent"] = "llm"
    system_prompt: Text | None = None
    """What the model is told; required for llm."""
    processing_backend: DottedName | None = None
    """Dotted path of the class, built as cls(**backend_config); required for processor."""
    backend_config: dict[str, Any] = Field(default_factory=dict)
    input_schema: JsonSchema | None = None
    """JSON Schema (Draft 2020-12) of the payload; absent means no check."""
    output_schema: JsonSchema | None = None
    """JSON Schema (Draft 2020-12) of the output; absent means no check."""
    input_schema_ref: DottedName | None = None
    """A Pydantic model, module.Model; an inline input_schema wins."""
    output_schema_ref: DottedName | None = None
    """A Pydantic model, module.Model; an inline output_schema wins."""
    default_model_tier: ModelTier | None = Field(
        None, validation_alias=AliasChoices("default_model_tier", "default_tier")
    )
    """The tier when nobody says another; standard for llm and agent, local for processor."""
    max_output_tokens: Size = 2000
    max_input_tokens: Size | None = None
    temperature: Number | None = None
    timeout_seconds: Seconds = 60
    """Run time of one attempt: a soft limit, then a hard one a grace later."""
    max_retries: Count = 2
    retry_backoff: Backoff = Backoff()
    rate_limit: Rate | None = None
    """Celery's form, "10/m", held over the whole cluster."""
    concurrency_key: ConcurrencyKey | None = None
    """A path into the payload, payload.customer: max_concurrent holds for each value; or a name that workers share."""
    max_concurrent: Size | None = None
    """How many tasks may run at once, over the whole cluster; 1 if there is only a concurrency_key."""
    reset_after_task: Literal[True] = True
    knowledge_sources: tuple[KnowledgeSource, ...] = ()
    """Files whose text stands before the system prompt."""
    knowledge_silos: tuple[Annotated[FolderSilo | ToolSilo, Field(discriminator="type")], ...] = ()
    """Folders that the worker reads, and may write; tools that its model may call."""
    workspace_dir: Text | None = None
    """The folder that file refs are read from, relative to the project."""
    resolve_file_refs: tuple[Text, ...] = ()
    """Payload fields that name a file; its content is added as <field>_content."""
    tool_timeout_seconds: Seconds = 30
    """How long one call of a tool may take."""
    stream: Flag = False
    """Whether those who watch the goal hear the model's text while it is written."""
    batch: Batch | None = None
    """Join tasks that are due at the same time in one call."""
    cache: Cache | None = None
    """Give answers again to tasks that ask the same."""

    @property
    def folders(self) -> tuple[FolderSilo, ...]:
        """The folders that it reads, and may write."""
        return tuple(silo for silo in self.knowledge_silos if isinstance(silo, FolderSilo))

    @property
    def tools(self) -> tuple[ToolSilo, ...]:
        """The tools that its model may call."""
        return tuple(silo for silo in self.knowledge_silos if isinstance(silo, ToolSilo))

    @property
    def tier(self) -> ModelTier:
        """The tier that tasks of this worker go to when neither stage nor message says one."""
        if self.default_model_tier is not None:
            return self.default_model_tier
        return ModelTier.LOCAL if self.worker_kind == "processor" else ModelTier.STANDARD

    @model_validator(mode="before")
    @classmethod
    def _one_tier(cls, data: Any) -> Any:
        if isinstance(data, dict) and {"default_model_tier", "default_tier"} <= data.keys():
            raise contradiction("default_tier is another name of default_model_tier", "default_tier", hint="keep one")
        return data

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.worker_kind == "processor" and self.processing_backend is None:
            raise contradiction("a processor needs a processing_backend", "worker_kind", id="LQ111")
        if self.worker_kind != "processor" and self.processing_backend is not None:
            message = f"a processing_backend makes no sense for worker_kind {self.worker_kind}"
            raise contradiction(message, "processing_backend", hint="write `worker_kind: processor`")
        if self.worker_kind == "llm" and self.system_prompt is None:
            raise contradiction("an llm worker needs a system_prompt", "worker_kind", id="LQ111")
        refuse_no_rate(self.rate_limit, "rate_limit")
        if self.concurrency_key == "payload":
            raise contradiction("the whole payload makes no key", "concurrency_key", hint="name a field: payload.field")
        self._check_model_keys()
        if self.resolve_file_refs and self.workspace_dir is None:
            raise contradiction("resolve_file_refs needs a workspace_dir", "resolve_file_refs")
        return self

    def _check_model_keys(self) -> None:
        """Refuse what only a model could use, names that are taken, and a batch of what cannot be joined."""
        for key in ("knowledge_sources", "knowledge_silos", "stream", "batch", "cache"):
            if self.worker_kind == "processor" and getattr(self, key):
                raise contradiction(f"{key} makes no sense for a processor", key, hint="it is for language models")
        names = [silo.name for silo in self.knowledge_silos]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise contradiction(f"two silos have the name {twice[0]}", "knowledge_silos")
        if self.batch is not None and self.tools:
            raise contradiction("a worker with tools cannot join its calls", "batch", hint="remove batch or the tools")
        if self.batch is not None and self.stream:
            raise contradiction("a joined call has no stream of its own", "batch", hint="remove batch or stream")
