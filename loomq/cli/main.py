"""The program ``loomq``: find the command, run it, and turn whatever happens into an exit code."""

from __future__ import annotations

import io
import os
import sys
from importlib import import_module
from keyword import iskeyword
from typing import TYPE_CHECKING, NoReturn

import click

from loomq import __version__
from loomq.cli import completion, faults
from loomq.cli.options import Invocation, shared_options

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = {
    "run": "Run a pipeline, orchestrator or worker here and now.",
    "submit": "Hand in a goal for the worker nodes that run elsewhere.",
    "show": "Show a goal: stages, where its time went, errors, result.",
    "explain": "Explain why a goal, or a stage of it, went as it did.",
    "list": "List goals, newest first.",
    "events": "Tell what happened to a goal, or follow it.",
    "cancel": "End goals before their time.",
    "pause": "Start nothing more of a goal for now.",
    "resume": "Let a paused goal go on.",
    "rerun": "Run a goal again that has ended, reusing what stands.",
    "session": "List, show, search, rename or delete sessions.",
    "dead-letter": "List, show, replay, edit or drop what failed for good.",
    "schedule": "List, show, pause, trigger or backfill schedules.",
    "cache": "List or forget the answers of models that are given again.",
    "costs": "Add up what calls to language models have cost.",
    "queues": "Show what waits on each queue, since when, and who serves it.",
    "limits": "Show how full each limit is; set a rate by hand.",
    "reload": "Let the worker nodes read the project's files again.",
    "status": "Show whether services, schema and worker nodes are well.",
    "init": "Make a new project from a template, ready to run.",
    "new": "Add a worker, pipeline, orchestrator or schedule.",
    "validate": "Check the project's YAML.",
    "plan": "Show what goals of a pipeline or orchestrator will do.",
    "graph": "Draw a pipeline as text, Mermaid, DOT or SVG.",
    "try": "Run one worker on one input, without queue and database.",
    "doctor": "Check everything, and say how to repair what is wrong.",
    "explain-error": "Explain the id of a problem.",
    "schema": "Print the JSON Schema of a kind of file.",
    "dev": "Run services, a worker node and beat until Ctrl-C.",
    "worker": "Be a worker node: Celery's own, for this project.",
    "sweep": "Repair what was lost on the way, where no worker node does.",
    "fake-llm": "Serve a fake language model provider on this machine.",
    "prune": "Delete goals that ended long ago.",
    "db": "Migrate the database, or show its revision.",
    "completion": "Print the script that completes in bash, zsh or fish.",
}


class Commands(click.Group):
    """The commands by name; the module of one is imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (the signature is click's)
        """List the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import a command, and give it the options that all of them take."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"loomq.cli.{module_of(cmd_name)}").command
        return with_shared_options(command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or suggest one."""
        if args[0] in COMMANDS or args[0].startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        from difflib import get_close_matches

        near = get_close_matches(args[0], COMMANDS, n=1)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        raise click.UsageError(f'no command is called "{args[0]}"{hint}', ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the table without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def module_of(name: str) -> str:
    """Name the module of a command; Python's own words get an underscore behind them."""
    found = name.replace("-", "_")
    return f"{found}_" if iskeyword(found) else found


def with_shared_options(command: click.Command) -> click.Command:
    """Add the options that stand before or after the name of any command, once."""
    known = {parameter.name for parameter in command.params}
    command.params += [option for option in shared_options() if option.name not in known]
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            with_shared_options(inner)
    return command


@click.group(
    "loomq",
    cls=Commands,
    params=shared_options(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Run workers and pipelines written in YAML on Celery; Postgres keeps every goal.

    Exit codes: 0 ok · 1 the work failed · 2 usage or invalid configuration · 3 a service is missing ·
    4 not found · 5 timed out · 130 interrupted.
    """


def run(arguments: Sequence[str]) -> int:
    """Run the program with these arguments.

    Returns:
        The exit code.
    """
    given = Invocation()
    as_json = "--json" in (arguments[: arguments.index("--")] if "--" in arguments else arguments)
    try:
        outcome = cli.main(list(arguments), prog_name="loomq", standalone_mode=False, obj=given)
        sys.stdout.flush()
    except click.ClickException as error:
        return faults.report_usage(error, as_json=as_json)
    except (BrokenPipeError, SystemExit):  # the latter is click's own answer to the former
        return _without_reader()
    except (Exception, KeyboardInterrupt, click.Abort) as error:  # noqa: BLE001  (the last resort of the program)
        if given.shows_tracebacks:
            import traceback

            from loomq.redaction import redacted

            print(redacted("".join(traceback.format_exception(error))), end="", file=sys.stderr)
        if isinstance(error, click.Abort):  # click's wrapping of Ctrl-C
            return faults.report(error.__cause__ or KeyboardInterrupt(), as_json=as_json)
        return faults.report(error, as_json=as_json)
    return outcome if isinstance(outcome, int) else faults.OK


def _without_reader() -> int:
    """End as a program whose reader has gone, without Python's complaint at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return faults.BROKEN_PIPE


def main() -> NoReturn:
    """Run the program and end the process."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that cannot show a letter is no reason to fail
    answered = completion.answer(cli)
    sys.exit(run(sys.argv[1:]) if answered is None else answered)


if __name__ == "__main__":
    main()
