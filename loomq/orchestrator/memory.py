"""The memory of a goal's steps: the whole conversation while it is short, else a checkpoint and the last of it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loomq.contracts import Contract
from loomq.errors import EnvironmentNotReadyError, LLMAnswerError
from loomq.llm.base import LLMMessage, StopReason
from loomq.llm.parsing import parse_object
from loomq.llm.tokens import BYTES_A_TOKEN, estimated_tokens, request_tokens
from loomq.messages import CheckpointState
from loomq.orchestrator import prompt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from loomq.llm.base import LLMReply, LLMRequest
    from loomq.orchestrator.checkpoint import CheckpointStore
    from loomq.orchestrator.history import Entry, TaskRecord
    from loomq.orchestrator.manifest import Frozen

logger = logging.getLogger(__name__)

#: The number, in the journal, of the call that makes checkpoint 1: the same whenever it is made again.
FIRST_CHECKPOINT_ROUND = 100
_LEAST_TOKENS = 200  # what an interaction is told with at least
_LEAST_TEXT = 100
_MOST_ISSUES = 20
_SHORTER = (
    "That is no JSON object of this form, or it was cut off. Write the minutes once more, as one JSON object, shorter."
)
_MINUTES = Contract(prompt.MINUTES_SCHEMA)

Part = tuple[str, str]


@dataclass(frozen=True, slots=True)
class About:
    """The goal that a step is a part of."""

    goal_id: UUID
    instruction: str
    context: dict[str, Any]


@dataclass
class Memory:
    """What one step tells the model of what was before.

    Args:
        entries: All interactions so far.
        ask: Makes a call; with the number that it has in the journal.
        shape_only: The model is told no values of the context.
        made: How many checkpoints this step has made.
        lost: How many of them have no text of the model's, since that was no good.
        shortened: How many interactions it tells only in part.
    """

    frozen: Frozen
    about: About
    entries: Sequence[Entry]
    store: CheckpointStore
    ask: Callable[[LLMRequest, int], LLMReply]
    shape_only: bool = False
    made: int = 0
    lost: int = 0
    shortened: int = 0

    def messages(self, system: str, closing: str) -> tuple[LLMMessage, ...]:
        """Give the conversation that a step's call begins with, compressed if it is too long.

        Then all but the last interactions is compressed, as many at a time as one call takes.

        Args:
            system: The step's system prompt, which counts as well.
            closing: What is asked at the end.

        Raises:
            LLMError: A checkpoint could not be made.
        """
        rules = self.frozen.spec.checkpoint
        state = self._latest() if self.entries else None
        while True:
            rest = self.entries[state.covers if state else 0 :]
            found = prompt.conversation(self._parts(state, prompt.result_texts(rest), closing))
            length = request_tokens(prompt.request(self.frozen, system, found))
            # What another process has begun to compress is compressed to its end, so that both ask the same then.
            is_half_done = state is not None and state.covers < min(state.until, len(self.entries))
            if length <= rules.token_threshold and not is_half_done:
                return found
            if len(rest) <= rules.recent_window and not is_half_done:
                break
            until = state.until if state and is_half_done else len(self.entries) - rules.recent_window
            state = self._compress(state, self.entries[state.covers if state else 0 : until], until, length)
        fixed = prompt.conversation(self._parts(state, [], closing))
        room = rules.token_threshold - request_tokens(prompt.request(self.frozen, system, fixed))
        return prompt.conversation(self._parts(state, self._cut(prompt.result_texts(rest), room), closing))

    def _parts(self, state: CheckpointState | None, told: Sequence[Part], closing: str) -> list[Part]:
        about = self.about
        goal = prompt.goal_text(about.instruction, about.context, shape_only=self.shape_only)
        minutes = [("user", prompt.checkpoint_text(state))] if state else []
        return [("user", goal), *minutes, *told, ("user", closing)]

    def _cut(self, parts: Sequence[Part], room: int) -> list[Part]:
        """Tell so much of each interaction that all of them fit; what is left out is said to be.

        Short ones are told whole, and what they leave is the long ones'.
        """
        lengths = sorted(estimated_tokens(text) for _, text in parts)
        share, left = _LEAST_TOKENS, max(room, 0)
        for at, length in enumerate(lengths):
            share = max(_LEAST_TOKENS, left // (len(lengths) - at))
            if length > share:
                break
            left -= length
        else:
            return list(parts)
        found = []
        for role, text in parts:
            if estimated_tokens(text) <= share:
                found.append((role, text))
                continue
            kept = text.encode()[: share * BYTES_A_TOKEN].decode("utf-8", "ignore")
            found.append((role, f"{kept} [… {len(text) - len(kept):,} characters more, left out here]"))
            self.shortened += 1
        return found

    def _latest(self) -> CheckpointState | None:
        """Give the goal's newest checkpoint; without one, all is told anew."""
        try:
            found = self.store.latest(self.about.goal_id)
        except EnvironmentNotReadyError as error:
            logger.warning("the checkpoint of goal %s cannot be read: %s", self.about.goal_id, error.message)
            return None
        except ValueError as error:
            logger.warning("the checkpoint of goal %s is not one: %s", self.about.goal_id, error)
            return None
        return found if found is not None and 0 < found.covers <= len(self.entries) else None

    def _compress(
        self, before: CheckpointState | None, older: Sequence[Entry], until: int, length: int
    ) -> CheckpointState:
        """Make the next checkpoint, of the last one and as many older interactions as one call takes."""
        number = (before.checkpoint_number if before else 0) + 1
        system, closing = prompt.compression_system(), "Write the minutes anew."
        fixed = prompt.conversation(self._parts(before, [], closing))
        threshold = self.frozen.spec.checkpoint.token_threshold
        room = max(
            _LEAST_TOKENS,
            threshold - request_tokens(prompt.request(self.frozen, system, fixed, prompt.MINUTES_SCHEMA)),
        )
        taken, used = 0, 0
        for entry in older:
            used += estimated_tokens(entry.text)
            if taken and used > room:
                break
            taken += 1
        chunk = older[:taken]
        # All that has happened is told by one side here: it is a record, and no conversation to go on with.
        told = [("user", f"{'Plan' if entry.record is None else 'Result'}: {entry.text}") for entry in chunk]
        messages = prompt.conversation(self._parts(before, self._cut(told, room), closing))
        request = prompt.request(self.frozen, system, messages, prompt.MINUTES_SCHEMA)
        at_round = FIRST_CHECKPOINT_ROUND + 2 * (number - 1)
        reply = self.ask(request, at_round)
        minutes = _minutes(reply)
        if minutes is None:
            again = (
                LLMMessage(role="assistant", content=reply.content or "(nothing)"),
                LLMMessage(role="user", content=_SHORTER),
            )
            minutes = _minutes(self.ask(request.model_copy(update={"messages": (*messages, *again)}), at_round + 1))
        self.made += 1
        self.lost += minutes is None
        state = self._state(before, number, chunk, length, minutes).model_copy(update={"until": until})
        try:
            self.store.save(state, float(self.frozen.spec.checkpoint.ttl_seconds))
        except EnvironmentNotReadyError as error:
            logger.warning("checkpoint %s of goal %s is not kept: %s", number, self.about.goal_id, error.message)
        return state

    def _state(
        self,
        before: CheckpointState | None,
        number: int,
        chunk: Sequence[Entry],
        length: int,
        minutes: dict[str, Any] | None,
    ) -> CheckpointState:
        covers = (before.covers if before else 0) + len(chunk)
        records = [entry.record for entry in self.entries[:covers] if entry.record is not None]
        planned = [task for entry in self.entries[:covers] for task in entry.planned]
        done = {entry.record.name for entry in self.entries if entry.record is not None}
        if minutes is None:  # the model's were no good: what the rows say is true in any case
            earlier = before.executive_summary if before else ""
            share = self.frozen.spec.checkpoint.token_threshold // 8 * BYTES_A_TOKEN
            short = [entry.text[: max(_LEAST_TEXT, share // len(chunk))] for entry in chunk if entry.record is not None]
            told = f"{earlier} {_counted(records)} Beginnings of their results: {' … '.join(short)}"
            lost = [one for one in records if not one.is_done]
            minutes = {
                "executive_summary": told[-2 * share :].strip(),
                "open_issues": [f"{one.name}: {str(one.fault().get('message'))[:200]}" for one in lost[-_MOST_ISSUES:]],
                "decisions_made": list(before.decisions_made) if before else [],
            }
        return CheckpointState(
            goal_id=self.about.goal_id,
            original_instruction=self.about.instruction,
            executive_summary=minutes["executive_summary"],
            completed_tasks=tuple(_told(record) for record in records),
            pending_tasks=tuple(
                {"task": task.name, "worker_type": task.worker_type} for task in planned if task.name not in done
            ),
            open_issues=tuple(minutes["open_issues"]),
            decisions_made=tuple(minutes["decisions_made"]),
            context_token_count=length,
            checkpoint_number=number,
            covers=covers,
        )


def _minutes(reply: LLMReply) -> dict[str, Any] | None:
    """Read a checkpoint's text; ``None`` if it is none."""
    if reply.stop_reason == StopReason.MAX_TOKENS:
        return None
    try:
        found = parse_object(reply.content).value
    except LLMAnswerError:
        return None
    return found if _MINUTES.holds({key: found.get(key) for key in prompt.MINUTES_SCHEMA["properties"]}) else None


def _told(record: TaskRecord) -> dict[str, Any]:
    return {
        "task": record.name,
        "worker_type": record.worker_type,
        "status": record.status,
        "round": record.round,
    }


def _counted(records: Sequence[TaskRecord]) -> str:
    done = sum(record.is_done for record in records)
    return f"{len(records)} tasks have ended, {done} of them with a result."
