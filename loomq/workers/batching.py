"""Calls of one worker that are due at the same time in one process, joined in one."""

from __future__ import annotations

import concurrent.futures
import copy
import json
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loomq.errors import LLMAnswerError, LLMError, SoftDeadline
from loomq.llm.base import LLMMessage, LLMReply, StopReason
from loomq.llm.parsing import parse_object

if TYPE_CHECKING:
    from collections.abc import Callable

    from loomq.llm.base import LLMRequest
    from loomq.workers.spec import Batch

RESULTS = "results"
_TOLD = (
    "The input is a JSON array of {count} independent inputs. Work on each by itself, as if it were the only one."
    ' Answer with one JSON object {{"results": [...]}}: in the array exactly {count} answers, each a JSON object, in'
    " the order of the inputs."
)


class UnusableBatchError(Exception):
    """A batch was answered with something else than an answer for each; each has to ask by itself.

    Args:
        share: What one part of it cost; ``None`` if it cost nothing that is known.
    """

    def __init__(self, share: LLMReply | None) -> None:
        super().__init__("the answer to a batch cannot be used")
        self.share = share


@dataclass
class _Group:
    """Requests that wait for each other."""

    requests: list[LLMRequest] = field(default_factory=list)
    replies: list[concurrent.futures.Future[LLMReply]] = field(default_factory=list)
    is_full: threading.Event = field(default_factory=threading.Event)


class Batcher:
    """Join requests that differ in their payload only.

    The first of a group waits for others and makes the call for all; whoever comes when it is under way begins a new
    group.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._groups: dict[str, _Group] = {}

    def ask(
        self, batch: Batch, tier: str, request: LLMRequest, call: Callable[[LLMRequest], LLMReply], timeout_s: float
    ) -> LLMReply:
        """Have a request answered, together with others if there are any.

        Args:
            call: Makes one call.
            timeout_s: How long to wait for whoever makes the call.

        Raises:
            UnusableBatchError: The answer has not one object for each, or there was a fault that no wait mends.
            SoftDeadline: The time was up.
            Exception: Whatever ``call`` raised, for everyone of the group.
        """
        alike = request.model_copy(update={"messages": (LLMMessage(role="user", content=""),), "timeout_s": 1.0})
        key = f"{tier} {alike.model_dump_json()}"
        group, at = self._join(key, batch, request)
        if at == 0:
            group.is_full.wait(min(batch.max_wait_ms / 1000, timeout_s))
            self._close(key, group)
            self._answer(group, call)
        try:
            return group.replies[at].result(timeout_s)
        except concurrent.futures.TimeoutError:
            raise SoftDeadline(f"no answer to a batch within {timeout_s:g} s") from None

    def _join(self, key: str, batch: Batch, request: LLMRequest) -> tuple[_Group, int]:
        with self._lock:
            group = self._groups.setdefault(key, _Group())
            group.requests.append(request)
            group.replies.append(concurrent.futures.Future())
            if len(group.requests) >= batch.max_size:
                del self._groups[key]
                group.is_full.set()
            return group, len(group.requests) - 1

    def _close(self, key: str, group: _Group) -> None:
        with self._lock:
            if self._groups.get(key) is group:
                del self._groups[key]

    def _answer(self, group: _Group, call: Callable[[LLMRequest], LLMReply]) -> None:
        count = len(group.requests)
        try:
            if count == 1:
                group.replies[0].set_result(call(group.requests[0]))
                return
            reply = call(joined(group.requests))
        except BaseException as error:  # noqa: BLE001  (nobody of the group must wait for ever)
            for number, future in enumerate(group.replies):
                future.set_exception(_fault(error, number, count))
            return
        answers = answers_in(reply, count)
        for number, future in enumerate(group.replies):
            share = _share(reply, number, count)
            if answers is None:
                future.set_exception(UnusableBatchError(share))
            else:
                content = json.dumps(answers[number], ensure_ascii=False)
                future.set_result(share.model_copy(update={"content": content}))


def joined(requests: list[LLMRequest]) -> LLMRequest:
    """Make one request of several that differ in their payload only."""
    first, count = requests[0], len(requests)
    inputs = [json.loads(request.messages[0].content) for request in requests]
    single = dict(first.output_schema or {})
    shared = {"$defs": single.pop("$defs")} if "$defs" in single else {}
    schema = first.output_schema and {
        **shared,
        "type": "object",
        "properties": {RESULTS: {"type": "array", "items": single}},
        "required": [RESULTS],
        "additionalProperties": False,
    }
    return first.model_copy(
        update={
            "system": f"{first.system}\n\n{_TOLD.format(count=count)}".strip(),
            "messages": (LLMMessage(role="user", content=json.dumps(inputs, ensure_ascii=False, indent=2)),),
            "max_output_tokens": first.max_output_tokens * count,
            "output_schema": schema,
        }
    )


def answers_in(reply: LLMReply, count: int) -> list[dict[str, Any]] | None:
    """Read the answers to a batch; ``None`` if there is not one object for each."""
    if reply.stop_reason == StopReason.MAX_TOKENS:
        return None
    try:
        found = parse_object(reply.content).value.get(RESULTS)
    except LLMAnswerError:
        return None
    if not isinstance(found, list) or len(found) != count or not all(isinstance(one, dict) for one in found):
        return None
    return found


def _fault(error: BaseException, number: int, count: int) -> BaseException:
    """Give everyone an error of their own: what no wait mends may be due to one of them, so each asks alone then."""
    if count == 1 or not isinstance(error, LLMError) or error.retryable:
        return copy.copy(error)
    if error.tokens is None:
        return UnusableBatchError(None)
    prompt, answer = error.tokens
    share = LLMReply(
        content="",
        model="",
        prompt_tokens=_part(prompt, number, count),
        completion_tokens=_part(answer, number, count),
        stop_reason=StopReason.END_TURN,
    )
    return UnusableBatchError(share)


def _part(tokens: int, number: int, count: int) -> int:
    return tokens // count + (number < tokens % count)


def _share(reply: LLMReply, number: int, count: int) -> LLMReply:
    """Give one part of what a call cost; the parts add up to the whole."""

    def part(tokens: int) -> int:
        return _part(tokens, number, count)

    return reply.model_copy(
        update={
            "content": "",
            "tool_calls": None,
            "native": None,
            "stop_reason": StopReason.END_TURN,
            "prompt_tokens": part(reply.prompt_tokens),
            "completion_tokens": part(reply.completion_tokens),
            "cached_tokens": part(reply.cached_tokens),
            "cache_write_tokens": part(reply.cache_write_tokens),
            "cost": None if reply.cost is None else reply.cost / count,
        }
    )
