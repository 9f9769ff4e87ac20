"""``loomq dead-letter``: what failed for good, and the ways back."""

from __future__ import annotations

import functools
import re
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from loomq.cli.completion import goal_ids, letter_ids, names
from loomq.cli.options import Invocation, json_option, pass_invocation
from loomq.cli.request import parse_inputs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loomq.loom import Loom
    from loomq.services.letters import Replay

STATES = ("failed", "dead")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_TELL_EVERY_S = 2.0

actor_option = click.option("--actor", metavar="NAME", help="Who does it, for the audit trail; default: user@host.")


def _time(context: click.Context, parameter: click.Parameter, given: str | None) -> datetime | None:
    """Read a time: so long ago, or an ISO date or time, in this machine's zone unless it says another."""
    if given is None:
        return None
    ago = re.fullmatch(r"(\d+)([smhd])", given)
    try:
        if ago:
            return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        return datetime.fromisoformat(given).astimezone()
    except (ValueError, OverflowError):
        text = f'"{given}" is no time: write 2h, 30m, 7d or 2026-05-01T12:00'
        raise click.BadParameter(text, context, parameter) from None


def filter_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which dead letters are meant; the command gets those given as ``wanted``."""

    @functools.wraps(function)
    def with_filters(*given: Any, **options: Any) -> Any:
        wanted = {key: options.pop(key) for key in known}
        return function(*given, wanted={key: value for key, value in wanted.items() if value is not None}, **options)

    decorators: dict[str, Callable[..., Any]] = {
        "worker": click.option("--worker", shell_complete=names("workers")),
        "pipeline": click.option("--pipeline", metavar="PIPELINE|WORKER", shell_complete=names("pipelines")),
        "goal": click.option("--goal", metavar="ID", shell_complete=goal_ids, help="The beginning of the id will do."),
        "stage": click.option("--stage"),
        "error_type": click.option("error_type", "--type", metavar="ERROR", help="Such as PipelineTimeoutError."),
        "state": click.option("--state", type=click.Choice(STATES), help="dead: it lost its process too often."),
        "since": click.option("--since", metavar="TIME", callback=_time, help="Failed since: 2h, 7d, or an ISO time."),
        "until": click.option("--until", metavar="TIME", callback=_time, help="Failed before."),
        "text": click.option("--text", help="A part of the error."),
    }
    known = tuple(decorators)
    found: Callable[..., Any] = with_filters
    for decorator in reversed(decorators.values()):
        found = decorator(found)
    return found


@click.group("dead-letter")
def command() -> None:
    """Look at what failed for good; replay, edit or drop it.

    A dead letter is called GOAL/STAGE. The beginning of the goal's id will do, and if the goal has one only, its stage
    need not be named.
    """


@command.command("list")
@filter_options
@click.option("--limit", "-n", type=click.IntRange(1, 10_000), default=20, show_default=True)
@json_option
@pass_invocation
def list_(invocation: Invocation, wanted: dict[str, Any], limit: int, as_json: bool) -> None:
    """List dead letters, newest first, then the messages that no task could be made of."""
    from loomq.cli.letter import print_letters
    from loomq.cli.output import emit, say
    from loomq.services import dead_letters

    loom = _loom(invocation)
    _find_goal(loom, wanted)
    letters = dead_letters.list_dead_letters(limit=limit, loom=loom, **wanted)
    total, _ = dead_letters.count_dead_letters(loom=loom, **wanted)
    messages = [] if wanted else dead_letters.list_malformed_messages(limit=limit, loom=loom)
    messages_total = dead_letters.count_malformed_messages(loom=loom)
    if as_json:
        emit({
            "schema_version": 1,
            "total": total,
            "letters": [letter.to_json() for letter in letters],
            "malformed_total": messages_total,
            "malformed": [message.to_json() for message in messages],
        })  # fmt: skip
        return
    print_letters(letters, messages, total=total, messages_total=messages_total, is_filtered=bool(wanted))
    if not letters:
        for line in dead_letters.unknown_filters(loom=loom, **wanted):
            say(line)


@command.command("show")
@click.argument("letter", shell_complete=letter_ids)
@json_option
@pass_invocation
def show(invocation: Invocation, letter: str, as_json: bool) -> None:
    """Show a dead LETTER: error, attempts, input, message, and what was done to it."""
    from loomq.cli.letter import print_letter
    from loomq.cli.output import emit
    from loomq.services.dead_letters import get_dead_letter

    found = get_dead_letter(letter, loom=_loom(invocation))
    if as_json:
        emit({"schema_version": 1, **found.to_json()})
    else:
        print_letter(found)


@command.command("replay")
@click.argument("letters", nargs=-1, shell_complete=letter_ids)
@click.option("everything", "--all", is_flag=True, help="All that the options below mean, instead of LETTERS.")
@filter_options
@click.option(
    "--limit", "-n", type=click.IntRange(1, 100_000), default=1_000, show_default=True, help="With --all: goals."
)
@click.option("--yes", "-y", is_flag=True, help="With --all: do not ask.")
@actor_option
@json_option
@pass_invocation
def replay(
    invocation: Invocation,
    letters: Sequence[str],
    everything: bool,
    wanted: dict[str, Any],
    limit: int,
    yes: bool,
    actor: str | None,
    as_json: bool,
) -> int | None:
    """Set dead LETTERS going again; their goals go on to their ends. If one of them is wrong, none is replayed.

    All stages of a goal that failed begin anew, and what the failure had cancelled goes on. Asked twice, the second
    time finds nothing to replay.
    """
    from loomq.cli.faults import WORK_FAILED
    from loomq.cli.letter import print_bulk
    from loomq.cli.output import emit, say
    from loomq.services.dead_letters import replay_dead_letters, replay_named_letters

    if bool(letters) == everything:
        raise click.UsageError("name dead letters, or give --all")
    if wanted and not everything:
        raise click.UsageError("options that choose dead letters go with --all")
    loom = _loom(invocation)
    if everything:
        _find_goal(loom, wanted)
        if not _is_agreed(loom, wanted, limit=limit, is_agreed=yes, as_json=as_json):
            say("nothing was replayed")
            return None
        found = replay_dead_letters(limit=limit, actor=actor, on_progress=_progress(), loom=loom, **wanted)
    else:
        found = replay_named_letters(letters, actor=actor, loom=loom)
    if as_json:
        emit({"schema_version": 1, **found.to_json()})
    else:
        print_bulk(found)
        _remark(loom, found.replays)
    return WORK_FAILED if letters and found.refused else None


@command.command("edit")
@click.argument("letter", shell_complete=letter_ids)
@click.option(
    "changes",
    "--set",
    "-i",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one field of the input; JSON if it is JSON, else text; @FILE reads a file. Repeatable.",
)
@click.option("--payload", metavar="JSON|@FILE|-", help="The whole input as a JSON object; --set wins over it.")
@click.option("replays", "--replay/--no-replay", default=True, help="Replay it at once, or only keep the new input.")
@actor_option
@json_option
@pass_invocation
def edit(
    invocation: Invocation,
    letter: str,
    changes: Sequence[str],
    payload: str | None,
    replays: bool,
    actor: str | None,
    as_json: bool,
) -> None:
    """Give a dead LETTER another input, and replay it.

    The input is checked against the contract that the goal was submitted with; if it breaks it, nothing is changed.
    """
    from loomq.cli.letter import print_replay
    from loomq.cli.output import emit
    from loomq.services.dead_letters import edit_dead_letter

    if payload is None and not changes:
        raise click.UsageError("say what to change: --set KEY=VALUE, or --payload JSON")
    given = parse_inputs(changes, "@-" if payload == "-" else payload, option="--payload")
    loom = _loom(invocation)
    if payload is None:
        given = {**_present(loom, letter), **given}
    found = edit_dead_letter(letter, given, replay=replays, actor=actor, loom=loom)
    if as_json:
        emit({"schema_version": 1, **found.to_json()})
    else:
        print_replay(found)
        _remark(loom, [found])


@command.command("drop")
@click.argument("letters", nargs=-1, required=True, shell_complete=letter_ids)
@actor_option
@json_option
@pass_invocation
def drop(invocation: Invocation, letters: Sequence[str], actor: str | None, as_json: bool) -> None:
    """Say that nobody will replay these LETTERS; their goals stay failed. Malformed messages are dropped by their ids.

    If one of them is wrong, none is dropped. They leave the list at once, and the database with `loomq prune`.
    """
    from loomq.cli.output import emit
    from loomq.services.dead_letters import drop_named_letters

    dropped = drop_named_letters(letters, actor=actor, loom=_loom(invocation))
    if as_json:
        emit({"schema_version": 1, "dropped": dropped})
        return
    for letter in dropped:
        print(f"dropped {letter}")


def _loom(invocation: Invocation) -> Loom:
    from loomq.cli.output import notice_if_slow
    from loomq.services.setup import require_schema

    loom = invocation.loom(broker=False)
    with notice_if_slow("starting the private Postgres and Redis …" if loom.is_embedded else "waiting for Postgres …"):
        require_schema(loom)
    return loom


def _find_goal(loom: Loom, wanted: dict[str, Any]) -> None:
    """Turn the beginning of a goal's id into the id."""
    from loomq.services import inspect

    if "goal" in wanted:
        wanted["goal_id"] = inspect.find(loom, wanted.pop("goal"))


