"""Dead letters: what failed for good, looked at, edited, replayed into its goal, or dropped."""

from __future__ import annotations

import getpass
import os
import socket
from typing import TYPE_CHECKING, Any, NoReturn, TypedDict
from uuid import UUID

from loomq.errors import ConfigError, DeadLetterError, LoomqError, NotFoundError
from loomq.ids import uuid7
from loomq.inline import storable_text
from loomq.queues.names import StageMessage, queue_name, task_name
from loomq.services import explain, inspect
from loomq.services.letters import (
    AuditEntry,
    BulkReplay,
    DeadLetter,
    DeadLetterDetails,
    MalformedMessage,
    Replay,
    letter_id_of,
    letter_of,
    message_of,
)
from loomq.services.submit import default_loom
from loomq.store import goals, letters, malformed
from loomq.store.letters import LetterFilter
from loomq.store.stages import StageKey

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime
    from typing import Unpack

    from loomq.loom import Loom
    from loomq.store.letters import Verdict

_LONGEST_ACTOR = 200


class Filters(TypedDict, total=False):
    """Which dead letters are meant; each key narrows it down.

    ``error_type`` is the type of the error, such as ``PipelineTimeoutError``; ``state`` is ``failed``, or ``dead`` for
    what killed its process too often; ``since`` and ``until`` say when it failed; ``text`` is a part of the error.
    """

    worker: str | None
    pipeline: str | None
    goal_id: UUID | None
    stage: str | None
    error_type: str | None
    state: str | None
    since: datetime | None
    until: datetime | None
    text: str | None


