"""``loomq sweep``: repair what was lost on the way, for machines without worker nodes."""

from __future__ import annotations

import json
import logging
import signal
from contextlib import contextmanager
from threading import Event
from typing import TYPE_CHECKING, Any

import click

from loomq.cli.options import Invocation, json_option, pass_invocation

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from loomq.loom import Loom

_SAID = {
    "taken_back": "stages taken back whose lease ran out",
    "timed_out": "stages taken back that ran beyond their timeout",
    "given_up": "stages given up",
    "overdue": "goals ended at their deadline",
    "lost": "lost messages found",
    "topped_up": "messages sent",
    "chords": "chords' bodies sent",
    "calls": "calls' continuations sent",
    "silo_updates": "changes of silos made that were left behind",
    "windows": "rounds of tasks of which more could be under way, set going again",
}


@click.command("sweep")
@click.option("--once", is_flag=True, help="Make one pass, and say what it repaired.")
@json_option
@pass_invocation
def command(invocation: Invocation, once: bool, as_json: bool) -> int:
    """Repair what was lost on the way, until Ctrl-C or SIGTERM.

    Every worker node sweeps, one of them at a time; this is for machines without one, and may run beside them. One pass
    finds what the rows prove; a message that vanished from its queue is found by a second look some seconds later.
    With --json each pass that repaired something is a line of JSON.
    """
    from loomq.logs import guard
    from loomq.services import setup

    loom = invocation.loom(broker=False)
    logging.basicConfig(level=loom.settings.log_level, format="[%(asctime)s: %(levelname)s/loomq-sweep] %(message)s")
    guard(logging.getLogger())
    setup.require_schema(loom)
    if once:
        return _once(loom, as_json=as_json)
    _forever(loom, as_json=as_json)
    return 0


def _once(loom: Loom, *, as_json: bool) -> int:
    from loomq.cli.output import emit, say
    from loomq.services import sweep

    done = sweep.sweep_once(loom)
    if done is None:
        found = sweep.leader(loom)
        if as_json:
            emit({"schema_version": 1, "led": False, "leader": sweep.leader_json(found)})
        else:
            say(f"{(found and found.who) or 'another sweeper'} leads, and sweeps; nothing was done")
        return 0
    if as_json:
        emit({"schema_version": 1, "led": True, **done})
    else:
        print("\n".join(_lines(done)) or "nothing to repair")
        for fault in done["faults"]:
            say(f"not done: {fault}")
    return 1 if done["faults"] else 0


def _lines(done: dict[str, Any]) -> Iterator[str]:
    return (f"{done[name]:>6}  {what}" for name, what in _SAID.items() if done[name])


def _forever(loom: Loom, *, as_json: bool) -> None:
    from loomq.cli.output import say
    from loomq.services import sweep

    def report(done: dict[str, Any]) -> None:
        if as_json and any(done[name] for name in _SAID):
            print(json.dumps({"schema_version": 1, **done}), flush=True)

    with _asked_to_end() as is_over:
        say(f"sweeping every {loom.settings.sweep_seconds:g} s, while nobody else does; Ctrl-C ends it")
        sweep.sweep_until(loom, is_over, report)


@contextmanager
def _asked_to_end() -> Iterator[Event]:
    """Hear Ctrl-C and SIGTERM: the first ends the loop after the pass in hand, the second at once."""
    is_over = Event()
    before: dict[signal.Signals, Any] = {}

    def end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  (the signature is signal's)
        is_over.set()
        for each, handler in before.items():
            signal.signal(each, handler)

    before |= {each: signal.signal(each, end) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield is_over
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
