"""One task's conversation with a model: rounds of tools, each written down before the next is paid for."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loomq.errors import LLMAnswerError, LLMError, SoftDeadline
from loomq.ids import uuid7
from loomq.inline import storable
from loomq.llm.base import LLMMessage, LLMReply, StopReason
from loomq.llm.tokens import BYTES_A_TOKEN, request_tokens
from loomq.redaction import redacted, redacted_content, redacted_json
from loomq.workers.accounting import Account
from loomq.workers.journal import Asked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from loomq.llm.asking import Asker
    from loomq.llm.base import LLMRequest, TextListener, ToolCall
    from loomq.tools.toolbox import Toolbox
    from loomq.workers.journal import Journal, Recalled
    from loomq.workers.loop import EventLoop

MAX_TOOL_ROUNDS = 10
_TELL_EVERY_S = 0.5
_GRACE_S = 5.0
_FREE = {"cost": 0.0, "prompt_tokens": 0, "completion_tokens": 0, "cached_tokens": 0, "cache_write_tokens": 0}
_KEY_BEGINS, _KEY_ENDS = "-----BEGIN", "-----END"
_LARGE = 1e15  # from where on numbers may be written with an exponent


@dataclass(frozen=True, slots=True)
class Terms:
    """Under which terms a task asks.

    Args:
        tier: Whose model.
        until: When its time is up, on the monotonic clock.
        tool_timeout_s: How long one tool may take.
        max_input_tokens: The longest prompt, in estimated tokens.
        streams: Whether those who watch the goal hear the text while it is written.
        cache_ttl_s: How long answers are kept for others; ``None`` keeps none, and takes none.
        redacts: Whether secrets are hidden in what models and tools answer.
    """

    tier: str
    worker: str
    until: float
    tool_timeout_s: float = 30.0
    max_input_tokens: int | None = None
    streams: bool = False
    cache_ttl_s: float | None = None
    redacts: bool = True

    @property
    def left_s(self) -> float:
        """How much time is left.

        Raises:
            SoftDeadline: None is.
        """
        left = self.until - time.monotonic()
        if left <= 0:
            raise SoftDeadline("the task's time is up")
        return left


@dataclass
class Used:
    """What the rounds of a conversation have used, those too that were paid for before.

    Args:
        cost: US dollars; ``None`` if a price is not known.
        from_cache: Rounds that were answered from the cache of answers.
        reused: Rounds that an earlier delivery of the task had paid for.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = 0.0
    rounds: int = 0
    from_cache: int = 0
    reused: int = 0

    def add(self, reply: LLMReply) -> None:
        """Count a round."""
        self.rounds += 1
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens
        self.cost = None if self.cost is None or reply.cost is None else self.cost + reply.cost


