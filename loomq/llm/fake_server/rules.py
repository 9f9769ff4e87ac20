"""Rules: which request the fake server answers with what, in YAML or in Python."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from loomq.config import Count, Flag, Number, Size, Spec, Text, contradiction, load_spec
from loomq.errors import ConfigError
from loomq.llm.fake_server.wire import Answer, Call, ToolUse, tokens

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

DEFAULT_MODELS = ("fake-small", "fake-large")

#: ``hang`` never answers, ``cut`` ends the connection in the middle, ``malformed`` sends half a JSON text (in a stream
#: one event is broken), ``stream_error`` is the provider's own error in the middle of a stream, ``refusal`` and
#: ``truncated`` are what a model does.
Fault = Literal["hang", "cut", "malformed", "stream_error", "refusal", "truncated"]
Stop = Literal["end", "length", "pause", "context", "filter"]
_ANSWERS = ("text", "answer_json", "tool_calls", "status")
_OF_A_MODEL = ("refusal", "truncated")
#: What a rule for embeddings has no use for.
_OF_A_CHAT = (
    "text", "answer_json", "tool_calls", "thinking", "stop", "structured", "streams", "offers", "tool_results",
    "prompt_tokens", "completion_tokens", "cached_tokens", "piece_delay_seconds",
)  # fmt: skip
_KEYS = {"answer_json": "json"}


class ToolCall(Spec):
    """A tool that the answer asks for; whether the request offers it is not looked at, as models invent some."""

    name: Text
    arguments: dict[str, Any] | str = Field(default_factory=dict)
    """A text stands for what a model wrote that is no JSON: OpenAI's wire sends it as it is, Anthropic's only in a
    stream."""


class Rule(Spec):
    """One rule: the first that fits a request answers it."""

    kind: Literal["chat", "embed"] = "chat"
    """Requests for an answer, or for embeddings; the latter need no rule, but may fail by one."""
    wire: Literal["anthropic", "openai", "ollama"] | None = None
    model: Text | None = None
    contains: Text | None = None
    """A text in the system prompt or any message, or in the calls and results of tools."""
    matches: Text | None = None
    """A regular expression that is searched for there."""
    tool_results: Count | None = None
    """How many rounds of tool results the conversation has so far."""
    offers: Text | None = None
    """The name of a tool that the request offers."""
    streams: Flag | None = None
    """Whether the request asks for a stream."""
    times: Size | None = None
    """Fits so many requests and then no more; without it, all."""

    text: str | None = None
    """What the model says."""
    answer_json: Any = Field(default=None, alias="json")
    """The same, as JSON."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Alone, or after ``text``."""
    thinking: Text | None = None
    """What the model says to itself before; OpenAI's wire only counts it."""
    stop: Stop | None = None
    """Why the answer ends, where that is not plain: ``pause`` and ``context`` are Anthropic's; the others know no pause
    and answer an exceeded context with an error."""
    structured: Flag = True
    """``false`` refuses requests for structured output, as servers do that are older than it."""
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    cached_tokens: Count = 0
    """How many of the prompt's tokens a cache had."""

    delay_seconds: Number = 0
    """How long it thinks."""
    piece_delay_seconds: Number = 0
    """How long a stream waits between its pieces."""
    fault: Fault | None = None
    status: Annotated[int, Field(strict=True, ge=400, le=599)] | None = None
    """An error of the provider, in its own shape."""
    retry_after: Number | None = None
    """Seconds, sent with ``status``."""
    code: Text | None = None
    """The provider's name for the error, sent with ``status``."""
    message: Text | None = None

    @field_validator("matches")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from None
        return value

    @model_validator(mode="after")
    def _one_answer(self) -> Self:
        said = [name for name in _ANSWERS if getattr(self, name) not in (None, ())]
        if len(said) > 1 and said != ["text", "tool_calls"]:
            raise contradiction("a rule has one answer", _KEYS.get(said[1], said[1]))
        for name in ("retry_after", "code", "message"):
            if getattr(self, name) is not None and self.status is None:
                raise contradiction(f"{name} goes with status", name)
        if self.stop and (self.status or self.fault in _OF_A_MODEL):
            raise contradiction("status and some faults say themselves how the answer ends", "stop")
        return self

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if self.kind == "embed":
            for name in self.model_fields_set & set(_OF_A_CHAT):
                key = _KEYS.get(name, name)
                raise contradiction(f"{key} is not for embeddings", key)
            if self.fault in ("stream_error", *_OF_A_MODEL):
                raise contradiction(f"{self.fault} is not for embeddings", "fault")
        return self

    def fits(self, call: Call) -> bool:
        """Say whether this rule is for a call."""
        return (
            self.kind == call.kind
            and self.wire in (None, call.wire)
            and self.model in (None, call.model)
            and self.tool_results in (None, call.tool_results)
            and self.streams in (None, call.stream)
            and (self.offers is None or self.offers in call.tools)
            and (self.contains is None or self.contains in call.text)
            and (self.matches is None or re.search(self.matches, call.text) is not None)
        )

    def answer(self, call: Call, label: str) -> Answer:
        """Say what the model says.

        Args:
            label: What the reply calls the model.
        """
        text = self.text if self.text is not None else json.dumps(self.answer_json, ensure_ascii=False)
        if self.answer_json is None and self.text is None:
            text = "" if self.tool_calls else echo(call)
        prompt = tokens(call.text) if self.prompt_tokens is None else self.prompt_tokens
        found = Answer(
            text=text,
            model=label,
            prompt_tokens=prompt,
            completion_tokens=self._counted(text) if self.completion_tokens is None else self.completion_tokens,
            stop=self._stop(),
            tool_calls=tuple(ToolUse(one.name, one.arguments) for one in self.tool_calls),
            thinking=self.thinking or "",
            cached_tokens=min(self.cached_tokens, prompt),
        )
        if self.fault == "truncated":
            return found.cut(max(tokens(text) // 2, 1))
        if call.max_tokens is not None and found.completion_tokens > call.max_tokens and found.stop == "end":
            return found.cut(call.max_tokens)
        return found

    def _counted(self, text: str) -> int:
        called = [f"{one.name}{ToolUse(one.name, one.arguments).written}" for one in self.tool_calls]
        return sum(map(tokens, (text, self.thinking or "", *called)))

    def _stop(self) -> str:
        if self.stop is not None:
            return self.stop
        return "tools" if self.tool_calls else "refusal" if self.fault == "refusal" else "end"


class RulesFile(Spec):
    """A file of rules."""

    models: tuple[Text, ...] = DEFAULT_MODELS
    """What the server lists and answers for."""
    rules: tuple[Rule, ...] = ()


#: A rule in Python: gives a rule, a text, an object to answer with as JSON, or None to leave the call to the next.
Answerer = Callable[[Call], "Rule | Mapping[str, Any] | str | None"]


class Rules:
    """An ordered list of rules, with what is left of each.

    Args:
        rules: ``Rule``, the same as a mapping, or a function.

    Raises:
        ConfigError: A mapping is no rule.
    """

    def __init__(self, rules: Sequence[Rule | Mapping[str, Any] | Answerer] = ()) -> None:
        self._rules = [as_rule(rule) if isinstance(rule, Mapping) else rule for rule in rules]
        self._used = [0] * len(self._rules)
        self._lock = threading.Lock()

    def find(self, call: Call) -> tuple[Rule, int | None] | None:
        """Give the rule for a call and its number from 0; an echo if there are no rules, ``None`` if none fits.

        Embeddings need none.
        """
        for number, rule in enumerate(self._rules):
            found = self._try(number, rule, call)
            if found is not None:
                return found, number
        return None if self._rules and call.kind == "chat" else (Rule(), None)

    def _try(self, number: int, rule: Rule | Answerer, call: Call) -> Rule | None:
        if not isinstance(rule, Rule):
            given = rule(call)
            if isinstance(given, str):
                return Rule(text=given)
            return Rule(json=given) if isinstance(given, Mapping) else given
        if not rule.fits(call):
            return None
        with self._lock:
            if rule.times is not None and self._used[number] >= rule.times:
                return None
            self._used[number] += 1
        return rule


def as_rule(said: Mapping[str, Any]) -> Rule:
    """Read a rule that was written as a mapping.

    Raises:
        ConfigError: It is none.
    """
    try:
        return Rule.model_validate(dict(said))
    except ValidationError as error:
        told = [f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}" for one in error.errors()]
        raise ConfigError(f"this is no rule of the fake server: {'; '.join(told)}") from None


def load_rules(path: Path) -> RulesFile:
    """Read a file of rules.

    Raises:
        ConfigError: It has errors, which are its ``problems``.
    """
    found, problems = load_spec(path, RulesFile, name=str(path))
    if found is None:
        raise ConfigError(f"the rules cannot be used: {problems[0].headline()}", problems=problems)
    return found


def echo(call: Call) -> str:
    """Answer with the prompt, as JSON; for servers without rules."""
    return json.dumps({"echo": call.prompt}, ensure_ascii=False)
