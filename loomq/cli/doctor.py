"""``loomq doctor``: what is well, what is not, and the command that repairs it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from loomq.cli.options import Invocation, json_option, pass_invocation

if TYPE_CHECKING:
    from loomq.services.doctor.check import Diagnosis

_MARKS = {"ok": ("ok  ", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "red")}


@click.command("doctor")
@json_option
@pass_invocation
@click.pass_context
def command(context: click.Context, invocation: Invocation, as_json: bool) -> None:
    """Check everything that goals need: Python, project, services, worker nodes, language models.

    Starts nothing and takes at most two seconds. Each fault comes with the command that repairs it. Exit code 3 means
    that something fails; warnings do not count.
    """
    from loomq.cli.faults import ENVIRONMENT, OK
    from loomq.cli.output import emit
    from loomq.services.doctor.examine import examine

    found = examine(invocation.settings)
    if as_json:
        emit(found.to_json())
    else:
        _print(found)
    context.exit(OK if found.is_healthy else ENVIRONMENT)


def _print(found: Diagnosis) -> None:
    from loomq.cli.terminal import colored, printable

    width = max(len(check.name) for check in found.checks)
    for check in found.checks:
        mark, color = _MARKS[check.status]
        print(f"{colored(mark, color, sys.stdout)}  {check.name:<{width}}  {printable(check.message)}")
        if check.fix:
            print(f"      {'':<{width}}  repair: {printable(check.fix)}")
