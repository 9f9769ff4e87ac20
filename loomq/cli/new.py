"""``loomq new worker|pipeline|orchestrator|schedule NAME``: one more file for the project, right from the start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from loomq.cli.completion import names
from loomq.cli.options import Invocation, json_option, pass_invocation

if TYPE_CHECKING:
    from loomq.services.scaffold import Made


@click.group("new")
def command() -> None:
    """Add a worker, pipeline, orchestrator or schedule to the project; what is written validates and runs.

    No file is ever replaced.
    """


@command.command("worker")
@click.argument("name")
@click.option("--kind", type=click.Choice(("processor", "llm")), default="processor", show_default=True)
@json_option
@pass_invocation
def worker(invocation: Invocation, name: str, kind: str, as_json: bool) -> None:
    """Add the worker NAME: its YAML, and for a processor its Python code.

    The code goes into a package of the project that YAML may import; if there is none yet, one is made and allowed
    in loomq.toml.
    """
    from loomq.services.scaffold import new_worker

    tell(new_worker(invocation.settings(), name, kind), as_json=as_json)


@command.command("pipeline")
@click.argument("name")
@click.option("--worker", "-w", "chosen", shell_complete=names("workers"), help="Default: a processor of the project.")
@json_option
@pass_invocation
def pipeline(invocation: Invocation, name: str, chosen: str | None, as_json: bool) -> None:
    """Add the pipeline NAME, whose one stage runs a worker on what that worker's contract asks for."""
    from loomq.services.scaffold import new_pipeline

    tell(new_pipeline(invocation.settings(), name, chosen), as_json=as_json)


@command.command("orchestrator")
@click.argument("name")
@click.option(
    "--worker",
    "-w",
    "workers",
    multiple=True,
    shell_complete=names("workers"),
    help="One that its plans may use; repeatable. Default: all that the project has now.",
)
@json_option
@pass_invocation
def orchestrator(invocation: Invocation, name: str, workers: tuple[str, ...], as_json: bool) -> None:
    """Add the orchestrator NAME: a model that splits a goal in words into tasks for workers."""
    from loomq.services.scaffold import new_orchestrator

    tell(new_orchestrator(invocation.settings(), name, workers), as_json=as_json)


@command.command("schedule")
@click.argument("name")
@click.option(
    "--for",
    "target",
    metavar="PIPELINE|WORKER",
    shell_complete=names("pipelines", "workers"),
    help="What it hands work in to; default: the project's first.",
)
@click.option("--when", metavar="TEXT", help='As "weekday at 09:00", "10 minutes", or a cron expression.')
@json_option
@pass_invocation
def schedule(invocation: Invocation, name: str, target: str | None, when: str | None, as_json: bool) -> None:
    """Add the schedule NAME: it hands work in to a pipeline, an orchestrator or a worker, by the clock."""
    from loomq.services.scaffold import new_schedule

    tell(new_schedule(invocation.settings(), name, target, when), as_json=as_json)


def tell(made: Made, *, as_json: bool) -> None:
    """Print what was written, and what to type next."""
    from loomq.cli.output import emit, say

    if as_json:
        emit(made.to_json())
        return
    for path in made.files:
        print(path)
    for path in made.changed:
        say(f"changed {path}: import_allow")
    say("next:")
    for line in made.next:
        say(f"  {line}")
