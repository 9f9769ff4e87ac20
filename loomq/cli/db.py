"""``loomq db``: migrate the database, or show its revision."""

from __future__ import annotations

import click

from loomq.cli.options import Invocation, json_option, pass_invocation


@click.group("db")
def command() -> None:
    """Migrate the database, or show its revision; embedded databases migrate by themselves."""


@command.command("upgrade")
@json_option
@pass_invocation
def upgrade(invocation: Invocation, as_json: bool) -> None:
    """Bring the database to this version's schema; safe to repeat, and while workers run."""
    from loomq.cli.output import emit, say
    from loomq.services import setup

    loom = invocation.loom(broker=False)
    before = setup.revision(loom)
    after = setup.upgrade(loom)
    if as_json:
        emit({"schema_version": 1, "before": before, "revision": after, "changed": before != after})
    elif before == after:
        say(f"already at revision {after}")
    else:
        say(f"migrated from {before or 'an empty database'} to revision {after}")


@command.command("current")
@json_option
@pass_invocation
def current(invocation: Invocation, as_json: bool) -> None:
    """Print the revision of the database's schema."""
    from loomq.cli.output import emit, say
    from loomq.services import setup

    found = setup.revision(invocation.loom(broker=False))
    if as_json:
        emit({"schema_version": 1, "revision": found, "head": setup.HEAD, "is_current": found == setup.HEAD})
        return
    print(found or "none")
    if setup.is_newer(found):
        say(f"a newer loomq has migrated it; this version knows none after {setup.HEAD} and goes on working with it")
    elif found != setup.HEAD:
        say(f"this version needs {setup.HEAD}; run: loomq db upgrade")
