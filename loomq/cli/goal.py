"""A goal as people read it: its stages, what went wrong, and its result."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

from loomq.cli.output import console, duration, since, table
from loomq.cli.spending import told_budget, told_change, told_cost, told_notes
from loomq.cli.terminal import printable, shortened
from loomq.redaction import redacted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from loomq.services.inspect import GoalView, StageView

_MOST_ITEMS = 20
_LONGEST = 300


def print_head(view: GoalView) -> None:
    """Print which goal it is and how it stands."""
    out = console()
    took = duration(since(view.created_at, view.ended_at))
    out.print(f"goal        {view.goal_id}")
    out.print(f"{view.kind:<11} {view.name}")
    partial = ", in part" if view.partial else ""
    out.print(f"status      {view.status}{partial} {'after' if view.ended_at else 'for'} {took}")
    out.print(f"submitted   {_time(view.created_at)}")
    for line in _links(view):
        out.print(line)
    if view.priority != "normal":
        out.print(f"priority    {view.priority}")
    if view.instruction:
        out.print(f"instruction {shortened(redacted(view.instruction))}")
    out.print()


def print_stages(view: GoalView) -> None:
    """Print the table of stages: how each ended, and where its time went."""
    headers = ("stage", "worker", "tier", "status", "attempt", "waited", "ran", "process")
    rows = [
        (
            stage.name,
            stage.doer if stage.pipeline else stage.worker,
            stage.tier,
            stage.status,
            stage.attempt,
            duration(stage.queue_time_ms),
            duration(stage.wall_time_ms),
            stage.pid,
        )
        for stage in view.stages
    ]
    console().print(table(headers, rows, right=("attempt", "waited", "ran", "process")))


def print_notes(view: GoalView) -> None:
    """Print what the table of stages has no room for: why one was skipped, items, goals that are a stage's work."""
    is_orchestrated = view.kind == "orchestrator"
    lines = [line for stage in view.stages for line in _notes(stage, is_orchestrated=is_orchestrated)]
    out = console()
    if lines:
        out.print()
    for line in lines:
        out.print(line, soft_wrap=True)


def print_faults(view: GoalView) -> None:
    """Print what went wrong, also what a later attempt made good."""
    out = console()
    for stage in view.stages:
        for line in _faults(stage):
            out.print(line, soft_wrap=True)
    if view.error and not any(stage.error for stage in view.stages):
        out.print(f"\n{view.name}: {told(view.error)}", soft_wrap=True)


def print_result(view: GoalView) -> None:
    """Print the result, long texts shortened."""
    shown = {key: value for key, value in view.result.items() if key != "_timeline"}
    if not shown:
        return
    out = console()
    out.print("\nresult")
    for key, value in shown.items():
        for line in _field(key, value):
            out.print(line, soft_wrap=True)


def print_way_back(view: GoalView) -> None:
    """Print what to type when a goal has failed, and its cause is mended."""
    dead = [stage.name for stage in view.stages if stage.state in {"failed", "dead"}]
    if dead and view.status == "failed":
        print(f"\nits input and its replay: loomq dead-letter show {view.goal_id}/{dead[0]}")
        print(f"once the cause is mended:  loomq dead-letter replay {view.goal_id}")


def print_total(view: GoalView) -> None:
    """Print in one line how the goal ended."""
    took = duration(since(view.created_at, view.ended_at))
    console().print(f"\ngoal {view.goal_id} {view.status} {'in' if view.ended_at else 'since'} {took}")


def _links(view: GoalView) -> Iterator[str]:
    links = view.links
    if links.parent:
        goal_id, stage, item = links.parent
        yield f"part of     goal {goal_id}, stage {stage}{f', item {item}' if item >= 0 else ''}"
    if links.rerun_of:
        yield f"rerun of    goal {links.rerun_of}"
    if links.paused_at:
        yield f"paused      {_time(links.paused_at)}; let it go on: loomq resume {view.goal_id}"
    if links.waits_for_turn:
        yield f"waits       for its turn: pipeline {view.name} has at most {links.max_concurrent} goals under way"
    if view.tokens:
        yield f"tokens      {told_tokens(view.tokens)}"
    if view.spent:
        yield f"cost        {told_cost(view.spent)}"
    if view.budget:
        yield f"budget      {told_budget(view.budget)}"


