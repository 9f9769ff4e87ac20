"""What a user asks for on the command line: a name, an instruction, inputs; and how that becomes a goal."""

from __future__ import annotations

import functools
import json
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loomq.cli.completion import names, session_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loomq.loom import Loom
    from loomq.services.submit import GoalHandle

PRIORITIES = ("low", "normal", "high", "critical")
TIERS = ("local", "standard", "frontier")
SECONDS = click.FloatRange(0, min_open=True)
DOLLARS = click.FloatRange(0, min_open=True)


@dataclass(frozen=True)
class Request:
    """One goal as it was asked for.

    Args:
        name: A pipeline or a worker.
        context: The goal's context, or the worker's payload.
        is_worker: The name is meant as a worker's, even if a pipeline has it too.
        deadline_s: Seconds from now until it must have ended.
        session: The id of the session that it belongs to, or the beginning of it.
        max_cost, max_tokens: What it may spend on language models: US dollars, tokens.
    """

    name: str
    instruction: str
    context: dict[str, Any]
    priority: str
    tier: str | None
    is_worker: bool
    deadline_s: float | None
    session: str | None
    max_cost: float | None = None
    max_tokens: int | None = None

    def check(self, loom: Loom) -> None:
        """Find mistakes that can be seen without any service.

        Raises:
            ConfigError: The project's files have errors, or nothing is called so.
            click.UsageError: The options do not go with what was named.
        """
        from loomq.services.targets import kind_of

        kind = kind_of(loom, self.name, worker=self.is_worker)
        if kind == "worker" and self.instruction:
            raise click.UsageError(f"{self.name} is a worker: it takes inputs (-i key=value), no instruction")
        if kind == "pipeline" and self.tier:
            raise click.UsageError(f"{self.name} is a pipeline: its stages say their tier, --tier is for workers")
        if kind == "orchestrator" and self.tier:
            raise click.UsageError(f"{self.name} is an orchestrator: its file says its tier, --tier is for workers")
        if kind == "orchestrator" and not self.instruction.strip():
            raise click.UsageError(f'{self.name} is an orchestrator: say what you want: {self.name} "…"')

    def submit(self, loom: Loom, *, key: str | None = None) -> GoalHandle:
        """Hand the goal in.

        Args:
            key: The idempotency key.

        Raises:
            PipelineValidationError: The inputs break the contract.
            NotFoundError: There is no such session.
            SubmitUnavailableError: It could not be written down.
        """
        from loomq.services import sessions
        from loomq.services.submit import submit_goal, submit_task
        from loomq.services.targets import kind_of

        deadline = timedelta(seconds=self.deadline_s) if self.deadline_s else None
        session = sessions.find(loom, self.session) if self.session else None
        budget = {"max_cost": self.max_cost, "max_tokens": self.max_tokens}
        if kind_of(loom, self.name, worker=self.is_worker) == "worker":
            return submit_task(
                self.name,
                self.context,
                tier=self.tier,
                priority=self.priority,
                idempotency_key=key,
                deadline=deadline,
                session=session,
                budget=budget,
                loom=loom,
            )
        return submit_goal(
            self.instruction,
            pipeline=self.name,
            context=self.context,
            priority=self.priority,
            idempotency_key=key,
            deadline=deadline,
            session=session,
            budget=budget,
            loom=loom,
        )


def request_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the arguments that say what to run; the command gets them as ``request``."""

    @functools.wraps(function)
    def with_request(
        *given: Any,
        name: str,
        instruction: str,
        inputs: Sequence[str],
        context: str | None,
        priority: str,
        tier: str | None,
        is_worker: bool,
        deadline: float | None,
        session: str | None,
        max_cost: float | None,
        max_tokens: int | None,
        **options: Any,
    ) -> Any:
        context_given = parse_inputs(inputs, context)
        request = Request(
            name, instruction, context_given, priority, tier, is_worker, deadline, session, max_cost, max_tokens
        )
        return function(*given, request=request, **options)

    decorators = (
        click.argument("name", metavar="PIPELINE|WORKER", shell_complete=names("pipelines", "workers")),
        click.argument("instruction", default="", required=False),
        click.option(
            "inputs",
            "--input",
            "-i",
            multiple=True,
            metavar="KEY=VALUE",
            help="One field of the input; JSON if it is JSON, else text; @FILE reads a file. Repeatable.",
        ),
        click.option("--context", metavar="JSON|@FILE", help="The whole input as a JSON object; -i wins over it."),
        click.option("--priority", type=click.Choice(PRIORITIES), default="normal", show_default=True),
        click.option("--tier", type=click.Choice(TIERS), help="Another tier than the worker's own."),
        click.option("is_worker", "--worker", is_flag=True, help="Take the name for a worker, not a pipeline."),
        click.option("--deadline", type=SECONDS, metavar="SECONDS", help="The goal fails if it has not ended by then."),
        click.option(
            "--max-cost", type=DOLLARS, metavar="DOLLARS", help="What it may spend on language models at the most."
        ),
        click.option("--max-tokens", type=click.IntRange(1), metavar="COUNT", help="The same, in tokens."),
        click.option(
            "--session", metavar="ID", shell_complete=session_ids, help="The session that it belongs to: loomq session."
        ),
    )
    found: Callable[..., Any] = with_request
    for decorator in reversed(decorators):
        found = decorator(found)
    return found


def parse_inputs(pairs: Sequence[str], context: str | None = None, *, option: str = "--context") -> dict[str, Any]:
    """Put the input together.

    Args:
        pairs: ``key=value`` texts; later ones win.
        context: A JSON object, or ``@file`` with one.
        option: What gave ``context``, for error texts.

    Raises:
        click.UsageError: A text is malformed, or a file cannot be read.
    """
    found = _whole(context, option) if context is not None else {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise click.UsageError(f'--input takes key=value, not "{pair}"')
        found[key] = parse_value(text)
    return found


def parse_value(text: str) -> Any:
    """Read one value: what ``@file`` holds (``@-`` is stdin), then JSON if it is JSON, else the text itself.

    What begins as a list or an object on the command line was meant as one, and is refused if it is broken.
    """
    content = _read(text[1:]) if text.startswith("@") else text
    try:
        return _strict_json(content)
    except ValueError as error:
        if content is text and text.lstrip().startswith(("[", "{")):
            raise click.UsageError(f"{text} is not JSON: {error}; for text, quote it: '\"…\"'") from None
        return content


def _whole(text: str, option: str) -> dict[str, Any]:
    content = _read(text[1:]) if text.startswith("@") else text
    try:
        found = _strict_json(content)
    except ValueError as error:
        raise click.UsageError(f"{option} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise click.UsageError(f"{option} takes a JSON object")
    return found


def _strict_json(text: str) -> Any:
    """Read JSON as its standard has it: Python's ``NaN`` and ``Infinity`` are plain words here."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _read(name: str) -> str:
    try:
        return sys.stdin.read() if name == "-" else Path(name).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise click.UsageError(f"{name} cannot be read: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError:
        raise click.UsageError(f"{name} is not UTF-8 text") from None
