"""A fake language model provider for tests: real HTTP, scripted answers and faults, a journal of what was asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loomq.llm.fake_server.rules import DEFAULT_MODELS, Rule
from loomq.llm.fake_server.server import FakeServer
from loomq.llm.fake_server.wire import Call

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from loomq.llm.fake_server.rules import Answerer

__all__ = ["Call", "FakeServer", "Rule", "fake_llm"]


def fake_llm(
    rules: Sequence[Rule | Mapping[str, object] | Answerer] = (),
    *,
    models: Sequence[str] = DEFAULT_MODELS,
    keys: Sequence[str] = (),
) -> FakeServer:
    """Serve a fake provider for as long as a ``with`` block lasts, on a free port of this machine.

    Inside, ``environment(wire)`` gives the variables that make loomq ask it, and ``journal`` what was asked. A loop of
    tool calls is scripted by how many rounds of results there are::

        [{"tool_results": 0, "tool_calls": [{"name": "look_up", "arguments": {"word": "cat"}}]}, {"text": "animal"}]

    It streams where it is asked to, and embeds without any rule.

    Args:
        rules: What it answers, in order; without any it echoes the prompt as JSON. Each is a ``Rule``, the same as a
            mapping (``{"contains": "cat", "json": {"label": "animal"}, "times": 2}``), or a function of the call.
        models: What it lists, and the only ones that it answers for.
        keys: The accepted keys; empty accepts any.

    Raises:
        ConfigError: A rule is malformed.
    """
    return FakeServer(rules, models=models, keys=keys)
