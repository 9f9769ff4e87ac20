"""A dead letter as people read it: what failed and why, its input, what was done to it, and what to type next."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from loomq.cli.goal import told, told_entries
from loomq.cli.output import console, duration, say, since, table
from loomq.cli.terminal import printable, shortened
from loomq.redaction import excerpt, redacted, redacted_json
from loomq.services.letters import MalformedMessage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from loomq.services.letters import AuditEntry, BulkReplay, DeadLetter, DeadLetterDetails, Replay

_WIDE = 120  # columns
_BEGINNING = 18  # the milliseconds of an id and some of its noise
_LONGEST = 4_000
_MOST_REPLAYS = 20
_SHORT = 80


def print_letters(
    letters: Sequence[DeadLetter],
    messages: Sequence[MalformedMessage],
    *,
    total: int,
    messages_total: int,
    is_filtered: bool,
) -> None:
    """Print the lists of dead letters and of malformed messages."""
    out = console()
    if not letters and not messages:
        say("no dead letters" + (" like that" if is_filtered else ""))
    is_wide = out.width >= _WIDE
    if letters:
        headers = ("letter", "name", "worker", "error", "tries", "age", *(["message"] if is_wide else []))
        out.print(table(headers, [_row(letter, is_wide=is_wide) for letter in letters], right=("tries", "age")))
    if messages:
        out.print("\nmalformed messages, of which no task could be made" if letters else "malformed messages")
        rows = [(m.id, m.queue, _age(m.seen_at), excerpt(m.reason, length=_SHORT)) for m in messages]
        out.print(table(("message", "queue", "age", "reason"), rows, right=("age",)))
    if total > len(letters):
        say(f"… and {total - len(letters):,} more; --limit shows them")
    if is_filtered and messages_total:
        say(f"{counted(messages_total, 'malformed message')} not shown: no filter fits them")
    elif messages_total > len(messages):
        say(f"… and {counted(messages_total - len(messages), 'more malformed message')}; --limit shows them")


def print_letter(found: DeadLetterDetails | MalformedMessage) -> None:
    """Print everything about one."""
    out = console()
    for line in _message_lines(found) if isinstance(found, MalformedMessage) else _letter_lines(found):
        out.print(printable(redacted(line)), soft_wrap=True)


def print_replay(done: Replay) -> None:
    """Print what became of one replay, or of an edit without one."""
    if done.outcome == "nothing":
        print(f"nothing to replay: {done.id} is {done.state}")
        return
    if done.outcome == "edited":
        print(f"edited {done.id}")
        say(f"replay it: loomq dead-letter replay {done.id}")
        return
    for letter in done.replayed:
        print(f"replayed {letter}")
    if done.reopened:
        say(f"{counted(done.reopened, 'other stage')} of its goal {'goes' if done.reopened == 1 else 'go'} on")


def print_bulk(done: BulkReplay) -> None:
    """Print what became of the replay of several."""
    if len(done.replays) <= _MOST_REPLAYS:
        for one in done.replays:
            print_replay(one)
    for letter, why in done.refused:
        say(f"not replayed: {letter}: {why}")
    if done.letters or not done.replays:
        goals = counted(sum(bool(one.replayed) for one in done.replays), "goal")
        say(f"{counted(done.letters, 'dead letter')} of {goals} replayed{f', {done.left:,} left' if done.left else ''}")
    if len(done.replays) == 1:
        say(f"follow it: loomq show {done.replays[0].goal_id}")


def _row(letter: DeadLetter, *, is_wide: bool) -> tuple[Any, ...]:
    name = letter.id if is_wide else f"{letter.id[:_BEGINNING]}{letter.id[36:]}"
    message = excerpt(str(letter.error.get("message", "")), length=_SHORT)
    row = (name, letter.name, letter.worker, letter.error_type, letter.attempts, _age(letter.failed_at))
    return (*row, message) if is_wide else row


def _letter_lines(found: DeadLetterDetails) -> Iterator[str]:
    letter = found.letter
    yield f"letter      {letter.id}"
    if letter.kind != "worker":
        yield f"{letter.kind:<11} {letter.name}"
    yield f"worker      {letter.worker}, tier {letter.tier}, priority {letter.priority}"
    yield f"failed      {_time(letter.failed_at)}, {_age(letter.failed_at)} ago: {letter.reason}"
    yield f"goal        {letter.goal_status}, submitted {_time(letter.submitted_at)}"
    yield f"attempts    {letter.attempts} of {letter.max_retries + 1}"
    yield f"deliveries  {letter.deliveries}"
    yield f"\nerror       {told(letter.error)}"
    for label in ("where", "cause", "hint"):
        if letter.error.get(label):
            yield f"  {label}: {letter.error[label]}"
    if len(letter.history) > 1:
        yield "\nhistory"
        yield from told_entries(letter.history)
    yield "\ninput, edited" if letter.is_edited else "\ninput"
    if found.payload_fault:
        yield f"  it cannot be told: {found.payload_fault}"
    else:
        yield from _indented(redacted_json(found.payload))
    yield "\nmessage"
    yield from (
        f"  {key}: {value if isinstance(value, str) else json.dumps(value)}" for key, value in found.message.items()
    )
    yield from _audit_lines(found.audit)
    yield ""
    yield from _next(found)


def _next(found: DeadLetterDetails) -> Iterator[str]:
    letter = found.letter
    if found.is_dropped:
        yield "dropped: it will not be replayed"
        return
    if letter.goal_status != "failed":
        yield f"there is no way back to its goal, which is {letter.goal_status}"
        yield f"  loomq dead-letter drop {letter.id}"
        return
    yield "when the cause is mended, or with another input, or never:"
    yield f"  loomq dead-letter replay {letter.id}"
    # Where the mapping finds no input, there is none to change a field of.
    yield f"  loomq dead-letter edit {letter.id} " + ("--payload JSON" if found.payload is None else "--set KEY=VALUE")
    yield f"  loomq dead-letter drop {letter.id}"


def _message_lines(found: MalformedMessage) -> Iterator[str]:
    shown = found.to_json()
    yield f"message     {found.id}"
    yield f"queue       {found.queue}"
    yield f"seen        {_time(found.seen_at)}, {_age(found.seen_at)} ago"
    yield f"reason      {shown['reason']}"
    yield f"size        {found.size:,} bytes"
    yield "\nproperties"
    yield from _indented(shown["properties"])
    yield "\nbytes"
    yield from (f"  {line}" for line in shortened(shown["body"], _LONGEST).splitlines())
    yield from _audit_lines(found.audit)
    yield "\nno task could be made of it, so it cannot be replayed; when somebody has seen to it:"
    yield f"  loomq dead-letter drop {found.id}"


def _audit_lines(audit: Sequence[AuditEntry]) -> Iterator[str]:
    if audit:
        yield "\naudit trail"
    for entry in audit:
        shown = entry.to_json()
        detail = {key: value for key, value in shown["detail"].items() if key != "going"}
        told_detail = shortened(json.dumps(detail, ensure_ascii=False)) if detail else ""
        yield f"  {_time(entry.at)}  {entry.actor}  {entry.action}  {entry.stage or ''}  {told_detail}".rstrip()


def _indented(value: Any) -> Iterator[str]:
    text = json.dumps(value, ensure_ascii=False, indent=2)
    yield from (f"  {line}" for line in shortened(text, _LONGEST).splitlines())


def _time(when: datetime) -> str:
    return when.astimezone().isoformat(sep=" ", timespec="seconds")


def _age(when: datetime) -> str | None:
    return duration(since(when))


def counted(number: int, noun: str) -> str:
    """Write a number with its noun."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
