"""``loomq schedule``: when what is due, what came of it, and a hand on it."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING

import click

from loomq.cli.completion import schedule_keys
from loomq.cli.options import Invocation, json_option, pass_invocation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loomq.services.schedule_views import RunView, ScheduleView

_SHORT = 70
_TELL_EVERY_S = 2.0
_name = click.argument("schedule", shell_complete=schedule_keys)


@click.group("schedule")
def command() -> None:
    """Look at schedules, and steer them.

    A SCHEDULE is named FILE.ENTRY, or by either half if that says which. Beat fires them: celery -A loomq beat, or
    loomq dev.
    """


@command.command("list")
@json_option
@pass_invocation
def list_(invocation: Invocation, as_json: bool) -> None:
    """List all schedules: when they are due, when next, and how the last run went."""
    from loomq.cli.output import console, emit, say, table
    from loomq.services import schedules

    view = schedules.beat(invocation.ready(lenient=True))
    if as_json:
        emit({"schema_version": 1, "beat": view.to_json(), "schedules": [one.to_json() for one in view.schedules]})
        return
    if not view.schedules:
        say("no schedules; add one: loomq new schedule NAME")
        return
    rows = [
        (
            one.key,
            one.state,
            one.entry.sentence,
            one.timezone,
            one.target,
            _at(one.next[0], one.timezone) if one.next else None,
            f"{one.runs[0].result}, {_at(one.runs[0].due_at, one.timezone)}" if one.runs else None,
        )
        for one in view.schedules
    ]
    console().print(table(("schedule", "state", "due", "zone", "hands in", "next", "last run"), rows))
    for fault in view.faults:
        say(fault)


@command.command("show")
@_name
@click.option("--limit", "-n", type=click.IntRange(1, 1_000), default=10, show_default=True, help="Last runs.")
@json_option
@pass_invocation
def show(invocation: Invocation, schedule: str, limit: int, as_json: bool) -> None:
    """Show one SCHEDULE: what it hands in, its next due times, and its last runs with their results."""
    from loomq.cli.output import emit
    from loomq.services import schedules

    loom = invocation.ready(lenient=True)
    view = schedules.show(loom, schedules.find(loom, schedule), runs=limit)
    if as_json:
        emit({"schema_version": 1, **view.to_json()})
        return
    _print(view)


@command.command("next")
@click.argument("count", type=click.IntRange(1, 10_000), default=10, required=False)
@click.option("--of", "schedule", metavar="SCHEDULE", shell_complete=schedule_keys, help="Only this one's.")
@json_option
@pass_invocation
def next_(invocation: Invocation, count: int, schedule: str | None, as_json: bool) -> None:
    """List the next COUNT due times, of all schedules that are on."""
    from loomq.cli.output import console, emit, say, table
    from loomq.services import schedules

    loom = invocation.ready(lenient=True)
    found = schedules.upcoming(loom, count, schedules.find(loom, schedule) if schedule else None)
    if as_json:
        emit({"schema_version": 1, "next": [{"due_at": at.isoformat(), "key": key} for at, key in found]})
        return
    if not found:
        say("nothing will be due: loomq schedule list says what is paused, disabled, or not seen by beat yet")
        return
    zones = {one.key: one.timezone for one in schedules.survey(loom, times=0)}
    console().print(table(("due", "zone", "schedule"), [(_at(at, zones[key]), zones[key], key) for at, key in found]))


@command.command("pause")
@_name
@json_option
@pass_invocation
def pause(invocation: Invocation, schedule: str, as_json: bool) -> None:
    """Let a SCHEDULE fire no more until it is resumed; goals that it has handed in go on."""
    from loomq.services import schedules

    loom = invocation.ready(lenient=True)
    key = schedules.find(loom, schedule, known=True)
    _tell(key, schedules.pause(loom, key), "paused", "it was paused already", as_json=as_json)


@command.command("resume")
@_name
@json_option
@pass_invocation
def resume(invocation: Invocation, schedule: str, as_json: bool) -> None:
    """Let a paused SCHEDULE go on from now; what was due meanwhile is passed over (see backfill)."""
    from loomq.services import schedules

    loom = invocation.ready(lenient=True)
    key = schedules.find(loom, schedule, known=True)
    _tell(key, schedules.resume(loom, key), "resumed", "it was not paused", as_json=as_json)


@command.command("trigger")
@_name
@click.option(
    "--overlap",
    type=click.Choice(("allow", "skip", "queue", "cancel_previous")),
    help="If the last run still goes on; default: as the schedule says.",
)
@json_option
@pass_invocation
def trigger(invocation: Invocation, schedule: str, overlap: str | None, as_json: bool) -> int:
    """Fire a SCHEDULE now, also one that is paused or disabled; its due times stay as they are.

    Exit code 1 if it was skipped or refused.
    """
    from loomq.cli.output import emit, say
    from loomq.services import schedules

    loom = invocation.ready()
    key = schedules.find(loom, schedule)
    run = schedules.trigger(loom, key, overlap=overlap)
    if as_json:
        emit({"schema_version": 1, "key": key, **run.to_json()})
    else:
        for goal_id in run.goals:
            print(goal_id)
        say(f"{key}: {run.state}" + (f": {run.reason}" if run.reason else ""))
    return 1 if run.state in {"skipped", "failed"} else 0


@command.command("backfill")
@_name
@click.option("--from", "start", metavar="TIME", required=True, help="The first due time, or a moment before it.")
@click.option("--to", "end", metavar="TIME", help="Only due times before this one; default: now.")
@click.option("--dry-run", is_flag=True, help="Only list the due times.")
@json_option
@pass_invocation
def backfill(invocation: Invocation, schedule: str, start: str, end: str | None, dry_run: bool, as_json: bool) -> int:
    """Fire the due times of the past that have not fired.

    TIME is written 2026-03-01 or 2026-03-01T09:00, in the schedule's time zone, or with an offset. If the schedule
    does not allow runs to overlap, they are queued, and beat lets one go after another. To interrupt it does no harm.
    """
    from loomq.cli.output import emit, say
    from loomq.services import schedules

    moments = [None if text is None else _moment(text, option) for text, option in ((start, "--from"), (end, "--to"))]
    assert moments[0] is not None
    loom = invocation.ready()
    key = schedules.find(loom, schedule)
    told_at = time.monotonic()

    def tell(done: int, of: int) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= _TELL_EVERY_S:
            told_at = time.monotonic()
            say(f"{done:,} of {of:,} …")

    found = schedules.backfill(loom, key, moments[0], moments[1], dry_run=dry_run, on_progress=tell)
    failed = [run for run in found.runs if run.state == "failed"]
    if as_json:
        emit(found.to_json())
        return 1 if failed else 0
    zone = schedules.show(loom, key, runs=1, times=0).timezone
    for at in found.due:
        print(_at(at, zone))
    queued = sum(run.state == "queued" for run in found.runs)
    done = f"{len(found.runs) - queued - len(failed):,} fired, {queued:,} queued, {len(failed):,} failed"
    said = f"{len(found.due):,} would fire" if dry_run else done
    say(f"{key}: {said}, {found.passed_over:,} had fired before")
    for reason in dict.fromkeys(run.reason for run in failed if run.reason):
        say(f"  {reason}")
    return 1 if failed else 0


def _moment(text: str, option: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise click.UsageError(f'{option}: "{text}" is no time; write 2026-03-01 or 2026-03-01T09:00') from None


def _tell(key: str, is_done: bool, done: str, otherwise: str, *, as_json: bool) -> None:
    from loomq.cli.output import emit, say

    if as_json:
        emit({"schema_version": 1, "key": key, done: is_done})
    elif is_done:
        print(f"{done} {key}")
    else:
        say(f"{key}: {otherwise}")


def _at(when: datetime, zone: str) -> str:
    """Write a due time on the wall clock of its schedule."""
    from zoneinfo import ZoneInfo

    there = when if zone == "UTC" else when.astimezone(ZoneInfo(zone))
    return there.strftime("%a %Y-%m-%d %H:%M:%S").removesuffix(":00")


def _print(view: ScheduleView) -> None:
    from loomq.cli.output import console

    out, entry = console(), view.entry
    when = f"{entry.sentence}, {view.timezone}"
    many = f", one a dict of {entry.expand_from}" if entry.expand_from else ""
    facts = [
        ("schedule", view.key),
        ("state", view.state + (f" by {view.paused_by}" if view.state == "paused" else "")),
        ("due", f"{when} ({entry.cron})" if entry.cron else when),
        ("hands in", f"a {entry.dispatch_type} to {view.target}{many}"),
        ("missed", f"catch_up: {entry.catch_up}"),
        ("overlap", entry.overlap),
        ("late", f"due at {_at(view.late, view.timezone)} and has not fired" if view.late else None),
        ("next", ", ".join(_at(at, view.timezone) for at in view.next) or None),
    ]
    for name, value in facts:
        if value is not None:
            out.print(f"{name:<9} {value}", soft_wrap=True)
    if view.runs:
        out.print()
        _print_runs(view.runs, view.timezone)


def _print_runs(runs: Sequence[RunView], zone: str) -> None:
    from loomq.cli.output import console, table
    from loomq.cli.terminal import shortened

    rows = [
        (
            _at(run.due_at, zone),
            run.cause,
            run.result,
            str(run.goals[0]) + (f" and {len(run.goals) - 1} more" if len(run.goals) > 1 else "")
            if run.goals
            else None,
            shortened(run.reason, _SHORT) if run.reason else None,
        )
        for run in runs
    ]
    console().print(table(("due", "cause", "result", "goal", "why"), rows))


def _goals(run: RunView) -> str | None:
    if not run.goals:
        return None
    return str(run.goals[0]) + (f" and {len(run.goals) - 1} more" if len(run.goals) > 1 else "")
