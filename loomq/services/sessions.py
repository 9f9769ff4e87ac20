"""Sessions: make, list, read, search, rename and delete them; goals join one when they are handed in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loomq.errors import NotFoundError
from loomq.ids import uuid7
from loomq.inline import storable_text
from loomq.redaction import redacted_content
from loomq.services.inspect import goal_status
from loomq.services.submit import default_loom
from loomq.services.transcripts import Session, SessionHit, SessionMessage, Transcript
from loomq.store import sessions as store

if TYPE_CHECKING:
    from uuid import UUID

    from loomq.loom import Loom
    from loomq.store.sessions import SessionRow

_LONGEST_TITLE = 200


def create_session(title: str = "", *, loom: Loom | None = None) -> Session:
    """Make a session for ``submit_goal(…, session=…)``.

    Args:
        title: An empty one becomes the first goal's instruction.
        loom: Another project than that of the current folder.

    Raises:
        DatabaseUnavailableError: Postgres does not answer.
    """
    home = loom or default_loom()
    session_id = uuid7()
    store.create(home.database, session_id, _title(title))
    return _found(home, session_id)


def list_sessions(*, limit: int = 20, loom: Loom | None = None) -> list[Session]:
    """List sessions, those first in which something was said last."""
    return [_session(row) for row in store.listed((loom or default_loom()).database, limit)]


def get_session(session_id: UUID, *, limit: int = 200, loom: Loom | None = None) -> Transcript:
    """Read a session with its last messages.

    A goal that failed or was cancelled has said nothing: its question carries its status and its error.

    Args:
        limit: The most messages to read.

    Raises:
        NotFoundError: There is no such session.
    """
    home = loom or default_loom()
    messages = [
        SessionMessage(
            row.seq,
            row.role,
            row.content,
            row.at,
            row.goal_id,
            row.pipeline,
            goal_status(row.state) if row.state else None,
            row.error,
        )
        for row in store.messages(home.database, session_id, limit)
    ]
    return Transcript(_found(home, session_id), tuple(messages))


def search_sessions(text: str, *, limit: int = 20, loom: Loom | None = None) -> list[SessionHit]:
    """Find what was said, and sessions by title, the best first.

    Args:
        text: Words as for a search engine: ``two words``, ``"a phrase"``, ``this or that``, ``-without``.
        limit: The most to find.
    """
    home = loom or default_loom()
    found = store.search(home.database, storable_text(text), limit)
    # Redacted before it is cut: half a key would not be known for one.
    contents = [redacted_content(row.content) for row in found]
    snippets = store.snippets(home.database, storable_text(text), contents) if found else []
    return [
        SessionHit(row.session_id, row.title, row.seq, row.role, row.at, row.goal_id, snippet)
        for row, snippet in zip(found, snippets, strict=True)
    ]


def rename_session(session_id: UUID, title: str, *, loom: Loom | None = None) -> None:
    """Give a session another title; an empty one becomes the next goal's instruction.

    Raises:
        NotFoundError: There is no such session.
    """
    if not store.rename((loom or default_loom()).database, session_id, _title(title)):
        raise _missing(session_id)


def delete_session(session_id: UUID, *, loom: Loom | None = None) -> None:
    """Delete a session with its messages; its goals stay, and those that run go on.

    Raises:
        NotFoundError: There is no such session.
    """
    if not store.delete((loom or default_loom()).database, session_id):
        raise _missing(session_id)


def find(loom: Loom, text: str) -> UUID:
    """Find a session by its id, or by the beginning of it.

    Raises:
        NotFoundError: There is none, or more than one begins so.
    """
    beginning = text.lower()
    found = store.find_by_prefix(loom.database, beginning) if set(beginning) <= set("0123456789abcdef-") else []
    if len(found) > 1:
        raise NotFoundError(f"more than one session begins with {text}", hint="give more of the id")
    if not found:
        raise _missing(text)
    return found[0]


def _found(loom: Loom, session_id: UUID) -> Session:
    row = store.get(loom.database, session_id)
    if row is None:
        raise _missing(session_id)
    return _session(row)


def _session(row: SessionRow) -> Session:
    return Session(
        row.id,
        row.title,
        row.created_at,
        row.updated_at,
        row.messages,
        {goal_status(state): count for state, count in sorted(row.goals.items())},
        {"prompt_tokens": row.prompt_tokens, "completion_tokens": row.completion_tokens},
    )


def _title(given: str) -> str:
    return " ".join(storable_text(given).split())[:_LONGEST_TITLE]


def _missing(which: UUID | str) -> NotFoundError:
    return NotFoundError(f"there is no session {which}", hint="list them: loomq session list")
