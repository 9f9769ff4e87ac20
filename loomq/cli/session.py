"""``loomq session``: goals that belong together, and what was said in them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from loomq.cli.completion import session_ids
from loomq.cli.options import Invocation, json_option, pass_invocation

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from loomq.services.transcripts import Session, SessionMessage, Transcript

_LONGEST = 4_000
_SHORT = 60


@click.group("session")
def command() -> None:
    """Look at sessions: goals that belong together, and what was said in them.

    A SESSION is named by its id or the beginning of it; goals join one with `loomq run --session`.
    """


@command.command("list")
@click.option("--limit", "-n", type=click.IntRange(1, 10_000), default=20, show_default=True)
@json_option
@pass_invocation
def list_(invocation: Invocation, limit: int, as_json: bool) -> None:
    """List sessions, those first in which something was said last."""
    from loomq.cli.output import console, emit, say, table
    from loomq.redaction import excerpt
    from loomq.services.sessions import list_sessions

    found = list_sessions(limit=limit, loom=invocation.ready())
    if as_json:
        emit({"schema_version": 1, "sessions": [one.to_json() for one in found]})
        return
    if not found:
        say("no sessions yet; begin one: loomq session new")
        return
    rows = [
        (
            one.session_id,
            excerpt(one.title, length=_SHORT) or None,
            sum(one.goals.values()),
            one.messages,
            f"{sum(one.tokens.values()):,}",
            one.updated_at.astimezone().strftime("%Y-%m-%d %H:%M"),
        )
        for one in found
    ]
    headers = ("session", "title", "goals", "messages", "tokens", "last")
    console().print(table(headers, rows, right=("goals", "messages", "tokens")))


@command.command("show")
@click.argument("session", shell_complete=session_ids)
@click.option("--limit", "-n", type=click.IntRange(1, 10_000), default=200, show_default=True, help="Last messages.")
@json_option
@pass_invocation
def show(invocation: Invocation, session: str, limit: int, as_json: bool) -> None:
    """Show a SESSION: what was asked and answered, and what its goals used."""
    from loomq.cli.output import emit
    from loomq.services import sessions

    loom = invocation.ready()
    found = sessions.get_session(sessions.find(loom, session), limit=limit, loom=loom)
    if as_json:
        emit({"schema_version": 1, **found.to_json()})
        return
    _print(found)


@command.command("search")
@click.argument("words", nargs=-1, required=True)
@click.option("--limit", "-n", type=click.IntRange(1, 1_000), default=20, show_default=True)
@json_option
@pass_invocation
def search(invocation: Invocation, words: Sequence[str], limit: int, as_json: bool) -> None:
    """Find what was said: WORDS as for a search engine, with "a phrase", or, and -without (behind a --)."""
    from loomq.cli.output import emit, say
    from loomq.cli.terminal import printable
    from loomq.redaction import excerpt
    from loomq.services.sessions import search_sessions

    found = search_sessions(" ".join(words), limit=limit, loom=invocation.ready())
    if as_json:
        emit({"schema_version": 1, "hits": [hit.to_json() for hit in found]})
        return
    if not found:
        say("nothing was found")
    for hit in found:
        at = hit.at.astimezone().strftime("%Y-%m-%d %H:%M")
        print(printable(f"{hit.session_id}  {at}  {hit.role or 'title'}  {excerpt(hit.title, length=_SHORT)}"))
        print(f"  {printable(' '.join(hit.snippet.split()))}")


@command.command("new")
@click.argument("title", default="", required=False)
@json_option
@pass_invocation
def new(invocation: Invocation, title: str, as_json: bool) -> None:
    """Make a session and print its id; without a TITLE its first goal's instruction becomes it."""
    from loomq.cli.output import emit
    from loomq.services.sessions import create_session

    found = create_session(title, loom=invocation.ready())
    if as_json:
        emit({"schema_version": 1, **found.to_json()})
    else:
        print(found.session_id)


@command.command("rename")
@click.argument("session", shell_complete=session_ids)
@click.argument("title")
@json_option
@pass_invocation
def rename(invocation: Invocation, session: str, title: str, as_json: bool) -> None:
    """Give a SESSION another TITLE."""
    from loomq.cli.output import emit
    from loomq.services import sessions

    loom = invocation.ready()
    session_id = sessions.find(loom, session)
    sessions.rename_session(session_id, title, loom=loom)
    found = sessions.get_session(session_id, limit=1, loom=loom).session
    if as_json:
        emit({"schema_version": 1, **found.to_json()})
    else:
        print(f"renamed {session_id}")


@command.command("delete")
@click.argument("session", shell_complete=session_ids)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@json_option
@pass_invocation
def delete(invocation: Invocation, session: str, yes: bool, as_json: bool) -> None:
    """Delete a SESSION with its messages for ever; its goals stay, and those that run go on."""
    from loomq.cli.output import emit
    from loomq.services import sessions

    loom = invocation.ready()
    session_id = sessions.find(loom, session)
    if not (yes or as_json):
        _ask(sessions.get_session(session_id, limit=1, loom=loom).session)
    sessions.delete_session(session_id, loom=loom)
    if as_json:
        emit({"schema_version": 1, "deleted": str(session_id)})
    else:
        print(f"deleted {session_id}")


def _ask(session: Session) -> None:
    from loomq.redaction import excerpt

    what = f'session "{excerpt(session.title, length=_SHORT)}" with {session.messages} messages'
    if not sys.stdin.isatty():
        raise click.UsageError(f"{what} would be gone for ever; say --yes to delete it")
    click.confirm(f"delete {what} for ever?", abort=True, err=True)


def _print(found: Transcript) -> None:
    from loomq.cli.terminal import printable
    from loomq.redaction import redacted

    session = found.session
    goals = ", ".join(f"{count} {status}" for status, count in session.goals.items())
    tokens = ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in session.tokens.items() if count)
    print(f"session     {session.session_id}")
    print(f"title       {printable(redacted(session.title)) or '-'}")
    print(f"goals       {goals or '-'}")
    print(f"tokens      {tokens or '-'}")
    if len(found.messages) < session.messages:
        print(f"\n… {session.messages - len(found.messages):,} messages before; --limit shows them")
    answered = {message.goal_id for message in found.messages if message.role == "assistant"}
    for message in found.messages:
        print()
        print("\n".join(_lines(message, is_answered=message.goal_id in answered)))


def _lines(message: SessionMessage, *, is_answered: bool) -> Iterable[str]:
    from loomq.cli.goal import told
    from loomq.cli.terminal import printable, shortened
    from loomq.redaction import redacted, redacted_content

    at = message.at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    yield f"{message.role}  {at}  {message.pipeline or ''}  {message.goal_id or ''}".rstrip()
    yield from (f"  {line}" for line in shortened(redacted_content(message.content), _LONGEST).splitlines())
    if message.role == "user" and not is_answered and message.status:
        why = f": {printable(redacted(told(message.error)))}" if message.error else ""
        yield f"  ({message.status}{why})"
