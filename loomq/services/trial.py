"""Try one worker on one payload: the code that a queue's message runs, without queue and database."""

from __future__ import annotations

import time
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loomq.errors import PipelineStageError, PipelineValidationError
from loomq.llm.asking import Asker
from loomq.llm.http import HttpPool
from loomq.llm.tiers import Tiers
from loomq.registry import project_on_path
from loomq.runs.faults import as_stage_error
from loomq.runs.freeze import freeze_worker
from loomq.runs.snapshot import parse
from loomq.tools.toolbox import Toolboxes
from loomq.workers.llm import LLMWorkers
from loomq.workers.loop import EventLoop
from loomq.workers.processor import Processors
from loomq.workers.runtime import WorkerRuntime

if TYPE_CHECKING:
    from typing import TextIO

    from loomq.contracts import Contract
    from loomq.llm.base import LLMMessage, LLMReply, LLMRequest
    from loomq.loom import Loom
    from loomq.workers.conversation import Conversation
    from loomq.workers.journal import Journal
    from loomq.workers.llm import Answer
    from loomq.workers.spec import WorkerSpec

SCHEMA_VERSION = 1
_CLOSING_S = 2.0


@dataclass
class Trial:
    """What came of it.

    Args:
        prompt: What the model was sent; ``None`` if none was asked.
        turns: What it and its tools said on the way.
        reply: What it answered in the end.
        cost: US dollars; ``None`` if no model was asked, or nobody knows.
        silo_updates: The changes of silos that it asked for; none was made.
        output: What the worker gave, even if its contract refuses it.
        fault: What the stage of a goal would have failed with.
    """

    worker: str
    kind: str
    tier: str
    payload: dict[str, Any]
    input_errors: list[str] | None = None
    prompt: LLMRequest | None = None
    turns: list[LLMMessage] = field(default_factory=list)
    reply: LLMReply | None = None
    output: dict[str, Any] | None = None
    output_errors: list[str] | None = None
    model_used: str | None = None
    token_usage: dict[str, int] | None = None
    cost: float | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    silo_updates: list[dict[str, Any]] = field(default_factory=list)
    took_ms: int = 0
    fault: PipelineStageError | None = field(default=None)

    def to_json(self) -> dict[str, Any]:
        """Describe the trial."""
        return {
            "schema_version": SCHEMA_VERSION,
            "worker": self.worker,
            "kind": self.kind,
            "tier": self.tier,
            "input": {"value": self.payload, "contract": verdict(self.input_errors), "errors": self.input_errors or []},
            "prompt": self.prompt.model_dump(mode="json") if self.prompt else None,
            "turns": [turn.model_dump(mode="json") for turn in self.turns],
            "answer": self.reply.model_dump(mode="json") if self.reply else None,
            "output": {
                "value": self.output,
                "contract": verdict(self.output_errors) if self.output is not None else None,
                "errors": self.output_errors or [],
            },
            "model_used": self.model_used,
            "token_usage": self.token_usage,
            "cost_usd": self.cost,
            "notes": self.notes,
            "silo_updates": self.silo_updates,
            "took_ms": self.took_ms,
            "error": self.fault.to_json() if self.fault else None,
        }


def verdict(errors: list[str] | None) -> str:
    """Say how a contract stands: ``none`` if there is no contract, else ``holds`` or ``broken``."""
    return "none" if errors is None else "broken" if errors else "holds"


def attempt(loom: Loom, worker: str, payload: dict[str, Any], *, tier: str | None, prints: TextIO) -> Trial:
    """Run a worker once.

    Args:
        tier: Another tier than the worker's own; the router's override wins.
        prints: Where what the worker prints goes.

    Raises:
        ConfigError: The project's files have errors.
    """
    settings = loom.settings
    project_on_path(settings.project)
    plan = parse(freeze_worker(loom.catalog, worker, allow=settings.import_allow))
    stage = plan.stages[worker]
    chosen = loom.router.tier(worker, tier or stage.tier)
    job = stage.job(payload, tier=chosen, timeout_s=stage.timeout_s)
    found = Trial(worker, stage.worker.worker_kind, chosen, payload, _errors(stage.inputs, payload))
    loop, pool = EventLoop(), HttpPool()
    runtime = WorkerRuntime(
        _SeenProcessors(found, loom, loop),
        _SeenModels(found, loom, Asker(Tiers(pool, insecure=settings.insecure)), loop),
        settings.project,
        settings.grace_seconds,
        own_process=lambda: False,
    )
    begun = time.monotonic()
    try:
        with redirect_stdout(prints):
            done = runtime.run(job)
        found.model_used, found.token_usage, found.notes = done.model_used, done.token_usage, done.notes
    except Exception as error:  # noqa: BLE001  (whatever a worker raises is its failure, as in a goal)
        found.fault = as_stage_error(error, worker, worker, stage.timeout_s)
        found.fault.__cause__ = error
    finally:
        if found.prompt is not None:
            loop.run(pool.aclose(), _CLOSING_S)
    found.took_ms = round((time.monotonic() - begun) * 1000)
    if found.output is not None:
        found.output_errors = _errors(stage.outputs, found.output)
    return found


def is_callers_fault(trial: Trial) -> bool:
    """Say whether the payload, and not the worker, is what is wrong."""
    return isinstance(trial.fault, PipelineValidationError) and bool(trial.input_errors)


def _errors(contract: Contract | None, value: Any) -> list[str] | None:
    return None if contract is None else contract.errors(value)


class _SeenProcessors(Processors):
    """Processors whose output is kept before its contract is checked."""

    def __init__(self, trial: Trial, loom: Loom, loop: EventLoop) -> None:
        super().__init__(loom.settings.project, loom.settings.import_allow, loop)
        self._trial = trial

    def run(self, spec: WorkerSpec, payload: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Run as always."""
        found = super().run(spec, payload, timeout_s)
        self._trial.output = found["output"]
        return found


class _SeenModels(LLMWorkers):
    """Language models whose conversation and output are kept."""

    def __init__(self, trial: Trial, loom: Loom, asker: Asker, loop: EventLoop) -> None:
        settings = loom.settings
        toolboxes = Toolboxes(settings.project, settings.import_allow)
        super().__init__(asker, loop, toolboxes, settings.project, redacts=settings.redact_outputs)
        self._trial = trial

    def converse(self, talk: Conversation, request: LLMRequest) -> LLMReply:
        """Hold it as always."""
        self._trial.prompt, self._trial.turns = request, talk.turns
        try:
            self._trial.reply = super().converse(talk, request)
        finally:
            if (used := talk.used).rounds:
                self._trial.cost = used.cost
                tokens = {"prompt_tokens": used.prompt_tokens, "completion_tokens": used.completion_tokens}
                self._trial.token_usage = tokens
        return self._trial.reply

    def run(
        self,
        spec: WorkerSpec,
        payload: dict[str, Any],
        tier: str,
        timeout_s: float,
        journal: Journal | None = None,
    ) -> Answer:
        """Run as always."""
        found = super().run(spec, payload, tier, timeout_s, journal)
        self._trial.output = found.output
        self._trial.silo_updates = [{**one["asked"], "reason": one["reason"]} for one in found.updates]
        return found
