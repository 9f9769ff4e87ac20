"""Synthesize: a model draws the conclusion from all results; the results stand side by side in any case."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loomq.contracts import Contract
from loomq.errors import ConfigError, LLMAnswerError, LLMError, PipelineWorkerError, SoftDeadline
from loomq.llm.base import StopReason
from loomq.llm.parsing import parse_object
from loomq.llm.tokens import request_tokens
from loomq.orchestrator import prompt
from loomq.orchestrator.asking import answer_of, memory_notes
from loomq.orchestrator.history import entries_of, written
from loomq.orchestrator.memory import Memory
from loomq.workers.llm import Answer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from loomq.llm.base import LLMReply, LLMRequest
    from loomq.orchestrator.checkpoint import CheckpointStore
    from loomq.orchestrator.history import Round, TaskRecord
    from loomq.orchestrator.manifest import Frozen
    from loomq.orchestrator.memory import About
    from loomq.workers.llm import LLMWorkers
    from loomq.workers.runtime import Job

_CONTRACT = Contract(prompt.SYNTHESIS_SCHEMA)
_CONCLUSION = (*prompt.SYNTHESIS_SCHEMA["properties"], "llm_error")
_LONGEST_ANSWER = 32_000
_PATIENCE = 0.9  # of the step's time: what is left is for giving the results without a conclusion


@dataclass(frozen=True)
class Synthesize:
    """Put the results of a goal together.

    Args:
        is_last_attempt: Whether the step is not tried again when the model fails.
    """

    frozen: Frozen
    about: About
    rounds: Sequence[Round]
    store: CheckpointStore
    is_last_attempt: bool

    @property
    def asks(self) -> bool:
        """Whether a model is asked."""
        return self.frozen.spec.synthesis == "llm"

    def most_tokens(self) -> int:
        """Estimate what the question may use."""
        if not self.asks:
            return 0
        messages = prompt.conversation([("user", "."), *prompt.result_texts(entries_of(self.rounds))])
        asked = request_tokens(prompt.request(self.frozen, prompt.synthesis_system(self.frozen), messages))
        spec = self.frozen.spec
        return min(asked, spec.checkpoint.token_threshold) + spec.max_output_tokens

    def run(self, models: LLMWorkers, job: Job) -> Answer:
        """Put them together.

        Raises:
            PipelineWorkerError: No task has a result.
            LLMError: The model failed, and may be asked again.
            LeaseLost: The step was taken back.
        """
        summary = self._summary(job.stage)
        if not self.asks:
            return Answer(
                summary | self._for_sessions(),
                "",
                {"prompt_tokens": 0, "completion_tokens": 0},
                {},
                [],
                _nothing,
                _nothing,
            )
        talk = models.talk(job.spec, job.tier, job.timeout_s * _PATIENCE, job.journal, cache_ttl_s=None)
        memory = self.memory(talk.run)
        try:
            reply = talk.run(self.request(memory))
            try:
                output = _read(reply)
            except LLMError:
                talk.reject()
                raise
        except (LLMError, ConfigError) as error:
            if error.retryable and not self.is_last_attempt:
                raise
            return answer_of(talk, summary | {"llm_error": error.message}, "", memory_notes(memory))
        except SoftDeadline:
            if not self.is_last_attempt:
                raise
            fault = f"the model did not answer within {job.timeout_s:g} s"
            return answer_of(talk, summary | {"llm_error": fault}, "", memory_notes(memory))
        return answer_of(talk, output, reply.model, memory_notes(memory))

    def memory(self, ask: Any) -> Memory:
        """Give what the model is told of what was before."""
        return Memory(self.frozen, self.about, entries_of(self.rounds), self.store, ask)

    def request(self, memory: Memory) -> LLMRequest:
        """Give the question; checkpoints are made on the way, if it takes any."""
        system = prompt.synthesis_system(self.frozen)
        messages = memory.messages(system, "Put the results together now, as one JSON object.")
        return prompt.request(self.frozen, system, messages, prompt.SYNTHESIS_SCHEMA)

    def _for_sessions(self) -> dict[str, Any]:
        """Give the results by task, as long as that is short: it is what a session is told as the answer."""
        found = {record.name: record.output for one in self.rounds for record in one.records if record.is_done}
        return {"results": found} if len(written(found)) <= _LONGEST_ANSWER else {}

    def _summary(self, stage: str) -> dict[str, Any]:
        """Say what there is to be put together, which must not be nothing."""
        records = [record for one in self.rounds for record in one.records]
        if done := sum(record.is_done for record in records):
            return {"summary": f"{done} of {len(records)} tasks have a result"}
        first = next((record for record in records if record.state in {"failed", "dead"}), None)
        why = f"; {first.name} failed: {first.fault().get('message')}" if first else ""
        raise PipelineWorkerError(
            f"none of the {len(records)} tasks has a result{why}",
            stage=stage,
            hint=f"see all of them: loomq show {self.about.goal_id}",
            retryable=False,
        )


def _read(reply: LLMReply) -> dict[str, Any]:
    if reply.stop_reason == StopReason.MAX_TOKENS:
        raise LLMError(f"the conclusion of {reply.model} was cut off at max_output_tokens", kind="truncated")
    found = parse_object(reply.content).value
    faults = _CONTRACT.errors({key: found[key] for key in prompt.SYNTHESIS_SCHEMA["properties"] if key in found})
    if faults:
        raise LLMAnswerError(f"the conclusion of {reply.model} breaks its contract: {'; '.join(faults)}")
    return {key: found[key] for key in prompt.SYNTHESIS_SCHEMA["properties"]}


def _nothing() -> None:
    """Do nothing."""


def merged(rounds: Sequence[Round], conclusion: Mapping[str, Any] | None) -> dict[str, Any]:
    """Give all results side by side, what failed too, with the conclusion if one was drawn (formats.md §3).

    Args:
        conclusion: What the synthesis gave: ``synthesis``, ``confidence``, ``conflicts`` and ``gaps``, or
            ``llm_error``.
    """
    records = [record for one in rounds for record in one.records]
    done = [record for record in records if record.is_done]
    lost = [record for record in records if record.has_ended and not record.is_done]
    models = Counter(record.model_used for record in done if record.model_used)
    return {
        **{key: value for key, value in (conclusion or {}).items() if key in _CONCLUSION},
        "succeeded": [
            {
                **_told(record),
                "output": record.output,
                "model_used": record.model_used,
                "processing_time_ms": record.processing_time_ms,
            }
            for record in done
        ],
        "failed": [{**_told(record), "status": record.status, "error": record.fault()} for record in lost],
        "metadata": {
            "total": len(records),
            "succeeded": len(done),
            "failed": len(lost),
            "rounds": len([one for one in rounds if one.tasks]),
            "total_processing_time_ms": sum(record.processing_time_ms or 0 for record in records),
            "models_used": sorted(models),
            "total_tokens": sum(record.tokens for record in records),
        },
    }


def _told(record: TaskRecord) -> dict[str, Any]:
    return {"task_id": record.task_id, "task": record.name, "worker_type": record.worker_type, "round": record.round}
