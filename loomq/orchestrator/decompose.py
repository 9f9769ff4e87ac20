"""Decompose: ask the model for a round's tasks, hold its plan against what there is, and ask once more if need be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loomq.errors import InvalidPlanError, LLMAnswerError
from loomq.llm.base import LLMMessage, StopReason
from loomq.llm.parsing import parse_json
from loomq.llm.tokens import request_tokens
from loomq.orchestrator import prompt
from loomq.orchestrator.asking import answer_of, memory_notes
from loomq.orchestrator.history import entries_of
from loomq.orchestrator.memory import Memory
from loomq.orchestrator.tasks import PlanReader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loomq.llm.base import LLMReply, LLMRequest
    from loomq.orchestrator.checkpoint import CheckpointStore
    from loomq.orchestrator.history import Round
    from loomq.orchestrator.manifest import Frozen
    from loomq.orchestrator.memory import About
    from loomq.orchestrator.tasks import Subtask
    from loomq.workers.llm import Answer, LLMWorkers
    from loomq.workers.runtime import Job


@dataclass(frozen=True)
class Decompose:
    """Make the plan of one round.

    Args:
        number: Which round, from 1.
        rounds: Those before.
    """

    frozen: Frozen
    about: About
    number: int
    rounds: Sequence[Round]
    store: CheckpointStore

    def most_tokens(self) -> int:
        """Estimate what the first question may use."""
        messages = prompt.conversation(
            [("user", prompt.goal_text(self.about.instruction, self.about.context)),
             *prompt.result_texts(entries_of(self.rounds))]
        )  # fmt: skip
        asked = request_tokens(prompt.request(self.frozen, prompt.planning_system(self.frozen), messages))
        spec = self.frozen.spec
        return min(asked, spec.checkpoint.token_threshold) + spec.max_output_tokens

    def run(self, models: LLMWorkers, job: Job) -> Answer:
        """Make the plan.

        Raises:
            InvalidPlanError: The plan was wrong, and so was the corrected one.
            LLMError: A call failed.
            LeaseLost, SoftDeadline: As of any worker.
        """
        cache = self.frozen.spec.plan_cache if self.number == 1 else None
        ttl_s = float(cache.ttl_seconds) if cache else None
        talk = models.talk(job.spec, job.tier, job.timeout_s, job.journal, cache_ttl_s=ttl_s)
        memory = self.memory(talk.run)
        request = self.request(memory)
        reply = talk.run(request)
        tasks, faults = self._read(reply)
        notes: dict[str, Any] = {}
        if faults:
            talk.withhold()
            notes["refused_plan"] = faults
            turns = (
                LLMMessage(role="assistant", content=reply.content or "(nothing)"),
                LLMMessage(role="user", content=prompt.faults_text(faults)),
            )
            reply = talk.run(request.model_copy(update={"messages": (*request.messages, *turns)}), 1)
            tasks, faults = self._read(reply)
            talk.share(request, reply)  # whoever asks the same is to get the plan that holds
        if faults:
            talk.withhold()
            if job.journal is not None:
                job.journal.drop(0)  # whoever replays it asks anew
            raise InvalidPlanError(
                f"{reply.model} gave a plan that cannot be used, also when it was told why: {'; '.join(faults)}",
                stage=job.stage,
                hint=f"look at its prompt and answers: loomq explain {self.about.goal_id}/{job.stage};"
                " another model, or a clearer system_prompt, may do better",
            )
        output = {"tasks": [task.to_json() for task in tasks]}
        return answer_of(talk, output, reply.model, {**notes, **memory_notes(memory)})

    def memory(self, ask: Any) -> Memory:
        """Give what the model is told of what was before."""
        cache = self.frozen.spec.plan_cache
        is_shape = cache is not None and cache.match == "shape" and self.number == 1
        return Memory(self.frozen, self.about, entries_of(self.rounds), self.store, ask, shape_only=is_shape)

    def request(self, memory: Memory) -> LLMRequest:
        """Give the first question; checkpoints are made on the way, if it takes any."""
        system = prompt.planning_system(self.frozen)
        closing = prompt.round_text(self.number, self.frozen.spec.max_rounds)
        return prompt.request(self.frozen, system, memory.messages(system, closing))

    def _read(self, reply: LLMReply) -> tuple[list[Subtask], list[str]]:
        if reply.stop_reason == StopReason.MAX_TOKENS:
            most = self.frozen.spec.max_output_tokens
            return [], [f"the answer was cut off at {most:,} tokens; answer with fewer or shorter tasks"]
        try:
            value = parse_json(reply.content).value
        except LLMAnswerError as error:
            return [], [error.message]
        ended = {record.name: record.is_done for one in self.rounds for record in one.records}
        known: dict[str, Any] = {
            one.name: {"output": one.output, "model_used": one.model_used}
            for one_round in self.rounds
            for one in one_round.records
            if one.is_done
        }
        about = self.about
        known["goal"] = {"goal_id": str(about.goal_id), "instruction": about.instruction, "context": about.context}
        reader = PlanReader(self.frozen, ended, known)
        tasks = reader.read(value, may_be_empty=self.number > 1)
        return tasks, reader.faults
