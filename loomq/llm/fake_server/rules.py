"""Rules: which request the fake server answers with what, in YAML or in Python."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from loomq.config import Count, Number, Size, Spec, Text, contradiction, load_spec
from loomq.errors import ConfigError
from loomq.llm.fake_server.wire import Answer, Call, tokens

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

DEFAULT_MODELS = ("fake-small", "fake-large")

#: ``hang`` never answers, ``cut`` ends the connection in the middle, ``malformed`` sends half a JSON text, ``refusal``
#: and ``truncated`` are what a model does.
Fault = Literal["hang", "cut", "malformed", "refusal", "truncated"]


class ToolCall(Spec):
    """A tool that the answer asks for."""

    name: Text
    arguments: dict[str, Any] = Field(default_factory=dict)


class Rule(Spec):
    """One rule: the first that fits a request answers it."""

    wire: Literal["anthropic", "openai", "ollama"] | None = None
    model: Text | None = None
    contains: Text | None = None
    """A text in the system prompt or any message."""
    matches: Text | None = None
    """A regular expression that is searched for there."""
    times: Size | None = None
    """Fits so many requests and then no more; without it, all."""

    text: str | None = None
    """What the model says."""
    answer_json: Any = Field(default=None, alias="json")
    """The same, as JSON."""
    tool_calls: tuple[ToolCall, ...] = ()
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None

    delay_seconds: Number = 0
    """How long it thinks."""
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
        said = [
            name for name in ("text", "answer_json", "tool_calls", "status") if getattr(self, name) not in (None, ())
        ]
        if len(said) > 1:
            raise contradiction("a rule has one answer", "json" if said[1] == "answer_json" else said[1])
        for name in ("retry_after", "code", "message"):
            if getattr(self, name) is not None and self.status is None:
                raise contradiction(f"{name} goes with status", name)
        return self

    def fits(self, call: Call) -> bool:
        """Say whether this rule is for a call."""
        return (
            self.wire in (None, call.wire)
            and self.model in (None, call.model)
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
        counted = tokens(call.text)
        found = Answer(
            text=text,
            model=label,
            prompt_tokens=counted if self.prompt_tokens is None else self.prompt_tokens,
            completion_tokens=tokens(text) if self.completion_tokens is None else self.completion_tokens,
            stop="tools" if self.tool_calls else "refusal" if self.fault == "refusal" else "end",
            tool_calls=tuple((one.name, one.arguments) for one in self.tool_calls),
        )
        if self.fault == "truncated":
            return found.cut(max(tokens(text) // 2, 1))
        if call.max_tokens is not None and found.completion_tokens > call.max_tokens and found.stop == "end":
            return found.cut(call.max_tokens)
        return found


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
        """Give the rule for a call and its number from 0; an echo if there are no rules, ``None`` if none fits."""
        if not self._rules:
            return Rule(), None
        for number, rule in enumerate(self._rules):
            found = self._try(number, rule, call)
            if found is not None:
                return found, number
        return None

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
