"""``loomq prune``: take out of the database what ended long ago."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from loomq.cli.dead_letter import actor_option
from loomq.cli.options import Invocation, json_option, pass_invocation

if TYPE_CHECKING:
    from loomq.services.prune import Pruned

_TELL_EVERY_S = 2.0


@click.command("prune")
@click.option(
    "--older",
    type=click.FloatRange(0),
    metavar="DAYS",
    help="Goals that ended so long ago; default: the setting keep_goals_days, 30.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@actor_option
@json_option
@pass_invocation
def command(invocation: Invocation, older: float | None, dry_run: bool, actor: str | None, as_json: bool) -> None:
    """Delete goals that ended long ago, with their stages, results and keys.

    Failed goals with dead letters stay longer: see the settings keep_dead_letters_days and keep_dead_letters. Safe to
    run at any time, from cron too, and to interrupt.
    """
    from loomq.cli.output import emit, say
    from loomq.services.prune import prune
    from loomq.services.setup import require_schema

    loom = invocation.loom(broker=False)
    require_schema(loom)
    told_at = time.monotonic()

    def tell(so_far: Pruned) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= _TELL_EVERY_S:
            told_at = time.monotonic()
            say(f"{so_far.goals:,} goals, {so_far.stages:,} stages …")

    found = prune(
        older=None if older is None else timedelta(days=older),
        dry_run=dry_run,
        actor=actor,
        on_progress=tell,
        loom=loom,
    )
    if as_json:
        emit({"schema_version": 1, "dry_run": dry_run, **found.to_json()})
        return
    for name, count in found.to_json().items():
        print(f"{name.replace('_', ' '):<13} {count:,}")
    say("would go; nothing was deleted" if dry_run else "deleted")
