"""``loomq cache``: answers of models that are kept for others, first plans of orchestrators among them."""

from __future__ import annotations

import click

from loomq.cli.completion import names
from loomq.cli.options import Invocation, json_option, pass_invocation

_SHORT = 60
_name = click.option(
    "--name",
    metavar="WORKER|ORCHESTRATOR",
    shell_complete=names("workers", "pipelines"),
    help="Only the answers of this one.",
)


@click.group("cache")
def command() -> None:
    """List or forget the answers that are given again: those of workers with a cache, plans of orchestrators."""


@command.command("list")
@click.option("--limit", "-n", type=click.IntRange(1, 10_000), default=20, show_default=True)
@_name
@json_option
@pass_invocation
def list_(invocation: Invocation, limit: int, name: str | None, as_json: bool) -> None:
    """List the answers that are kept, the newest first."""
    from loomq.cli.output import clock, console, emit, say, table
    from loomq.cli.terminal import shortened
    from loomq.services.answers import list_answers

    found = list_answers(invocation.ready(), name, limit)
    if as_json:
        emit({"schema_version": 1, "answers": [one.to_json() for one in found]})
        return
    if not found:
        say("no answer is kept" + (f" of {name}" if name else ""))
        return
    rows = [
        (
            one.kept.key[:12],
            one.kept.worker,
            "plan" if one.is_plan else "answer",
            one.kept.model,
            clock(one.kept.created_at),
            one.kept.expires_at.astimezone().strftime("%Y-%m-%d %H:%M"),
            shortened(" ".join(one.content.split()), _SHORT),
        )
        for one in found
    ]
    console().print(table(("key", "of", "kind", "model", "since", "until", "answer"), rows))


@command.command("clear")
@_name
@json_option
@pass_invocation
def clear(invocation: Invocation, name: str | None, as_json: bool) -> None:
    """Forget the answers that are kept: the next who asks the same pays for it."""
    from loomq.cli.output import emit, say
    from loomq.services.answers import clear_answers

    count = clear_answers(invocation.ready(), name)
    if as_json:
        emit({"schema_version": 1, "cleared": count})
        return
    say(f"{count:,} answer{'' if count == 1 else 's'} forgotten")
