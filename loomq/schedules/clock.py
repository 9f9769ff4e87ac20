"""When a schedule is due: croniter's language on the wall clock of a time zone, and plain intervals.

A cron expression names times of the wall clock. Where the clock jumps forward, a time that does not exist is due at the
jump; where it is set back, a time that comes twice is due the first time. An expression that runs every hour, or every
few, goes by the hours that really pass instead: it is due in both of the hours that look the same, and in none that
does not exist (as Vixie cron has it).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol
from zoneinfo import ZoneInfo

from croniter import croniter
from croniter.croniter import CroniterBadDateError, CroniterError

if TYPE_CHECKING:
    from collections.abc import Iterator

_HOURS = 24
_FIELDS = 6  # with seconds, and without years: what is never due again would be an error one day
_FAR = timedelta(days=366 * 30)  # beyond it an expression is taken to be never due (30 February)
_DAY = timedelta(days=1)


class Clock(Protocol):
    """Says when something is due."""

    def after(self, moment: datetime) -> datetime | None:
        """Give the first time after a moment, in UTC; ``None`` if there is none."""


@dataclass(frozen=True)
class Interval:
    """Every so many seconds from a beginning, which is the first time.

    Args:
        anchor: The beginning, aware.
    """

    seconds: float
    anchor: datetime

    def after(self, moment: datetime) -> datetime | None:
        """Give the first time after a moment."""
        if moment < self.anchor:
            return self.anchor.astimezone(UTC)
        passed = (moment - self.anchor) // timedelta(seconds=self.seconds) + 1
        return (self.anchor + passed * timedelta(seconds=self.seconds)).astimezone(UTC)


@dataclass(frozen=True)
class Cron:
    """A cron expression in a time zone.

    Raises:
        ValueError: It is no cron expression.
    """

    expression: str
    zone: str = "UTC"

    def __post_init__(self) -> None:
        if len(self.expression.split()) > _FIELDS:
            raise ValueError(f'"{self.expression}" is no cron expression: it has more than {_FIELDS} fields')
        try:
            croniter(self.expression, datetime(2000, 1, 1))  # noqa: DTZ001  (the wall clock)
        except (CroniterError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(f'"{self.expression}" is no cron expression: {error}') from error

    @cached_property
    def _zone(self) -> tzinfo:
        return UTC if self.zone == "UTC" else ZoneInfo(self.zone)

    @cached_property
    def goes_by_hours(self) -> bool:
        """Whether it is due in every hour, or every few: by the hours that pass, and not by the clock's names."""
        hours = croniter.expand(self.expression)[0][1]
        if hours == ["*"] or len(hours) == _HOURS:
            return True
        numbers = [hour for hour in hours if isinstance(hour, int)]
        steps = {later - earlier for earlier, later in pairwise(numbers)}
        return len(numbers) == len(hours) > 1 and steps == {numbers[0] + _HOURS - numbers[-1]}

    def after(self, moment: datetime) -> datetime | None:
        """Give the first time after a moment."""
        at, end = moment.astimezone(UTC), moment.astimezone(UTC) + _FAR
        while at < end:
            found = min(self._candidates(at), default=None)
            if found is None or found > end:
                return None
            if self._counts(found):
                return found
            at = found
        return None

    def _candidates(self, at: datetime) -> Iterator[datetime]:
        """Give the next time by each offset that the zone has around then: one of them is the next that there is."""
        for offset in self._offsets(at):
            wall = self._next_wall((at + offset).replace(tzinfo=None))
            while wall is not None:
                real = (wall - offset).replace(tzinfo=UTC)
                here = self._offset(real)
                if here == offset:
                    yield real
                    break
                jump = self._jump_over(wall)
                if jump is not None and jump > at and not self.goes_by_hours:
                    yield jump
                    break
                if real - at > 2 * _DAY:
                    break
                wall = self._next_wall(wall)

    def _offsets(self, at: datetime) -> set[timedelta]:
        return {self._offset(at + timedelta(hours=hours)) for hours in (-3, 0, 3, 24)} | self._later_offsets(at)

    def _later_offsets(self, at: datetime) -> set[timedelta]:
        wall = self._next_wall((at + self._offset(at)).replace(tzinfo=None))
        if wall is None:
            return set()
        real = wall.replace(tzinfo=UTC) - self._offset(at)
        return {self._offset(real + timedelta(hours=hours)) for hours in (-3, 0, 3)}

    def _offset(self, real: datetime) -> timedelta:
        found = real.astimezone(self._zone).utcoffset()
        assert found is not None
        return found

    def _next_wall(self, wall: datetime) -> datetime | None:
        try:
            return croniter(self.expression, wall).get_next(datetime)
        except CroniterBadDateError:
            return None

    def _jump_over(self, wall: datetime) -> datetime | None:
        """Give the moment at which the clock jumps over a time of the wall clock; ``None`` if that time exists."""
        before, after = (wall.replace(tzinfo=self._zone, fold=fold).utcoffset() for fold in (0, 1))
        assert before is not None
        assert after is not None
        if after <= before:
            return None
        low, high = ((wall - offset).replace(tzinfo=UTC) for offset in (after, before))
        while high - low > timedelta(seconds=1):
            middle = low + (high - low) / 2
            low, high = (middle, high) if self._offset(middle) == before else (low, middle)
        return high.replace(microsecond=0)

    def _counts(self, real: datetime) -> bool:
        """Say whether a time is due: the second of two that look the same is not, unless hours are counted."""
        return self.goes_by_hours or real.astimezone(self._zone).fold == 0
