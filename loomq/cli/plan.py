"""``loomq plan PIPELINE``: what a pipeline's or orchestrator's goals will do; nothing runs, no service is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from loomq.cli.completion import names
from loomq.cli.options import Invocation, json_option, pass_invocation

if TYPE_CHECKING:
    from loomq.services.plans import PlanView, SegmentLine


@click.command("plan")
@click.argument("pipeline", shell_complete=names("pipelines"))
@json_option
@pass_invocation
def command(invocation: Invocation, pipeline: str, as_json: bool) -> None:
    """Show what goals of a PIPELINE will do: stages by level, canvases, queues, limits. Runs nothing.

    A stage starts as soon as its own parents are done, whatever its level. The second table lists the canvases that
    are published, and what publishes each: the submit, or the last of the named stages to end. Of an orchestrator only
    the steps are known, and what its plans may use.
    """
    from loomq.cli.output import emit
    from loomq.services.plans import plan

    view = plan(invocation.settings(), pipeline)
    if as_json:
        emit(view.to_json())
    else:
        _print(view)


def _print(view: PlanView) -> None:
    from loomq.cli.output import console, duration, table

    out = console()
    counted = f"{len(view.stages)} stages on {view.levels} levels, published in {len(view.segments)}"
    out.print(f"{view.kind} {view.name} ({view.file}): {counted}\n", soft_wrap=True)
    headers = ("level", "stage", "kind", "queue", "timeout", "retries", "after")
    rows = [
        (
            stage.level,
            stage.name,
            stage.kind,
            stage.queue,
            duration(stage.timeout_s * 1000),
            stage.max_retries,
            ", ".join(stage.waits_for) or None,
        )
        for stage in view.stages
    ]
    out.print(table(headers, rows, right=("level", "timeout", "retries")))
    out.print("\nreads")
    width = max(len(stage.name) for stage in view.stages)
    for stage in view.stages:
        told = "".join(f"; {note}" for note in (*stage.notes, *(f"limit: {limit}" for limit in stage.limits)))
        out.print(f"  {stage.name:<{width}}  {', '.join(stage.reads) or 'nothing'}{told}", soft_wrap=True)
    out.print()
    out.print(table(("published", "as", "stages"), [_row(segment) for segment in view.segments]))
    out.print()
    if view.offers:
        offered = [(one.name, one.kind, ", ".join(one.tiers) or None, one.description) for one in view.offers]
        out.print(table(("its plans may use", "kind", "tiers", "description"), offered))
        out.print()
    for problem in view.findings:
        out.print(problem.render(), soft_wrap=True)
    if not view.findings:
        out.print("validate finds nothing wrong with its files")


def _row(segment: SegmentLine) -> tuple[str, str, str]:
    runs = [" > ".join(run) for run in segment.runs]
    after = segment.after
    when = "at submit" if not after else f"after {'the last of ' if len(after) > 1 else ''}{', '.join(after)}"
    return when, segment.shape, f"{' | '.join(runs)} => {segment.join}" if segment.join else runs[0]