def _present(loom: Loom, letter: str) -> dict[str, Any]:
    """Read the input that a letter has now."""
    from loomq.errors import DeadLetterError
    from loomq.services.dead_letters import get_dead_letter
    from loomq.services.letters import MalformedMessage

    found = get_dead_letter(letter, loom=loom)
    if isinstance(found, MalformedMessage):
        return {}  # refused by the edit itself
    if found.payload is None:
        raise DeadLetterError(
            f"the present input of {letter} cannot be told: {found.payload_fault}",
            hint="give the whole input: --payload JSON|@FILE",
        )
    return found.payload


def _is_agreed(loom: Loom, wanted: dict[str, Any], *, limit: int, is_agreed: bool, as_json: bool) -> bool:
    """Ask before many are replayed, unless somebody has said yes already."""
    from loomq.cli.letter import counted
    from loomq.services.dead_letters import count_dead_letters

    letters, goals = count_dead_letters(loom=loom, **wanted)
    if is_agreed or not letters:
        return True
    meant = f"{counted(letters, 'dead letter')} of {counted(goals, 'goal')}"
    if as_json or not sys.stdin.isatty():
        raise click.UsageError(
            f"{meant} {'is' if letters == 1 else 'are'} meant; say --yes to replay {'it' if letters == 1 else 'them'}"
        )
    most = f", {counted(limit, 'goal')} at most" if goals > limit else ""
    return click.confirm(f"replay {meant}{most}?", err=True)


def _progress() -> Callable[[int, int], None]:
    """Tell now and then how far it is."""
    from loomq.cli.output import say

    told_at = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= _TELL_EVERY_S:
            told_at = time.monotonic()
            say(f"{done:,} of {total:,} goals")

    return tell


def _remark(loom: Loom, replays: Sequence[Replay]) -> None:
    """Say what the goals have to wait for, besides their turn."""
    from loomq.cli.output import say
    from loomq.services.nodes import queues_of, unserved

    again = [one for one in replays if one.outcome == "replayed"]
    lonely = sorted(unserved(loom, queues_of(loom, again[0].goal_id))) if again else []
    if lonely:
        say(f"note: no live worker node serves {', '.join(lonely)}; start one: loomq worker")