def current_actor() -> str:
    """Name who runs this process, as ``user@host``."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def list_dead_letters(*, limit: int = 100, loom: Loom | None = None, **wanted: Unpack[Filters]) -> list[DeadLetter]:
    """List dead letters, newest first.

    Args:
        limit: The most to list.
        loom: Another project than that of the current folder.
        wanted: See ``Filters``.
    """
    home = loom or default_loom()
    return [letter_of(row) for row in letters.listed(home.database, LetterFilter(**wanted), limit)]


def count_dead_letters(*, loom: Loom | None = None, **wanted: Unpack[Filters]) -> tuple[int, int]:
    """Count dead letters, and the goals that they belong to; arguments as ``list_dead_letters``."""
    return letters.count((loom or default_loom()).database, LetterFilter(**wanted))


def unknown_filters(*, loom: Loom | None = None, **wanted: Unpack[Filters]) -> list[str]:
    """Say of each worker or type of error that no dead letter has, which ones there are."""
    home = loom or default_loom()
    said = []
    for field, what, given in (
        ("worker", "worker", wanted.get("worker")),
        ("error_type", "type", wanted.get("error_type")),
    ):
        there_are = letters.known(home.database, field) if given is not None else []
        if given is not None and given not in there_are:
            said.append(f'no dead letter has the {what} "{given}"; there are: {", ".join(there_are) or "none"}')
    return said


def count_malformed_messages(*, loom: Loom | None = None) -> int:
    """Count the messages that no task could be made of."""
    return malformed.count((loom or default_loom()).database)


def list_malformed_messages(*, limit: int = 100, loom: Loom | None = None) -> list[MalformedMessage]:
    """List the messages that no task could be made of, newest first; of each body only the beginning."""
    return [message_of(row) for row in malformed.listed((loom or default_loom()).database, limit)]


def get_dead_letter(letter_id: str, *, loom: Loom | None = None) -> DeadLetterDetails | MalformedMessage:
    """Read a dead letter with its input, its message and what was done to it; or a malformed message.

    Args:
        letter_id: As ``DeadLetter.id`` has it; the beginning of the goal's id is enough, and if the goal has one dead
            letter only, its stage need not be named.
        loom: Another project than that of the current folder.

    Raises:
        NotFoundError: There is no such dead letter, or more than one is meant.
        DeadLetterError: The stage has not failed, or works again.
    """
    home = loom or default_loom()
    key = _find(home, letter_id)
    if isinstance(key, malformed.Malformed):
        return message_of(key, _trail(home, message=key.id))
    row = letters.get(home.database, key)
    if row is None or row.state not in {"failed", "dead"}:
        _refuse(key, letters.Verdict("missing" if row is None else "nothing", row.state if row is not None else None))
    present = explain.input_of(home, key)
    message = StageMessage(key.goal_id, key.name, key.item)
    return DeadLetterDetails(
        letter=letter_of(row),
        is_dropped=row.dropped_at is not None,
        payload=present.value,
        payload_fault=present.fault,
        message={
            "task": task_name(row.worker),
            "task_id": row.task_id or message.id,
            "queue": _queue(home, row.worker, row.tier),
            "args": list(message.args),
        },
        audit=_trail(home, goal_id=key.goal_id),
    )


def replay_dead_letter(
    letter_id: str, *, payload: dict[str, Any] | None = None, actor: str | None = None, loom: Loom | None = None
) -> Replay:
    """Set a dead letter going again; its goal goes on to its end.

    Every stage of the goal that failed begins anew, for without each of them it could not end; what the failure had
    cancelled goes on. Asked twice, the second time finds nothing to replay.

    Args:
        letter_id: As for ``get_dead_letter``; a goal's id alone will do.
        payload: An input in place of the present one; checked against the contract first.
        actor: Who asks, for the audit trail; ``user@host`` if not given.
        loom: Another project than that of the current folder.

    Raises:
        NotFoundError: There is no such dead letter.
        DeadLetterError: It was dropped, or there is no way back to its goal.
        PipelineValidationError, InlineValueError: The payload does not fit; nothing was changed.
    """
    home = loom or default_loom()
    key = _letter_key(home, letter_id, "replayed", any_of_goal=payload is None)
    before = None if payload is None else _before(home, key)
    verdict = home.replayer.replay(key, actor=actor_named(actor), payload=payload, before=before)
    if verdict.outcome not in {"replayed", "nothing"}:
        _refuse(key, verdict)
    return _replay(key, verdict)


def replay_named_letters(
    letter_ids: Sequence[str], *, actor: str | None = None, loom: Loom | None = None
) -> BulkReplay:
    """Replay several dead letters, as ``replay_dead_letter`` does one; if one of them is wrong, none is replayed.

    What is found out only while they are replayed is ``refused`` and keeps none of the others.

    Raises:
        NotFoundError, DeadLetterError: As ``replay_dead_letter``; nothing was changed.
    """
    home = loom or default_loom()
    keys = [_letter_key(home, text, "replayed", any_of_goal=True) for text in letter_ids]
    for key in keys:
        found = letters.look(home.database, key)
        if found.outcome not in {"letter", "nothing"}:
            _refuse(key, found)
    replayed: list[Replay] = []
    refused: list[tuple[str, str]] = []
    for key, verdict in home.replayer.replay_all(keys, actor=actor_named(actor)):
        if verdict.outcome in {"replayed", "nothing"}:
            replayed.append(_replay(key, verdict))
        elif len(keys) == 1:
            _refuse(key, verdict)
        else:
            refused.append((letter_id_of(key), _why(key, verdict).message))
    return BulkReplay(tuple(replayed), tuple(refused))


def replay_dead_letters(
    *,
    limit: int = 1_000,
    actor: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    loom: Loom | None = None,
    **wanted: Unpack[Filters],
) -> BulkReplay:
    """Replay all dead letters that are meant, those first that have waited longest; each goal is one transaction.

    What fails again meanwhile is not replayed again. Interrupted, it has replayed some of them; ask again for the rest.

    Args:
        limit: The most goals to replay.
        actor: As for ``replay_dead_letter``.
        on_progress: Called after each goal with how many of how many are done.
        loom: Another project than that of the current folder.
        wanted: See ``Filters``.
    """
    home = loom or default_loom()
    keys = letters.replayable(home.database, LetterFilter(**wanted), limit)
    replayed: list[Replay] = []
    refused: list[tuple[str, str]] = []
    for done, (key, verdict) in enumerate(home.replayer.replay_all(keys, actor=actor_named(actor)), 1):
        if verdict.outcome == "replayed":
            replayed.append(_replay(key, verdict))
        else:
            refused.append((letter_id_of(key), _why(key, verdict).message))
        if on_progress:
            on_progress(done, len(keys))
    left = letters.count(home.database, LetterFilter(**wanted))[0]
    return BulkReplay(tuple(replayed), tuple(refused), left)


def edit_dead_letter(
    letter_id: str,
    payload: dict[str, Any],
    *,
    replay: bool = True,
    actor: str | None = None,
    loom: Loom | None = None,
) -> Replay:
    """Give a dead letter another input, and replay it.

    Args:
        letter_id: As for ``get_dead_letter``.
        payload: The whole input; it wins over the stage's mapping, now and in later attempts.
        replay: False only keeps it, for the day that the letter is replayed.
        actor, loom: As for ``replay_dead_letter``, as are the errors.
    """
    if replay:
        return replay_dead_letter(letter_id, payload=payload, actor=actor, loom=loom)
    home = loom or default_loom()
    key = _letter_key(home, letter_id, "edited")
    verdict = home.replayer.edit(key, payload, actor=actor_named(actor), before=_before(home, key))
    if verdict.outcome != "edited":
        _refuse(key, verdict)
    return _replay(key, verdict)


def drop_dead_letter(letter_id: str, *, actor: str | None = None, loom: Loom | None = None) -> None:
    """Say that nobody will replay a dead letter, or has to look at a malformed message; it stays until it is pruned.

    A goal of which a dead letter was dropped stays failed. Dropping twice changes nothing.

    Raises:
        NotFoundError: There is no such dead letter.
        DeadLetterError: The stage has not failed, or works again.
    """
    drop_named_letters([letter_id], actor=actor, loom=loom)


def drop_named_letters(letter_ids: Sequence[str], *, actor: str | None = None, loom: Loom | None = None) -> list[str]:
    """Drop several, as ``drop_dead_letter`` does one, and give their ids; if one of them is wrong, none is dropped."""
    home, by = loom or default_loom(), actor_named(actor)
    found = [_find(home, text) for text in letter_ids]
    for key in found:
        if isinstance(key, StageKey) and (seen := letters.look(home.database, key)).outcome in {"missing", "nothing"}:
            _refuse(key, seen)
    for key in found:
        if isinstance(key, malformed.Malformed):
            malformed.drop(home.database, key.id, actor=by, request=uuid7())
            continue
        verdict = letters.drop(home.database, key, actor=by, request=uuid7())
        if verdict.outcome != "dropped":
            _refuse(key, verdict)
    return [letter_id_of(key) if isinstance(key, StageKey) else str(key.id) for key in found]


def actor_named(given: str | None) -> str:
    """Name who acts, for the audit trail: as given, else who runs this process."""
    return storable_text(given or current_actor())[:_LONGEST_ACTOR]


def _find(loom: Loom, text: str, *, any_of_goal: bool = False) -> StageKey | malformed.Malformed:
    beginning, _, rest = text.partition("/")
    name, _, item = rest.partition("/")
    goal_id = _by_beginning(loom, beginning, messages=not rest)
    if isinstance(goal_id, malformed.Malformed):
        return goal_id
    if name:
        if item and not item.isdecimal():
            raise NotFoundError(f"{text} is no dead letter's id", hint="list them: loomq dead-letter list")
        return StageKey(goal_id, name, int(item) if item else -1)
    found = letters.listed(loom.database, LetterFilter(goal_id=goal_id), 10)
    if len(found) == 1 or (found and any_of_goal):
        return StageKey(goal_id, found[0].name, found[0].item)
    if found:
        ids = ", ".join(letter_of(row).id for row in found)
        raise DeadLetterError(f"goal {goal_id} has {len(found)} dead letters", hint=f"name one of them: {ids}")
    raise NotFoundError(
        f"goal {goal_id} has no dead letter; it is {inspect.status(loom, goal_id)}",
        hint=f"look at it: loomq show {goal_id}",
    )


def _by_beginning(loom: Loom, text: str, *, messages: bool) -> UUID | malformed.Malformed:
    """Find the one goal or malformed message whose id begins so."""
    beginning = text.lower()
    try:
        kept, found = [UUID(text)] if messages else [], []
    except ValueError:
        if not beginning or set(beginning) - set("0123456789abcdef-"):
            return inspect.find(loom, text)
        kept = malformed.find_by_prefix(loom.database, beginning) if messages else []
        found = goals.find_by_prefix(loom.database, beginning)
    if len(kept) + len(found) > 1:
        raise DeadLetterError(f"{len(kept) + len(found)} ids or more begin with {text}", hint="give more of the id")
    return (malformed.get(loom.database, kept[0]) if kept else None) or inspect.find(loom, text)


def _letter_key(loom: Loom, text: str, deed: str, *, any_of_goal: bool = False) -> StageKey:
    key = _find(loom, text, any_of_goal=any_of_goal)
    if isinstance(key, malformed.Malformed):
        raise DeadLetterError(
            f"{text} is a malformed message: no task could be made of it, so nothing can be {deed}",
            hint=f"send it anew, mended; it is seen to when you say so: loomq dead-letter drop {text}",
        )
    return key


def _queue(loom: Loom, worker: str, tier: str) -> str:
    """Name the queue, also in a project whose files have errors."""
    try:
        return loom.router.queue(worker, tier)
    except ConfigError:
        return queue_name(worker, tier)


def _before(loom: Loom, key: StageKey) -> dict[str, Any]:
    """Give what the audit trail keeps of the input that an edit replaces."""
    try:
        present = explain.input_of(loom, key)
    except NotFoundError as error:  # the edit itself says so
        return {"payload_before_fault": error.message}
    if present.value is None:
        return {"payload_before_fault": present.fault}
    return {"payload_before": present.value}


def _trail(loom: Loom, *, goal_id: UUID | None = None, message: UUID | None = None) -> tuple[AuditEntry, ...]:
    return tuple(
        AuditEntry(deed.at, deed.actor, deed.action, deed.stage, deed.item, deed.detail)
        for deed in letters.trail(loom.database, goal_id=goal_id, message=message)
    )


def _replay(key: StageKey, verdict: Verdict) -> Replay:
    return Replay(
        id=letter_id_of(key),
        goal_id=key.goal_id,
        outcome=verdict.outcome,
        state=verdict.state,
        replayed=tuple(map(letter_id_of, verdict.replayed)),
        reopened=verdict.reopened,
    )


def _why(key: StageKey, verdict: Verdict) -> LoomqError:
    """Say what stands in the way."""
    where = f"stage {key.name}{f' (item {key.item})' if key.item >= 0 else ''} of goal {key.goal_id}"
    look = f"look at the goal: loomq show {key.goal_id}"
    if verdict.outcome == "missing":
        return NotFoundError(f"there is no {where}", hint="list them: loomq dead-letter list")
    if verdict.outcome == "nothing":
        return DeadLetterError(f"{where} is no dead letter: it is {verdict.state}", hint=look)
    if verdict.outcome in {"dropped", "blocked"}:
        which = "it" if verdict.outcome == "dropped" else f"stage {verdict.state} of the goal"
        return DeadLetterError(
            f"{where} cannot be replayed: {which} was dropped, so the goal cannot end", hint="submit the goal anew"
        )
    how = {"cancelled": "was cancelled"}.get(str(verdict.state), "went on without it")
    return DeadLetterError(f"there is no way back for {where}: the goal {how}", hint=look)


def _refuse(key: StageKey, verdict: Verdict) -> NoReturn:
    raise _why(key, verdict)
