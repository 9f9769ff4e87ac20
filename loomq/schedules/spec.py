"""What a schedule's YAML file may say (formats.md §5)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo, available_timezones

from pydantic import AfterValidator, Field, model_validator

from loomq.config import DottedName, Flag, Name, Number, Seconds, Spec, Text, contradiction
from loomq.messages import ModelTier, TaskPriority
from loomq.problems import suggest
from loomq.schedules.meaning import Meaning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loomq.config import NotYet
    from loomq.schedules.clock import Clock

#: Everything that the formats say of schedules is done.
NOT_YET: tuple[NotYet, ...] = ()

_LEAST_S, _DAY_S, _MOST_S = 0.1, 86_400, 10 * 366 * 86_400
Overlap = Literal["allow", "skip", "queue", "cancel_previous"]


def _known_zone(name: str) -> str:
    if name == "UTC":  # known even where there is no time zone database
        return name
    try:
        ZoneInfo(name)
    except (KeyError, OSError, ValueError):
        near = suggest(name, available_timezones()) or "write it as Europe/Paris"
        raise contradiction(f'"{name}" is not a time zone', id="LQ140", hint=near) from None
    return name


TimeZone = Annotated[str, AfterValidator(_known_zone)]


class GoalTemplate(Spec):
    """The goal that an entry hands in each time."""

    instruction: Text
    context: dict[str, Any] = Field(default_factory=dict)
    priority: TaskPriority = TaskPriority.NORMAL
    pipeline: Name | None = None
    """A pipeline or an orchestrator; without it, the project's only orchestrator."""


class TaskTemplate(Spec):
    """The task that an entry hands in each time."""

    worker_type: Name
    payload: dict[str, Any] = Field(default_factory=dict)
    model_tier: ModelTier | None = None
    priority: TaskPriority = TaskPriority.NORMAL


class ScheduleEntry(Spec):
    """One thing to do, and when."""

    name: Name
    dispatch_type: Literal["goal", "task"]
    cron: Text | None = None
    """croniter's language: 5 fields, names, @hourly, L, #, optional seconds as the sixth field."""
    interval_seconds: Annotated[Seconds, Field(ge=_LEAST_S, le=_MOST_S)] | None = None
    """It fires first at start."""
    every: Text | None = None
    """In words: 5 minutes, 2 hours, day at 09:00, weekday at 09:00, monday and friday at 09:00."""
    goal: GoalTemplate | None = None
    task: TaskTemplate | None = None
    expand_from: DottedName | None = None
    """A function that returns a list of dicts: one dispatch each, merged over context or payload."""
    enabled: Flag = True
    catch_up: Literal["skip", "once", "all"] = "skip"
    """What happens to due times that beat was not there for: nothing, one run for all of them, or a run each."""
    grace_seconds: Annotated[Seconds, Field(le=_MOST_S)] = 60
    """How late a due time may fire without counting as missed."""
    jitter_seconds: Annotated[Number, Field(le=_DAY_S)] = 0
    """Fire up to so many seconds later, each due time by its own."""
    overlap: Overlap = "allow"
    """What happens when the last run still goes on: run both, skip this one, let it wait, or cancel the last one."""

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        self._check_times()
        wanted, other = ("goal", "task") if self.dispatch_type == "goal" else ("task", "goal")
        if getattr(self, wanted) is None:
            raise contradiction(f"dispatch_type {wanted} needs the key {wanted}", "dispatch_type", id="LQ111")
        if getattr(self, other) is not None:
            raise contradiction(f"dispatch_type {wanted} has no use for {other}", other)
        return self

    def _check_times(self) -> None:
        """Refuse none or two ways of saying when, and times that never come."""
        written = [key for key in ("cron", "interval_seconds", "every") if getattr(self, key) is not None]
        if len(written) != 1:
            message = "an entry needs one of cron, interval_seconds and every"
            raise contradiction(message, written[1] if written else "", hint="keep one of them" if written else "")
        if written == ["interval_seconds"]:
            return
        from loomq.schedules.clock import Cron

        try:
            meaning = self.meaning
            is_due = meaning.cron is None or Cron(meaning.cron).after(datetime.now(UTC)) is not None
        except ValueError as error:
            raise contradiction(str(error), written[0], id="LQ140") from None
        if (meaning.seconds or 0.0) > _MOST_S:
            raise contradiction(f'"{self.every}" is more than ten years', written[0], id="LQ140")
        if not is_due:
            raise contradiction(f'"{self.cron}" is never due', written[0], id="LQ140")

    @property
    def meaning(self) -> Meaning:
        """When it is due: by an interval, or by a cron expression."""
        from loomq.schedules.words import meaning_of

        if self.every is not None:
            return meaning_of(self.every)
        return Meaning(self.interval_seconds, self.cron)

    def clock(self, zone: str, anchor: datetime) -> Clock:
        """Give what says when it is due.

        Args:
            zone: The file's time zone.
            anchor: When an interval began, which is its first time.
        """
        from loomq.schedules.clock import Cron, Interval

        meaning = self.meaning
        if meaning.cron is not None:
            return Cron(meaning.cron, zone)
        assert meaning.seconds is not None
        return Interval(meaning.seconds, anchor)

    @property
    def timing(self) -> str:
        """What says when it is due, as a text to compare."""
        meaning = self.meaning
        return meaning.cron if meaning.cron is not None else f"every {meaning.seconds:g} s"

    def dispatch(self, default: str | None) -> dict[str, Any]:
        """Describe what is handed in, as JSON that stands for itself whatever the file says later.

        Args:
            default: The orchestrator that a goal goes to which names none.
        """
        shared: dict[str, Any] = {"overlap": self.overlap, "expand_from": self.expand_from}
        if self.goal is not None:
            return {
                **shared,
                "pipeline": self.goal.pipeline or default,
                "instruction": self.goal.instruction,
                "context": self.goal.context,
                "priority": str(self.goal.priority),
            }
        assert self.task is not None
        return {
            **shared,
            "worker": self.task.worker_type,
            "tier": str(self.task.model_tier) if self.task.model_tier else None,
            "context": self.task.payload,
            "priority": str(self.task.priority),
        }

    @property
    def sentence(self) -> str:
        """When it is due, in words."""
        from loomq.schedules.words import every, sentence_of

        meaning = self.meaning
        return sentence_of(meaning.cron) if meaning.cron is not None else every(meaning.seconds or 0.0)


class ScheduleSpec(Spec):
    """One file of schedules."""

    name: Name
    description: str = ""
    timezone: TimeZone = "UTC"
    """An IANA name, as Europe/Paris."""
    schedules: Annotated[tuple[ScheduleEntry, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [entry.name for entry in self.schedules]
        for name in names:
            if names.count(name) > 1:
                raise contradiction(f'two entries are called "{name}"', "schedules", id="LQ116")
        return self

    @property
    def tiers_asked(self) -> Iterator[tuple[str, ModelTier]]:
        """The workers that tasks go to on a tier of their own."""
        for entry in self.schedules:
            if entry.task is not None and entry.task.model_tier is not None:
                yield entry.task.worker_type, entry.task.model_tier
