"""``loomq explain``: why a goal, or a stage of it, went as it did."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from loomq.cli.completion import goal_ids, stage_names
from loomq.cli.options import Invocation, json_option, pass_invocation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loomq.services.account import Checked, GoalAccount, StageAccount

_LONGEST = 4_000
_TOO_SHORT_MS = 0.5


@click.command("explain")
@click.argument("goal", shell_complete=goal_ids)
@click.argument("stage", required=False, shell_complete=stage_names)
@json_option
@pass_invocation
def command(invocation: Invocation, goal: str, stage: str | None, as_json: bool) -> None:
    """Explain a GOAL, or one STAGE of it: what it was given, how often it was tried, what it waited for, and why.

    An item of a stage that fanned out is STAGE/ITEM; GOAL/STAGE/ITEM, as dead letters are called, does too.
    Nothing is run: inputs and contracts are worked out again from the goal's snapshot.
    """
    from loomq.cli.output import emit, notice_if_slow
    from loomq.services import explain
    from loomq.services.setup import require_schema

    loom = invocation.loom(broker=False)
    with notice_if_slow("starting the private Postgres and Redis …" if loom.is_embedded else "waiting for Postgres …"):
        require_schema(loom)
    goal_id, name, item = explain.find(loom, goal, stage)
    found = explain.stage(loom, goal_id, name, item) if name else explain.goal(loom, goal_id)
    if as_json:
        emit(found.to_json())
    else:
        _print(found)


def _print(found: GoalAccount | StageAccount) -> None:
    from loomq.cli.gantt import print_timing
    from loomq.cli.goal import print_head
    from loomq.services.account import GoalAccount

    if isinstance(found, GoalAccount):
        print_head(found.view)
        _print_lines(_goal_lines(found))
        print_timing(found.view.timing)
    else:
        _print_lines(_stage_lines(found))


def _print_lines(lines: Iterator[str]) -> None:
    from loomq.cli.terminal import printable
    from loomq.redaction import redacted

    for line in lines:
        print(printable(redacted(line)))


def _goal_lines(found: GoalAccount) -> Iterator[str]:
    from loomq.cli.gantt import told_totals

    view, known = found.view, {stage.name: stage for stage in found.view.stages}
    widest = max(len(name) for name in found.order)
    for name, why in found.order.items():
        stage = known[name]
        timing = view.timing.stages.get(name) if view.timing else None
        time = f" [{told_totals(timing.totals_ms, view.timing)}]" if timing and view.timing else ""
        yield f"{name:<{widest}}  {stage.status}{f': {why}' if why else ''}{time}"
        for child in stage.children:
            yield f"{'':<{widest}}  its goal {child.status}: loomq explain {child.goal_id}"
    failed = [stage.name for stage in view.stages if stage.state in {"failed", "dead"}]
    if view.error and not failed:
        yield f"\nthe goal {view.status}: {view.error.get('message')}"
    for name in failed:
        yield f"\nmore about {name}: loomq explain {view.goal_id} {name}"


def _stage_lines(found: StageAccount) -> Iterator[str]:
    from loomq.cli.goal import answer_lines

    stage = found.stage
    yield f"goal       {found.goal_id} ({found.kind} {found.name})"
    yield f"stage      {stage.name}{f', item {found.item}' if found.item >= 0 else ''}"
    why = "" if stage.items and found.why == stage.items.told else found.why
    yield f"status     {stage.status}{f': {why}' if why else ''}"
    yield f"runs       {stage.doer}, tier {stage.tier}{f', model {stage.model_used}' if stage.model_used else ''}"
    if found.parents:
        yield f"waits for  {', '.join(f'{name} ({status})' for name, status in found.parents.items())}"
    yield from _condition_lines(found)
    yield from _item_lines(found)
    yield from _value_lines("input", found.payload, "edited by hand, " if found.is_edited else "")
    yield from _prompt_lines(found)
    yield from _round_lines(found)
    yield from _attempt_lines(found)
    yield from _time_lines(found)
    yield from _value_lines("output", found.output)
    yield from (f"note       {line}" for line in answer_lines(stage))
    yield from _cost_lines(found)


def _condition_lines(found: StageAccount) -> Iterator[str]:
    if found.condition:
        asked = found.condition
        held = {True: "true", False: "false", None: "not asked here"}[asked.holds]
        yield f"condition  {held}: {asked.told or asked.text}"
    if found.fallback:
        used = f"; it was used ({found.stage.fallback})" if found.stage.fallback else ""
        yield f"fallback   {json.dumps(found.fallback, ensure_ascii=False)}{used}"


def _item_lines(found: StageAccount) -> Iterator[str]:
    from loomq.cli.goal import told

    if found.for_each:
        yield f"for each   of {found.for_each}"
    if found.stage.items:
        yield f"items      {found.stage.items.told}"
        for index, error in found.stage.items.failures:
            yield f"  item {index}: {told(error)}"
            yield f"    loomq explain {found.goal_id} {found.stage.name}/{index}"
    for child in found.stage.children:
        item = f"item {child.item}: " if child.item >= 0 else ""
        yield f"goal       {item}{child.pipeline} {child.status}: loomq explain {child.goal_id}"


def _value_lines(name: str, checked: Checked, how: str = "") -> Iterator[str]:
    if checked.value is None:
        if checked.fault:
            yield f"{name:<10} {checked.fault}"
        return
    yield f"{name:<10} {how}contract {checked.verdict}"
    for error in checked.errors or []:
        yield f"  {error}"
    yield from _indented(_pretty(checked.value))


def _prompt_lines(found: StageAccount) -> Iterator[str]:
    from loomq.redaction import redacted

    if found.prompt_fault:
        yield f"prompt     {found.prompt_fault}"
    if found.prompt is None:
        return
    yield f"prompt     at most {found.prompt.max_output_tokens} tokens of an answer"
    for role, text in [("system", found.prompt.system), *((one.role, one.content) for one in found.prompt.messages)]:
        yield f"  [{role}]"
        yield from _indented(redacted(text))


def _round_lines(found: StageAccount) -> Iterator[str]:
    from loomq.cli.output import clock, duration
    from loomq.cli.spending import dollars

    if found.rounds:
        yield "rounds"
    for one in found.rounds:
        took = f" after {duration(one.took_ms)}" if one.took_ms else ""
        said = one.said or {}
        if one.kind == "tool":
            failed = " failed" if said.get("is_error") else ""
            yield f"  {clock(one.at)}  round {one.number}: tool {said.get('tool_name')}{failed}{took}"
        else:
            state = {"cached": ", from the cache", "open": ", nobody saw its end"}.get(one.state, "")
            prompt, answer = one.tokens or (0, 0)
            cost = "" if one.state == "cached" else f", {prompt:,} + {answer:,} tokens, cost {dollars(one.cost)}"
            yield f"  {clock(one.at)}  round {one.number}: {one.model}{took}{cost}{state}"
            yield from (
                f"    calls {call['name']}({_short(call['arguments'])})" for call in said.get("tool_calls") or ()
            )
        if one.said is None and one.state == "done":
            yield "    its answer was no good, and is not kept"
        yield from _indented(str(said.get("content") or ""))


def _short(arguments: Any) -> str:
    from loomq.cli.terminal import shortened

    return shortened(json.dumps(arguments, ensure_ascii=False), 200)


def _attempt_lines(found: StageAccount) -> Iterator[str]:
    from loomq.cli.goal import told
    from loomq.cli.output import clock, duration, since

    if found.attempts:
        yield "attempts"
    for one in found.attempts:
        if one.by is not None:
            yield f"  {clock(one.start)}  replayed by {one.by}"
            continue
        took = f" after {duration(since(one.start, one.end))}" if one.end else ""
        delivery = f", delivery {one.delivery}" if (one.delivery or 1) > 1 else ""
        where = f" on {one.where}" if one.where else ""
        yield f"  {clock(one.start)}  attempt {one.attempt}{delivery}: {one.outcome}{took}{where}"
        if one.error:
            yield f"    {told(one.error)}"
            yield from (f"    {key}: {one.error[key]}" for key in ("where", "cause", "hint") if one.error.get(key))


def _time_lines(found: StageAccount) -> Iterator[str]:
    from loomq.cli.output import duration

    if found.timing is None or not found.timing.parts:
        return
    yield "time"
    for part in found.timing.parts:
        if part.ms < _TOO_SHORT_MS:
            continue
        yield f"  {duration(part.ms):>10}  {part.kind}{f' ({part.why})' if part.why else ''}"


def _cost_lines(found: StageAccount) -> Iterator[str]:
    from loomq.cli.goal import told_tokens
    from loomq.cli.spending import told_cost

    if found.stage.tokens:
        yield f"tokens     {told_tokens(found.stage.tokens)}"
    if found.stage.spent:
        yield f"cost       {told_cost(found.stage.spent)}"


def _pretty(value: Any) -> str:
    from loomq.redaction import redacted_json

    return json.dumps(redacted_json(value), ensure_ascii=False, indent=2)


def _indented(text: str) -> Iterator[str]:
    from loomq.cli.terminal import shortened

    yield from (f"    {line}" for line in shortened(text, _LONGEST).splitlines())
