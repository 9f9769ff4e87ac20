"""``loomq graph PIPELINE``: a pipeline as a picture, plain or with the states of a goal's stages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from loomq.cli.completion import goal_ids, names
from loomq.cli.options import Invocation, json_option, pass_invocation

if TYPE_CHECKING:
    from loomq.services.drawing import Drawing

FORMATS = ("tree", "mermaid", "dot", "svg")


@click.command("graph")
@click.argument("pipeline", shell_complete=names("pipelines"))
@click.option("form", "--format", "-f", type=click.Choice(FORMATS), default="tree", show_default=True)
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write it there.")
@click.option("--goal", metavar="GOAL", shell_complete=goal_ids, help="Colour the stages as they stand in that goal.")
@json_option
@pass_invocation
def command(
    invocation: Invocation, pipeline: str, form: str, output: Path | None, goal: str | None, as_json: bool
) -> None:
    """Draw a PIPELINE: as a tree of text, for Mermaid or Graphviz, or as SVG that needs nothing else.

    With --goal the drawing is of what that goal runs, even if the file says something else by now.
    """
    from loomq.cli.output import emit, say

    drawing = _goal_drawing(invocation, pipeline, goal) if goal else _drawing(invocation, pipeline)
    text = _written(drawing, form)
    if output:
        output.write_text(text + "\n", encoding="utf-8")
    if as_json:
        told = {"schema_version": 1, "pipeline": pipeline, "format": form, "output": str(output) if output else None}
        emit({**told, **drawing.to_json(), "drawing": text})
    elif output:
        say(f"written to {output}")
    else:
        print(text)


def _drawing(invocation: Invocation, pipeline: str) -> Drawing:
    from loomq.services.drawing import draw
    from loomq.services.plans import plan_of

    return draw(plan_of(invocation.settings(), pipeline))


def _goal_drawing(invocation: Invocation, pipeline: str, text: str) -> Drawing:
    from loomq.services import inspect
    from loomq.services.drawing import draw
    from loomq.services.plans import plan_of_goal
    from loomq.services.setup import require_schema

    loom = invocation.loom(broker=False)
    require_schema(loom)
    goal_id = inspect.find(loom, text)
    plan = plan_of_goal(loom, goal_id)
    if plan.kind not in {"pipeline", "orchestrator"} or plan.name != pipeline:
        raise click.UsageError(f"goal {goal_id} runs the {plan.kind} {plan.name}, not {pipeline}")
    return draw(plan, {stage.name: str(stage.status) for stage in inspect.progress(loom, goal_id)})


def _written(drawing: Drawing, form: str) -> str:
    from loomq.services import drawing as text_forms
    from loomq.services.drawing_svg import svg

    written: str = svg(drawing) if form == "svg" else getattr(text_forms, form)(drawing)
    return written