@dataclass
class Conversation:
    """Ask until there is an answer that asks for nothing more.

    Args:
        ask: Makes one call, if not the asker by itself (a batch).
        turns: The conversation as it went, for whoever looks at it.
        stood_in: The models that answered in place of the tier's own, with what that one failed with.
    """

    asker: Asker
    loop: EventLoop
    toolbox: Toolbox
    journal: Journal
    terms: Terms
    ask: Callable[[LLMRequest, Account], LLMReply] | None = None
    used: Used = field(default_factory=Used)
    turns: list[LLMMessage] = field(default_factory=list)
    stood_in: dict[str, str] = field(default_factory=dict)
    _recalled: Recalled | None = None
    _fresh: list[tuple[str, LLMReply]] = field(default_factory=list)
    _cached: list[str] = field(default_factory=list)
    _last: int = 0
    _asked_for: str = ""

    def run(self, request: LLMRequest, first: int = 0) -> LLMReply:
        """Hold the conversation to its end.

        Args:
            first: The number of its first round in the journal, for a task that holds more than one.

        Raises:
            ConfigError: The tier has no backend or no model.
            LLMError: A call failed, the prompt has become too long, or the model does not come to an end.
            LeaseLost: The task was taken back.
            SoftDeadline: The time was up.
        """
        self._recalled = self.journal.recall()
        for self._last in range(first, first + MAX_TOOL_ROUNDS + 1):
            may_call = bool(request.tools) and self._last < first + MAX_TOOL_ROUNDS
            asked = request.model_copy(update={"may_call_tools": may_call or not request.tools})
            reply = self._reply(self._last, asked)
            self.used.add(reply)
            if reply.asked and not self._is_own(reply):
                self.stood_in.setdefault(reply.asked, reply.asked)
            if reply.stop_reason == StopReason.PAUSE_TURN:
                turns: tuple[LLMMessage, ...] = (reply.as_turn(),)
            elif reply.tool_calls and may_call and reply.stop_reason != StopReason.MAX_TOKENS:
                turns = (reply.as_turn(), *self._results(self._last, reply.tool_calls))
            else:
                return self._ended(reply, request)
            self.turns += turns
            request = request.model_copy(update={"messages": (*request.messages, *turns)})
        self.reject()
        raise LLMError(
            f"{reply.model} did not come to an end within {MAX_TOOL_ROUNDS} rounds",
            hint="ask for less in system_prompt",
        )

    def _ended(self, reply: LLMReply, request: LLMRequest) -> LLMReply:
        if not reply.tool_calls or reply.stop_reason == StopReason.MAX_TOKENS:
            return reply
        self.reject()
        if request.tools:
            raise LLMError(
                f"{reply.model} still asked for tools after {MAX_TOOL_ROUNDS} rounds of them",
                hint="ask for less in system_prompt, or let the tools give more at once",
            )
        raise LLMAnswerError(f"{reply.model} asked for a tool, and worker {self.terms.worker} has none")

    def accept(self) -> None:
        """Keep the answers for others, where the worker allows it; its result has held its contract."""
        if self.terms.cache_ttl_s is not None:
            for key, reply in self._fresh:
                self.journal.cache(key, reply, self.terms.cache_ttl_s)

    def reject(self) -> None:
        """Forget the last round, since its answer was no good: the next attempt shall ask anew."""
        self.journal.drop(self._last)
        self.withhold()

    def share(self, request: LLMRequest, reply: LLMReply) -> None:
        """Keep a reply for others who ask something, once it is accepted, though it answered another question."""
        key = self._cache_key(request_hash(request))
        if key is not None and self._is_own(reply):
            self._fresh.append((key, reply))

    def withhold(self) -> None:
        """Keep the answers so far from others, and those that came from there too: they were no good."""
        for key in self._cached:
            self.journal.uncache(key)
        self._cached.clear()
        self._fresh.clear()

    # One round

    def _reply(self, at: int, request: LLMRequest) -> LLMReply:
        """Give the reply of a round: as it is written down, from the cache, or from the model."""
        self._check_length(request)
        digest = self._asked_for = request_hash(request)
        assert self._recalled is not None
        if found := self._recalled.replies.get((at, digest)):
            self.used.reused += 1
            return found
        key = self._cache_key(digest)
        if key is not None and (found := self.journal.cached(key)):
            self.used.from_cache += 1
            self._cached.append(key)
            free = found.model_copy(update=_FREE)
            asked = Asked(uuid7(), at, digest, found.provider, found.model, 0, 0, 0.0)
            self.journal.keep_reply(asked, free, is_usable=True, is_cached=True, took_ms=0)
            return free
        has_budget, tiers = self._recalled.has_budget, self.asker.tiers
        account = Account(self.journal, self.loop, tiers, at, digest, request, has_budget=has_budget)
        reply = self._asked(request, account)
        if not self._is_own(reply):
            self.stood_in[reply.asked] = f"{reply.asked}, since {account.fault}"
        elif key is not None:
            self._fresh.append((key, reply))
        return reply

    def _is_own(self, reply: LLMReply) -> bool:
        """Say whether the tier's own model gave a reply, and none that stood in."""
        backend = self.asker.tiers.backend(self.terms.tier)
        return (reply.provider, reply.asked) == (backend.code, backend.model)

    def _asked(self, request: LLMRequest, account: Account) -> LLMReply:
        # The task's own end is for the loop to tell, as what it is.
        request = request.model_copy(update={"timeout_s": self.terms.left_s + _GRACE_S})
        begun = time.monotonic()
        reply = (self.ask or self.ask_alone)(request, account)
        # As it is written down, so that whoever reads it there goes on with the same.
        reply = LLMReply.model_validate(
            storable((_without_secrets(reply) if self.terms.redacts else reply).model_dump())
        )
        account.keep(reply, round((time.monotonic() - begun) * 1000))
        return reply

    def ask_alone(self, request: LLMRequest, account: Account) -> LLMReply:
        """Make one call for this task and no other."""
        return self.loop.run(self._call(request, account), self.terms.left_s)

    async def _call(self, request: LLMRequest, account: Account) -> LLMReply:
        async with self._telling(account.round) as on_text:
            return await self.asker.ask(request, self.terms.tier, watch=account, on_text=on_text)

    @asynccontextmanager
    async def _telling(self, at: int) -> AsyncIterator[TextListener | None]:
        """Tell the text while it is written, some pieces at a time; secrets are looked for in all that came so far."""
        if not self.terms.streams:
            yield None
            return
        pieces: list[str] = []
        told = ""

        async def tell(*, all_of_it: bool) -> None:
            nonlocal told
            shown = redacted("".join(pieces) if all_of_it else _settled("".join(pieces)))
            begun = next((at for at, (old, new) in enumerate(zip(told, shown, strict=False)) if old != new), len(told))
            if shown[begun:]:
                detail, told = {"round": at, "text": shown[begun:]}, shown
                await self.loop.aside(lambda: self.journal.tell(detail))

        async def tell_on() -> None:
            while True:
                await asyncio.sleep(_TELL_EVERY_S)
                await tell(all_of_it=False)

        teller = asyncio.create_task(tell_on())
        try:
            yield pieces.append
        finally:
            teller.cancel()
            await asyncio.gather(teller, return_exceptions=True)
            await tell(all_of_it=True)

    # Tools

    def _results(self, at: int, calls: tuple[ToolCall, ...]) -> list[LLMMessage]:
        """Give the results of a round's calls in their order; those that are not written down yet are made at once."""
        return self.loop.run(self._all_results(at, calls), self.terms.left_s)

    async def _all_results(self, at: int, calls: tuple[ToolCall, ...]) -> list[LLMMessage]:
        tasks = [asyncio.create_task(self._result(at, call)) for call in calls]
        try:
            return await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()  # whoever has taken the task up makes these calls
            raise

    async def _result(self, at: int, call: ToolCall) -> LLMMessage:
        assert self._recalled is not None
        which = _digest([self._asked_for, call.model_dump()])
        if found := self._recalled.results.get((at, which)):
            return found
        begun, key = time.monotonic(), self.journal.key(at, which)
        message = await self.toolbox.call(call, timeout_s=self.terms.tool_timeout_s, idempotency_key=key)
        content = redacted_content(message.content) if self.terms.redacts else message.content
        message = LLMMessage.model_validate(storable(message.model_copy(update={"content": content}).model_dump()))
        took_ms = round((time.monotonic() - begun) * 1000)
        await self.loop.aside(lambda: self.journal.keep_result(at, which, message, took_ms))
        return message

    def _cache_key(self, digest: str) -> str | None:
        if self.terms.cache_ttl_s is None:
            return None
        backend = self.asker.tiers.backend(self.terms.tier)
        return _digest([backend.code, backend.model, digest])

    def _check_length(self, request: LLMRequest) -> None:
        most, estimate = self.terms.max_input_tokens, request_tokens(request)
        if most is not None and estimate > most:
            grown = ", with what its tools gave," if len(request.messages) > 1 else ""
            raise LLMError(
                f"the prompt of worker {self.terms.worker}{grown} is some {estimate:,} tokens long (a token for every"
                f" {BYTES_A_TOKEN} bytes); its max_input_tokens is {most:,}",
                hint="send less, or raise max_input_tokens",
                kind="context_overflow",
            )


