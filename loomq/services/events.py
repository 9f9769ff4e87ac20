"""What happens to a goal, told in order: from the beginning or from where somebody stopped, up to its end."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Any

from loomq.errors import DatabaseUnavailableError, GoalNotFoundError, WaitTimeoutError
from loomq.redaction import redacted_json
from loomq.store import events as store
from loomq.store.events import Cursor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from datetime import datetime
    from uuid import UUID

    from loomq.loom import Loom
    from loomq.store.events import EventRow

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
_AT_ONCE = 500
_POLL_S = 0.5  # in case a wake-up got lost
_UNSETTLED_S = 0.1  # nobody is notified of the end of the transaction that holds events up
_SETTLED_IN_S = 2.0
_WATCH_EVERY_S = 10.0
_STEP_S = 10.0
_ASTEP_S = 1.0  # a cancelled coroutine leaves a thread behind for so long at most


@dataclass(frozen=True)
class GoalEvent:
    """One thing that happened to a goal.

    Args:
        seq: 1, 2, 3 … a goal, the same for every reader; reading goes on behind it with ``after=seq``.
        kind: ``goal_submitted``, ``stage_started``, …; ``docs/events.md`` lists them.
        stage: Whose it is, if it is a stage's.
        item: Which element of a ``for_each``, if it is an item's.
    """

    goal_id: UUID
    seq: int
    at: datetime
    kind: str
    stage: str | None
    item: int | None
    detail: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Describe the event."""
        return {
            "schema_version": SCHEMA_VERSION,
            "goal_id": str(self.goal_id),
            "seq": self.seq,
            "at": self.at.astimezone(UTC).isoformat(),
            "kind": self.kind,
            "stage": self.stage,
            "item": self.item,
            "detail": redacted_json(self.detail),
        }


class EventReader:
    """Read a goal's events step by step, whatever becomes of the connection in between.

    Args:
        after: The number of the last event that is known already.
        timeout: Seconds without an event after which to give up, also while Postgres is away; ``None`` never does.
    """

    def __init__(self, loom: Loom, goal_id: UUID, after: int = 0, timeout: float | None = None) -> None:
        if after < 0:
            raise ValueError(f"after is the number of an event, or 0; not {after}")
        self._loom = loom
        self._goal_id = goal_id
        self._timeout = timeout
        self._cursor = Cursor(after)
        self._heard_at = time.monotonic()
        self._watched_at: float | None = None
        self._has_read = False
        self._is_behind = True
        self._lost: DatabaseUnavailableError | None = None
        self.is_settled = False
        self.is_over = False

    def present(self) -> list[GoalEvent]:
        """Give what can be read now, up to some hundreds of events; none if there is no more.

        Raises:
            GoalNotFoundError: There is no such goal, or no longer.
            DatabaseUnavailableError: Postgres does not answer.
        """
        if not self._has_read or self._lost is not None:  # it may be another server than before
            store.adopt(self._loom.database, self._goal_id)
            self._cursor = Cursor(self._cursor.number)
        page = store.read(self._loom.database, self._goal_id, self._cursor, _AT_ONCE)
        if page is None:
            raise GoalNotFoundError(f"there is no goal {self._goal_id}", hint="list them: loomq list")
        if self._lost is not None:
            logger.warning("Postgres answers again; the events of goal %s go on", self._goal_id)
        self._has_read, self._lost = True, None
        self.is_settled = page.is_settled and len(page.rows) < _AT_ONCE
        self.is_over = page.has_ended and self.is_settled
        self._is_behind = bool(page.rows)
        if page.rows:
            self._cursor, self._heard_at = page.rows[-1].cursor, time.monotonic()
        return [self._event(row) for row in page.rows]

    def step(self, within_s: float) -> list[GoalEvent]:
        """Give the next events, or none if none came in time.

        Raises:
            GoalNotFoundError: There is no such goal, or no longer.
            WaitTimeoutError: Nothing happened for ``timeout`` seconds.
            DatabaseUnavailableError: Postgres stayed away for ``timeout`` seconds, or did not answer at the start.
        """
        until = time.monotonic() + self._patience(within_s)
        try:
            found = self.present() if self._is_behind else []
            if not found and not self.is_over:
                found = self._listen(until)
        except DatabaseUnavailableError as error:
            if not self._has_read:
                raise
            if self._lost is None:
                logger.warning("%s; the events of goal %s go on when it is back", error.message, self._goal_id)
            self._lost, self._watched_at = error, None
            time.sleep(max(0.0, min(_POLL_S, until - time.monotonic())))
            found = []
        if not found and not self.is_over:
            self._give_up_in_time()
        return found

    def _patience(self, within_s: float) -> float:
        if self._timeout is None:
            return within_s
        return max(0.0, min(within_s, self._heard_at + self._timeout - time.monotonic()))

    def _listen(self, until: float) -> list[GoalEvent]:
        about_us = f"{self._goal_id} "
        found: list[GoalEvent] = []
        with self._loom.database.listen("loomq_ended", self._loom.settings.listen_url) as listener:
            while not found and not self.is_over:
                self._watch()
                found = self.present()
                left = min(_POLL_S if self.is_settled else _UNSETTLED_S, until - time.monotonic())
                if found or self.is_over or left <= 0:
                    break
                listener.wait(left, lambda payload: payload.startswith(about_us))
        return found

    def _watch(self) -> None:
        if self._watched_at is None or time.monotonic() - self._watched_at > _WATCH_EVERY_S:
            store.watch(self._loom.database, self._goal_id)
            self._watched_at = time.monotonic()

    def _give_up_in_time(self) -> None:
        if self._timeout is None or time.monotonic() - self._heard_at < self._timeout:
            return
        if self._lost is not None:
            raise self._lost
        raise WaitTimeoutError(
            f"nothing has happened to goal {self._goal_id} for {self._timeout:g} s; it goes on",
            hint=f"go on reading behind event {self._cursor.number}, or look: loomq show {self._goal_id}",
        )

    def _event(self, row: EventRow) -> GoalEvent:
        item = row.item if row.item is not None and row.item >= 0 else None
        return GoalEvent(self._goal_id, row.cursor.number, row.at, row.kind, row.stage, item, row.detail or {})


def told(loom: Loom, goal_id: UUID, after: int = 0) -> Iterator[GoalEvent]:
    """Give the events of a goal that there are by now.

    Raises:
        GoalNotFoundError: There is no such goal.
        DatabaseUnavailableError: Postgres does not answer.
    """
    reader = EventReader(loom, goal_id, after)
    until = time.monotonic() + _SETTLED_IN_S
    while (found := reader.present()) or (not reader.is_settled and time.monotonic() < until):
        yield from found
        if not reader.is_settled:
            time.sleep(0.0 if found else _UNSETTLED_S)


def followed(loom: Loom, goal_id: UUID, after: int = 0, timeout: float | None = None) -> Iterator[GoalEvent]:
    """Give the events of a goal as they happen, up to its end; arguments and errors as ``GoalHandle.events``."""
    reader = EventReader(loom, goal_id, after, timeout)
    while not reader.is_over:
        yield from reader.step(_STEP_S)


async def afollowed(
    loom: Loom,
    goal_id: UUID,
    after: int = 0,
    timeout: float | None = None,  # noqa: ASYNC109  (the twin of followed)
) -> AsyncIterator[GoalEvent]:
    """Give them without blocking the event loop."""
    reader = EventReader(loom, goal_id, after, timeout)
    while not reader.is_over:
        for event in await asyncio.to_thread(reader.step, _ASTEP_S):
            yield event
