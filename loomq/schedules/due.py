"""What is due of a schedule: which due times fire now, which were missed, and when to look again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from celery.schedules import BaseSchedule, schedstate

if TYPE_CHECKING:
    from collections.abc import Callable

    from loomq.schedules.clock import Clock

CatchUp = Literal["skip", "once", "all"]

_INSTANT = timedelta(microseconds=1)
_SHORT = timedelta(minutes=1)
_FAR_S = 366 * 86_400.0  # what is never due is looked at again within a year
_WIDER = 8


@dataclass(frozen=True, slots=True)
class Due:
    """What is due.

    Args:
        fires: Due times to fire now, in order.
        missed: The first and the last due time that are too late, if any are; they are before ``fires``.
        makes_up: Whether the first of ``fires`` is fired late, for all of ``missed``.
        next_at: When the one after them fires; ``None`` if there is none.
    """

    fires: tuple[datetime, ...] = ()
    missed: tuple[datetime, datetime] | None = None
    makes_up: bool = False
    next_at: datetime | None = None


class Timing(BaseSchedule):  # type: ignore[misc]
    """When a schedule is due, as Celery's schedules are asked: by the last due time that was handled.

    Celery's own ``crontab`` speaks another language than croniter, and treats daylight saving time otherwise.

    Args:
        key: The schedule's, which spreads the jitter.
        clock: Says when it is due.
        jitter_s: A due time fires up to so much later, always by the same.
        grace_s: One that is later than that by so much was missed.
        catch_up: What happens to those that were missed.
        nowfun: Gives the time; the machine's if not given.
    """

    def __init__(
        self,
        key: str,
        clock: Clock,
        *,
        jitter_s: float = 0.0,
        grace_s: float = 60.0,
        catch_up: CatchUp = "skip",
        nowfun: Callable[[], datetime] | None = None,
    ) -> None:
        super().__init__(nowfun=nowfun or (lambda: datetime.now(UTC)))
        self.key = key
        self.clock = clock
        self.jitter_s = jitter_s
        self.grace_s = grace_s
        self.catch_up: CatchUp = catch_up
        self._known: tuple[datetime, datetime | None] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _timing, (self.key, self.clock, self.jitter_s, self.grace_s, self.catch_up)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Timing) and self.__reduce__() == other.__reduce__()

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return f"<{self.key}: {self.clock}>"

    def fires_at(self, due: datetime) -> datetime:
        """Say when a due time fires: at it, or a little later."""
        if not self.jitter_s:
            return due
        digest = hashlib.sha256(f"{self.key}/{due.astimezone(UTC).isoformat()}".encode()).digest()
        return due + timedelta(seconds=int.from_bytes(digest[:7], "big") / 2**56 * self.jitter_s)

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        """Say how long it is until the due time after that one fires."""
        following = self._next(last_run_at)
        return timedelta(seconds=_FAR_S) if following is None else self.fires_at(following) - self.now()

    def is_due(self, last_run_at: datetime) -> schedstate:
        """Say whether a due time after that one is to fire, and in how many seconds to ask again."""
        left_s = self.remaining_estimate(last_run_at).total_seconds()
        return schedstate(is_due=left_s <= 0, next=max(left_s, 0.0))

    def due(self, handled_until: datetime, most: int) -> Due:
        """Say what is to fire now, of the due times after one.

        Args:
            most: How many at once; the others are due when these are handled.
        """
        now = self.now()
        at = self._next(handled_until)
        if at is None or self.fires_at(at) > now:
            return Due(next_at=None if at is None else self.fires_at(at))
        missed = None
        too_late = now - timedelta(seconds=self.grace_s + self.jitter_s)
        if at < too_late and self.catch_up != "all":
            missed = (at, self._last(handled_until, too_late - _INSTANT))
            at = self.clock.after(missed[1])
        fires: list[datetime] = []
        while at is not None and self.fires_at(at) <= now and len(fires) < most:
            fires.append(at)
            at = self.clock.after(at)
        makes_up = missed is not None and self.catch_up == "once" and not fires
        if missed is not None and makes_up:
            fires = [missed[1]]
        return Due(tuple(fires), missed, makes_up, None if at is None else self.fires_at(at))

    def _next(self, moment: datetime) -> datetime | None:
        """Give the due time after a moment; asked again and again with the same one."""
        known = self._known
        if known is None or known[0] != moment:
            known = self._known = (moment, self.clock.after(moment))
        return known[1]

    def _last(self, after: datetime, until: datetime) -> datetime:
        """Give the last due time up to a moment, where there is one; a year of minutes is not walked through."""
        back = _SHORT
        while True:
            start = max(after, until - back)
            found = self.clock.after(start)
            if found is not None and found <= until:
                while (following := self.clock.after(found)) is not None and following <= until:
                    found = following
                return found
            assert start > after
            back *= _WIDER


def _timing(key: str, clock: Clock, jitter_s: float, grace_s: float, catch_up: CatchUp) -> Timing:
    return Timing(key, clock, jitter_s=jitter_s, grace_s=grace_s, catch_up=catch_up)
