"""``loomq completion SHELL``: what a shell needs to complete commands, options, names and goals; and the answers."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from loomq.cli.options import Invocation, json_option

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from loomq.loom import Loom

    Completer = Callable[[click.Context, click.Parameter, str], list[str]]

VARIABLE = "_LOOMQ_COMPLETE"  # set by the shell's script; click's own name for it
SHELLS = ("bash", "zsh", "fish")
_MOST_IDS = 20
_SETUP = {
    "bash": 'eval "$(loomq completion bash)"   # in ~/.bashrc',
    "zsh": 'eval "$(loomq completion zsh)"   # in ~/.zshrc, after compinit',
    "fish": "loomq completion fish > ~/.config/fish/completions/loomq.fish",
}


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
@json_option
def command(shell: str, as_json: bool) -> None:
    """Print the script that lets a SHELL complete commands, options, pipelines, workers and goals.

    \b
    bash:  eval "$(loomq completion bash)"     in ~/.bashrc
    zsh:   eval "$(loomq completion zsh)"      in ~/.zshrc, after compinit
    fish:  loomq completion fish > ~/.config/fish/completions/loomq.fish
    """  # noqa: D301  (\b is click's mark)
    from loomq.cli.output import emit

    script = _source(shell)
    if as_json:
        emit({"schema_version": 1, "shell": shell, "setup": _SETUP[shell], "script": script})
    else:
        print(script)


def answer(program: click.Command) -> int | None:
    """Answer a shell that asks for completions.

    Returns:
        The exit code, or ``None`` if no shell asks.
    """
    instruction = os.environ.get(VARIABLE)
    if not instruction:
        return None
    from click.shell_completion import shell_complete

    return shell_complete(program, {"obj": Invocation()}, "loomq", VARIABLE, instruction)


def names(*folders: str) -> Completer:
    """Give a completer of the names in a project's folders, read from the files' names alone."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001
        project = _project(context)
        found = {
            file.stem
            for folder in folders
            if (project / folder).is_dir()
            for file in (project / folder).iterdir()
            if file.suffix in (".yaml", ".yml") and file.name[0] not in "._"
        }
        return sorted(name for name in found if name.startswith(incomplete))

    return complete


def goal_ids(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001
    """Complete the last goals' ids, if the database is up; starts nothing, and is silent about whatever goes wrong."""
    from loomq.services import inspect

    return _from_database(
        context, incomplete, lambda loom: [str(line.goal_id) for line in inspect.listed(loom, limit=_MOST_IDS)]
    )


def letter_ids(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001
    """Complete the last dead letters' ids, as ``goal_ids`` does."""
    from loomq.services.dead_letters import list_dead_letters

    return _from_database(
        context, incomplete, lambda loom: [letter.id for letter in list_dead_letters(limit=_MOST_IDS, loom=loom)]
    )


def session_ids(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001
    """Complete the last sessions' ids, as ``goal_ids`` does."""
    from loomq.services import sessions

    return _from_database(
        context,
        incomplete,
        lambda loom: [str(one.session_id) for one in sessions.list_sessions(limit=_MOST_IDS, loom=loom)],
    )


def schedule_keys(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001
    """Complete the keys of the project's schedules; starts nothing, and is silent about whatever goes wrong."""
    with suppress(Exception):
        from loomq.loom import Loom
        from loomq.services.schedules import keys

        loom = Loom(context.ensure_object(Invocation).settings(), lenient=True)
        return [key for key in keys(loom) if key.startswith(incomplete)]
    return []


def stage_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001
    """Complete the stages of the goal that is named before, as ``goal_ids`` does."""
    from loomq.services import inspect

    def read(loom: Loom) -> list[str]:
        goal_id = inspect.find(loom, str(context.params["goal"]))
        return [stage.name for stage in inspect.progress(loom, goal_id)]

    return _from_database(context, incomplete, read)


def _from_database(context: click.Context, incomplete: str, read: Callable[[Loom], list[str]]) -> list[str]:
    with suppress(Exception):
        from loomq.loom import Loom
        from loomq.services import setup

        loom = Loom(context.ensure_object(Invocation).settings())
        try:
            if setup.database_answers(loom):
                return [found for found in read(loom) if found.startswith(incomplete)]
        finally:
            loom.close()
    return []


def _project(context: click.Context) -> Path:
    from pathlib import Path

    from loomq.settings import find_project

    given = context.ensure_object(Invocation).project or os.environ.get("LOOMQ_PROJECT")
    return Path(given) if given else find_project()


def _source(shell: str) -> str:
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    # The program is not looked at for its script, and bash's own check of its version would start a shell.
    made = kind(click.Command("loomq"), {}, "loomq", VARIABLE)
    return made.source_template % made.source_vars()