def _notes(stage: StageView, *, is_orchestrated: bool = False) -> Iterator[str]:
    name = stage.name
    if stage.status == "skipped" and stage.reason:
        yield f"{name}  skipped: {printable(redacted(stage.reason))}"
    elif stage.waits:
        yield f"{name}  waits: {printable(redacted(stage.waits))}"
    elif stage.reason == "reused":
        yield f"{name}  its result was taken over"
    if stage.fallback:
        what = f"worker {stage.worker} on {stage.tier}" if stage.fallback == "worker" else "a value"
        yield f"{name}  failed; its fallback, {what}, took its place"
    yield from (f"{name}  {line}" for line in answer_lines(stage))
    if stage.items:
        yield f"{name}  {stage.items.told}"
        for index, error in stage.items.failures:
            yield f"  item {index}: {told(error)}"
        if stage.items.failed > len(stage.items.failures):
            yield f"  … and {stage.items.failed - len(stage.items.failures):,} more"
    for child in () if is_orchestrated else stage.children:  # the rounds, which the tree shows
        spent = f", {told_tokens(stage.tokens)}" if stage.tokens and not stage.items else ""
        item = f"item {child.item} is " if child.item >= 0 else ""
        yield f"{name}  {item}pipeline {child.pipeline} {child.status}{spent}: loomq show {child.goal_id}"


def told_tokens(tokens: dict[str, int]) -> str:
    """Tell how many tokens were used."""
    return f"{tokens.get('prompt_tokens', 0):,} + {tokens.get('completion_tokens', 0):,} tokens"


def answer_lines(stage: StageView) -> Iterator[str]:
    """Tell what is special about a model's answer, and what became of the changes that came with it."""
    yield from (printable(redacted(line)) for line in told_notes(stage.notes))
    for update in stage.silo_updates:
        if update.state != "applied":
            why = f": {update.reason}" if update.reason else ""
            yield printable(redacted(f"{told_change(update.asked, update.state)}{why}"))


def _time(when: datetime) -> str:
    return when.astimezone().isoformat(sep=" ", timespec="seconds")


def _faults(stage: StageView) -> Iterator[str]:
    entries = stage.history or ([{"attempt": stage.attempt, "error": stage.error}] if stage.error else [])
    if entries:
        yield f"\nstage {stage.name} ({stage.doer}) {stage.status}"
    yield from told_entries(entries)


def told_entries(history: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Tell what became of each attempt, and who has replayed the stage."""
    for entry in history:
        if "replayed_at" in entry:
            how = "replayed with another input" if entry.get("edited") else "replayed"
            yield f"  {how} by {printable(str(entry.get('by')))}, {_time(datetime.fromisoformat(entry['replayed_at']))}"
            continue
        error = entry.get("error") or {}
        yield f"  attempt {entry.get('attempt', '?')}: {told(error)}"
        for label in ("where", "cause", "hint"):
            if error.get(label):
                yield f"    {label}: {printable(str(error[label]))}"


def told(error: dict[str, Any]) -> str:
    """Tell an error in its JSON form, in one line."""
    return printable(f"{error.get('type', 'error')}: {error.get('message', 'no message')}")


def _field(key: str, value: Any) -> Iterator[str]:
    if isinstance(value, dict | list) and value:
        text = json.dumps(_brief(value), ensure_ascii=False, indent=2)
        yield f"  {printable(key)}:"
        yield from (f"    {line}" for line in printable(text).splitlines())
    elif isinstance(value, str) and "\n" in value.strip():
        yield f"  {printable(key)}:"
        yield from (f"    {line}" for line in shortened(value, 10 * _LONGEST).splitlines())
    else:
        text = shortened(value, _LONGEST) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield f"  {printable(key)}: {text}"


def _brief(value: Any) -> Any:
    """Shorten long texts and lists inside a value."""
    if isinstance(value, str):
        return shortened(value, _LONGEST)
    if isinstance(value, dict):
        return {key: _brief(inner) for key, inner in value.items()}
    if isinstance(value, list):
        rest = len(value) - _MOST_ITEMS
        more = [f"… and {rest:,} more"] if rest > 0 else []
        return [*(_brief(inner) for inner in value[:_MOST_ITEMS]), *more]
    return value
