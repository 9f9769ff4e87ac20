"""``loomq try WORKER``: one worker on one input, and everything that one wants to see while writing it."""

from __future__ import annotations

import io
import json
import sys
from typing import TYPE_CHECKING, cast

import click

from loomq.cli.completion import names
from loomq.cli.options import Invocation, json_option, pass_invocation
from loomq.cli.request import TIERS, parse_inputs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

    from loomq.services.trial import Trial


@click.command("try")
@click.argument("worker", shell_complete=names("workers"))
@click.option("inputs", "--input", "-i", multiple=True, metavar="KEY=VALUE", help="One field of the input, as for run.")
@click.option("--payload", metavar="JSON|@FILE", help="The whole input as a JSON object; -i wins over it.")
@click.option("--tier", type=click.Choice(TIERS), help="Another tier than the worker's own.")
@json_option
@pass_invocation
def command(
    invocation: Invocation, worker: str, inputs: Sequence[str], payload: str | None, tier: str | None, as_json: bool
) -> None:
    """Run one WORKER on one input, without queue and database, and show what happened.

    It runs what a message of its queue would run: input contract, file refs, the work, output contract. For a
    language model worker the prompt as it was sent and the raw answer are shown. Nothing is kept or retried.
    """
    from loomq.cli.output import emit
    from loomq.redaction import redacted_json
    from loomq.services import targets, trial

    given = parse_inputs(inputs, payload, option="--payload")
    loom = invocation.loom(broker=False, database=False)
    targets.kind_of(loom, worker, worker=True)
    found = trial.attempt(loom, worker, given, tier=tier, prints=cast("TextIO", _Printed()))
    if as_json:
        emit(redacted_json(found.to_json()))
    else:
        _print(found)
    _raise(found)


class _Printed(io.TextIOBase):
    """What a worker prints, on stderr and redacted."""

    def write(self, text: str) -> int:
        from loomq.redaction import redacted

        sys.stderr.write(redacted(text))
        return len(text)

    def flush(self) -> None:
        sys.stderr.flush()


def _raise(found: Trial) -> None:
    """End with 2 if the input was wrong, with 1 if the worker failed.

    Raises:
        PipelineStageError: Either of them.
    """
    from loomq.errors import PipelineValidationError, PipelineWorkerError
    from loomq.services.trial import is_callers_fault

    if found.fault is None:
        return
    fault = found.fault
    if is_callers_fault(found):
        fault.hint = fault.hint or f"what it takes stands in the input_schema of workers/{found.worker}.yaml"
    elif isinstance(fault, PipelineValidationError):
        hint = fault.hint or f"correct the worker, or its output_schema in workers/{found.worker}.yaml"
        fault = PipelineWorkerError(fault.message, stage=found.worker, hint=hint)
    else:
        again = "in a goal it would be run again; " if fault.retryable else ""
        fault.hint = (
            fault.hint or f"{again}see where it happened: loomq try {found.worker} --debug, with the same input"
        )
    raise fault from found.fault.__cause__


def _print(found: Trial) -> None:
    from loomq.cli.output import duration
    from loomq.cli.terminal import printable
    from loomq.services.trial import verdict

    print(f"worker    {found.worker} ({found.kind}, tier {found.tier})")
    _section("input", f"contract {verdict(found.input_errors)}", _pretty(found.payload))
    if found.prompt:
        told = f"at most {found.prompt.max_output_tokens} tokens"
        texts = [("system", found.prompt.system), *((one.role, one.content) for one in found.prompt.messages)]
        _section("prompt", told, "\n".join(f"[{role}]\n{printable(text)}" for role, text in texts))
        if found.prompt.tools:
            _section("tools", ", ".join(tool.name for tool in found.prompt.tools), "")
    _print_turns(found)
    if found.reply:
        reply = found.reply
        told = f"{reply.model}, {reply.stop_reason}, {reply.prompt_tokens} + {reply.completion_tokens} tokens"
        _section("answer", told, printable(reply.content))
    if found.output is not None:
        _section("output", f"contract {verdict(found.output_errors)}", _pretty(found.output))
    _print_more(found)
    print(f"took      {duration(found.took_ms)}")


def _print_turns(found: Trial) -> None:
    """Print what the model and its tools said before the answer."""
    from loomq.cli.terminal import printable

    for turn in found.turns:
        if turn.role == "tool":
            _section("result", f"{turn.tool_name}{' failed' if turn.is_error else ''}", printable(turn.content))
            continue
        calls = "\n".join(f"{call.name}({json.dumps(call.arguments, ensure_ascii=False)})" for call in turn.tool_calls)
        _section("calls", f"{len(turn.tool_calls)} at once", printable(f"{turn.content}\n{calls}".strip()))


def _print_more(found: Trial) -> None:
    """Print what else is to be told of an answer, and what it cost."""
    from loomq.cli.spending import dollars, told_change, told_notes
    from loomq.cli.terminal import printable
    from loomq.redaction import redacted

    for line in told_notes(found.notes):
        print(f"note      {printable(redacted(line))}")
    for update in found.silo_updates:
        state = f"refused: {update['reason']}" if update["reason"] else "not made, since this is a trial"
        _section("change", told_change(update, state), "")
    if found.token_usage and found.prompt:
        used = found.token_usage
        print(f"used      {used['prompt_tokens']:,} + {used['completion_tokens']:,} tokens, cost {dollars(found.cost)}")


def _section(name: str, told: str, text: str) -> None:
    from loomq.redaction import redacted

    print(f"{name:<9} {told}")
    for line in redacted(text).splitlines():
        print(f"    {line}")


def _pretty(value: object) -> str:
    from loomq.cli.terminal import printable

    return printable(json.dumps(value, ensure_ascii=False, indent=2))
