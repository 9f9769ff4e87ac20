"""LLM workers: prompt in, one JSON object out, with tools and knowledge on the way."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from loomq.errors import LLMAnswerError, LLMError, LLMUnavailableError, SoftDeadline
from loomq.llm.tokens import request_tokens
from loomq.workers.batching import Batcher, UnusableBatchError
from loomq.workers.journal import NullJournal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from loomq.knowledge.spec import FolderSilo
    from loomq.knowledge.updates import Refused, Update
    from loomq.llm.asking import Asker
    from loomq.llm.base import LLMReply, LLMRequest
    from loomq.llm.parsing import Parsed
    from loomq.tools.toolbox import Toolboxes
    from loomq.workers.accounting import Account
    from loomq.workers.conversation import Conversation
    from loomq.workers.journal import Journal
    from loomq.workers.loop import EventLoop
    from loomq.workers.spec import WorkerSpec


@dataclass(frozen=True)
class Answer:
    """What an LLM worker gave.

    Args:
        notes: What is to be told of it besides: how the answer was read, what could not be loaded, rounds of tools.
        updates: The changes of silos that it asks for, as they are written down with the result; those that are refused
            already have a ``reason``.
        accept, reject: To be called when it is clear whether it holds its contract.
    """

    output: dict[str, Any]
    model_used: str
    token_usage: dict[str, int]
    notes: dict[str, Any]
    updates: list[dict[str, Any]]
    accept: Callable[[], None]
    reject: Callable[[], None]


class LLMWorkers:
    """The language models of one process.

    Args:
        asker: Asks the model that serves a tier.
        loop: Where calls run.
        toolboxes: The process's tools.
        project: What paths of knowledge are relative to.
        joins: Whether calls of this process may be joined: not where it runs one task at a time.
        redacts: Whether secrets are hidden in what models and tools say.
    """

    def __init__(
        self,
        asker: Asker,
        loop: EventLoop,
        toolboxes: Toolboxes,
        project: Path,
        *,
        joins: Callable[[], bool] = lambda: False,
        redacts: bool = True,
    ) -> None:
        self._asker = asker
        self._loop = loop
        self._toolboxes = toolboxes
        self._project = project
        self._joins = joins
        self._redacts = redacts
        self._batcher = Batcher()

    def run(
        self,
        spec: WorkerSpec,
        payload: dict[str, Any],
        tier: str,
        timeout_s: float,
        journal: Journal | None = None,
    ) -> Answer:
        """Ask the tier's model, let it use the worker's tools, and read the object in its last answer.

        Raises:
            ConfigError: The tier has no backend or no model.
            KnowledgeError: What the worker needs to know cannot be loaded.
            LLMError: The prompt is too long, a call failed, or the answer cannot be used. Transport and an answer
                without an object are ``retryable``; an object that breaks its contract is not (formats.md §2).
            LeaseLost: The task was taken back meanwhile.
            SoftDeadline: The time was up.
        """
        from loomq.knowledge.load import folder_of
        from loomq.workers.prompt import UPDATES, knowledge_of, request_of

        until, journal = time.monotonic() + timeout_s, journal or NullJournal()
        knowledge = knowledge_of(spec, self._project, lambda silo: journal.settle(folder_of(self._project, silo)))
        toolbox, missing = self._toolboxes.of(spec.name, spec.tools)
        talk = self._conversation(spec, tier, until, toolbox, journal)
        request = request_of(spec, payload, timeout_s, knowledge, toolbox.definitions)
        reply = self.converse(talk, request)
        try:
            parsed = output_of(spec, reply)
        except LLMError:
            talk.reject()
            raise
        used, output = talk.used, dict(parsed.value)
        updates = self._updates(output.pop(UPDATES), spec) if spec.folders and UPDATES in output else []
        notes = {
            "repair": parsed.repair,
            "degraded_modes": [*knowledge.degraded, *missing],
            "stood_in": list(talk.stood_in.values()),
            "rounds": used.rounds if used.rounds > 1 else None,
            "from_cache": used.from_cache,
            "reused": used.reused,
        }
        return Answer(
            output=output,
            model_used=reply.model,
            token_usage={"prompt_tokens": used.prompt_tokens, "completion_tokens": used.completion_tokens},
            notes={name: value for name, value in notes.items() if value},
            updates=updates,
            accept=talk.accept,
            reject=talk.reject,
        )

    def talk(
        self, spec: WorkerSpec, tier: str, timeout_s: float, journal: Journal | None, *, cache_ttl_s: float | None
    ) -> Conversation:
        """Begin a conversation without tools, for a task that asks more than one question.

        Args:
            cache_ttl_s: How long answers are kept for others, unless they are withheld; ``None`` keeps none.
        """
        until, toolbox = time.monotonic() + timeout_s, self._toolboxes.of(spec.name, ())[0]
        found = self._conversation(spec, tier, until, toolbox, journal or NullJournal())
        found.terms = replace(found.terms, cache_ttl_s=cache_ttl_s)
        return found

    def converse(self, talk: Conversation, request: LLMRequest) -> LLMReply:
        """Hold a conversation; errors as in ``run``."""
        return talk.run(request)

    def _updates(self, asked: Any, spec: WorkerSpec) -> list[dict[str, Any]]:
        """Read the changes that an answer asks for, as they are written down with the result."""
        from loomq.knowledge.updates import read_updates

        silos = {silo.name: silo for silo in spec.folders}
        updates, refused = read_updates(asked, silos)
        return [*(self._row(silos[one.silo], one) for one in updates), *map(_refusal, refused)]

    def _row(self, silo: FolderSilo, update: Update) -> dict[str, Any]:
        from loomq.knowledge.load import folder_of

        said = {"silo": update.silo, "action": update.action, "filename": update.filename, "content": update.content}
        where = {"folder": folder_of(self._project, silo), "host": socket.gethostname()}
        return {**where, "silo": silo.model_dump(mode="json"), "asked": said, "reason": None}

    def most_tokens(self, spec: WorkerSpec, payload: dict[str, Any]) -> int:
        """Estimate how many tokens a task's first round may use: its prompt's, and all that it may answer."""
        from loomq.workers.prompt import request_of

        return request_tokens(request_of(spec, payload, 1.0)) + spec.max_output_tokens

    def _conversation(self, spec: WorkerSpec, tier: str, until: float, toolbox: Any, journal: Journal) -> Conversation:
        from loomq.workers.conversation import Conversation, Terms

        terms = Terms(
            tier=tier,
            worker=spec.name,
            until=until,
            tool_timeout_s=spec.tool_timeout_seconds,
            max_input_tokens=spec.max_input_tokens,
            streams=spec.stream,
            cache_ttl_s=spec.cache.ttl_seconds if spec.cache else None,
            redacts=self._redacts,
        )
        talk = Conversation(self._asker, self._loop, toolbox, journal, terms)
        if spec.batch is not None and self._joins():
            talk.ask = lambda request, account: self._in_batch(spec, talk, request, account)
        return talk

    def _in_batch(self, spec: WorkerSpec, talk: Conversation, request: LLMRequest, account: Account) -> LLMReply:
        """Ask together with others, or alone if that gave nothing; what it cost is shared."""
        assert spec.batch is not None
        backend = self._asker.tiers.backend(talk.terms.tier)
        self._loop.run(account.asking(backend), talk.terms.left_s)

        def call(joint: LLMRequest) -> LLMReply:
            if talk.terms.max_input_tokens is not None and request_tokens(joint) > talk.terms.max_input_tokens:
                raise LLMError("the inputs are too long together", kind="context_overflow")
            # Models that stand in are each task's own affair, and on its own account.
            return self._loop.run(self._asker.ask(joint, talk.terms.tier, stand_ins=False), talk.terms.left_s)

        try:
            return self._batcher.ask(spec.batch, talk.terms.tier, request, call, talk.terms.left_s)
        except UnusableBatchError as error:
            share = error.share
            if share is not None:
                account.waste(backend, share.prompt_tokens, share.completion_tokens, share.cost)
            else:
                fault = LLMError("the batch was not taken")
                self._loop.run(account.failed(backend, fault), talk.terms.left_s)
        except SoftDeadline:  # of whoever made the call, if there is time left here
            self._loop.run(account.failed(backend, LLMUnavailableError("the batch", kind="timeout")), talk.terms.left_s)
        except LLMError as error:
            self._loop.run(account.failed(backend, error), talk.terms.left_s)
            raise
        return talk.ask_alone(request, account)


def output_of(spec: WorkerSpec, reply: LLMReply) -> Parsed:
    """Read the object in an answer.

    Raises:
        LLMAnswerError: There is none.
        LLMError: The answer was cut off.
    """
    from loomq.llm.base import StopReason
    from loomq.llm.parsing import parse_object

    if reply.stop_reason == StopReason.MAX_TOKENS:
        raise LLMError(
            f"the answer of {reply.model} was cut off at max_output_tokens, {spec.max_output_tokens:,}",
            hint=f"raise max_output_tokens in worker {spec.name}, or ask for less",
            kind="truncated",
        )
    if reply.stop_reason == StopReason.TOOL_USE:
        raise LLMAnswerError(f"{reply.model} stopped for a tool and asked for none")
    return parse_object(reply.content)


def _refusal(refused: Refused) -> dict[str, Any]:
    return {"folder": "", "silo": {}, "asked": refused.asked, "reason": refused.reason}