def request_hash(request: LLMRequest) -> str:
    """Give the hash of what is asked, whoever is asked and however long that may take."""
    return _digest(request.model_dump(mode="json", exclude={"timeout_s"}))


def _settled(text: str) -> str:
    """Give what can be told of a text that goes on: whole words, and nothing of a key that has not ended."""
    end = text.rfind(" ") + 1
    key = text.rfind(_KEY_BEGINS)
    return text[: min(end, key) if key >= 0 and _KEY_ENDS not in text[key:] else end]


def _plain(value: Any) -> Any:
    """Write large numbers as ``jsonb`` gives them back: as whole ones."""
    if isinstance(value, float):
        return int(value) if abs(value) >= _LARGE and value.is_integer() else value
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _digest(value: Any) -> str:
    written = json.dumps(_plain(value), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(written.encode("utf-8", "surrogatepass")).hexdigest()


def _without_secrets(reply: LLMReply) -> LLMReply:
    """Hide secrets in what a model says; the provider's own blocks, which must come back unchanged, or not at all."""
    calls, native = reply.tool_calls, reply.native
    if calls:
        calls = tuple(_call_without_secrets(call) for call in calls)
    if native is not None and redacted_json(list(native.blocks)) != list(native.blocks):
        native = None
    return reply.model_copy(update={"content": redacted_content(reply.content), "tool_calls": calls, "native": native})


def _call_without_secrets(call: ToolCall) -> ToolCall:
    written = call.malformed
    return call.model_copy(
        update={
            "arguments": redacted_json(call.arguments),
            "malformed": written if written is None else redacted_content(written),
        }
    )
