"""The lifecycle of a task: input contract, file refs, work, output contract, and always the reset."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from loomq.errors import NotSupportedYetError, PipelineValidationError
from loomq.workers import concurrency
from loomq.workers.deadline import hard_deadline, soft_deadline
from loomq.workspace import WorkspaceManager

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loomq.contracts import Contract
    from loomq.workers.concurrency import Semaphore
    from loomq.workers.journal import Journal
    from loomq.workers.llm import Answer, LLMWorkers
    from loomq.workers.processor import Processors
    from loomq.workers.spec import WorkerSpec


class Program(Protocol):
    """A task that asks a model more than one question, or maybe none."""

    def most_tokens(self) -> int:
        """Estimate how many tokens its first question may use, its answer included."""

    def run(self, models: LLMWorkers, job: Job) -> Answer:
        """Do the task; errors as of ``LLMWorkers.run``."""


@dataclass(frozen=True, slots=True)
class Job:
    """One task as its worker sees it.

    Args:
        stage: What error texts call it.
        journal: Where it writes down what models and tools have answered; nowhere without.
        tier: Which class of model runs it, after the router's overrides.
        timeout_s: Run time until the soft deadline.
        program: What is done in place of asking the worker's model once.
    """

    stage: str
    spec: WorkerSpec
    tier: str
    payload: dict[str, Any]
    inputs: Contract | None
    outputs: Contract | None
    timeout_s: float
    journal: Journal | None = None
    program: Program | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """What a worker gave.

    Args:
        notes: What is to be told of it besides, for people.
        updates: The changes of silos that come with it, as the store keeps them.
        reject: To be called if it cannot be kept after all.
    """

    output: dict[str, Any]
    model_used: str | None
    token_usage: dict[str, int] | None
    processing_time_ms: int
    notes: dict[str, Any] = field(default_factory=dict)
    updates: list[dict[str, Any]] = field(default_factory=list)
    reject: Callable[[], None] = lambda: None


class WorkerRuntime:
    """Run tasks in this process.

    Args:
        processors: The Python processors of this process.
        models: Its language models.
        project: What relative workspace folders are relative to.
        grace_s: From the soft deadline to the end of the process.
        own_process: Says whether this process may be ended for a task that does not stop.
    """

    def __init__(
        self,
        processors: Processors,
        models: LLMWorkers,
        project: Path,
        grace_s: float,
        *,
        own_process: Callable[[], bool],
    ) -> None:
        self._processors = processors
        self._models = models
        self._project = project
        self._grace_s = grace_s
        self._own_process = own_process

    @property
    def has_own_process(self) -> bool:
        """Whether this process may be ended for a task that does not stop."""
        return self._own_process()

    def semaphore(self, job: Job) -> Semaphore | None:
        """Say which semaphore a task needs for itself, within its deadline; errors as in ``run``."""
        if job.spec.worker_kind == "processor":
            # The first look imports the user's code.
            with nullcontext() if self._processors.knows(job.spec) else self._deadlines(job):
                if self._processors.writes_alone(job.spec):
                    return concurrency.of_writes(job.spec)
        return concurrency.of_key(job.spec, job.payload)

    @contextmanager
    def _deadlines(self, job: Job) -> Iterator[None]:
        with (
            hard_deadline(job.timeout_s + self._grace_s, own_process=self.has_own_process),
            soft_deadline(job.timeout_s),
        ):
            yield

    def check_input(self, job: Job) -> None:
        """Hold a task's payload against its contract.

        Raises:
            PipelineValidationError: It breaks it.
        """
        if job.inputs:
            job.inputs.check(job.payload, "input", stage=job.stage)

    def most_tokens(self, job: Job) -> int:
        """Estimate how many tokens of language models a task may use: its prompt's, and all that it may answer."""
        if job.program is not None:
            return job.program.most_tokens()
        if job.spec.worker_kind != "llm":
            return 0
        return self._models.most_tokens(job.spec, self._with_files(job))

    def run(self, job: Job) -> Done:
        """Run one task to its end.

        Raises:
            PipelineValidationError: The payload or the output breaks its contract.
            SoftDeadline: The stage's time was up.
            Exception: Whatever the worker's code raised.
        """
        self.check_input(job)
        payload = self._with_files(job)
        if job.spec.worker_kind == "agent":
            raise NotSupportedYetError(
                f"worker {job.spec.name}: worker_kind {job.spec.worker_kind} is not supported yet"
            )
        started = time.monotonic()
        with self._deadlines(job):
            found = self._work(job, payload)
        spent_ms = round((time.monotonic() - started) * 1000)
        if isinstance(found, dict):
            self._check_output(job, found["output"])
            return Done(found["output"], found.get("model_used"), found.get("token_usage"), spent_ms)
        try:
            self._check_output(job, found.output)
        except PipelineValidationError:
            found.reject()
            raise
        found.accept()
        return Done(
            found.output,
            found.model_used or None,
            found.token_usage,
            spent_ms,
            found.notes,
            found.updates,
            found.reject,
        )

    def _work(self, job: Job, payload: dict[str, Any]) -> dict[str, Any] | Answer:
        if job.program is not None:
            return job.program.run(self._models, job)
        if job.spec.worker_kind == "llm":
            return self._models.run(job.spec, payload, job.tier, job.timeout_s, job.journal)
        return self._processors.run(job.spec, payload, job.timeout_s)

    def _check_output(self, job: Job, output: dict[str, Any]) -> None:
        if job.outputs:
            job.outputs.check(output, "output", stage=job.stage)

    def _with_files(self, job: Job) -> dict[str, Any]:
        """Add the content of each file ref as ``<field>_content``: JSON if it parses, else text."""
        if not job.spec.resolve_file_refs:
            return job.payload
        workspace = WorkspaceManager(self._project / Path(job.spec.workspace_dir or "").expanduser())
        found = dict(job.payload)
        for name in job.spec.resolve_file_refs:
            ref = job.payload.get(name)
            if ref is None:
                continue
            try:
                text = workspace.read_text(str(ref))
            except Exception as error:
                raise PipelineValidationError(f"file ref {name}: {error}", stage=job.stage) from error
            try:
                found[f"{name}_content"] = json.loads(text)
            except ValueError:
                found[f"{name}_content"] = text
        return found
