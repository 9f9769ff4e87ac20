"""What a schedule's YAML file may say (formats.md §5)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field, model_validator

from loomq.config import DottedName, Flag, Name, NotYet, Number, Seconds, Spec, Text, contradiction
from loomq.messages import ModelTier, TaskPriority

#: The whole file is read and then refused, until beat serves schedules.
NOT_YET = (NotYet(""),)


def _known_zone(name: str) -> str:
    if name == "UTC":  # known even where there is no time zone database
        return name
    try:
        ZoneInfo(name)
    except (KeyError, OSError, ValueError):
        raise contradiction(f'"{name}" is not a time zone', id="LQ140", hint="write it as Europe/Paris") from None
    return name


TimeZone = Annotated[str, AfterValidator(_known_zone)]


class GoalTemplate(Spec):
    """The goal that an entry hands in each time."""

    instruction: Text
    context: dict[str, Any] = Field(default_factory=dict)
    priority: TaskPriority = TaskPriority.NORMAL
    pipeline: Name | None = None


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
    """croniter's language: 5 fields, names, @hourly, L, #, optional seconds."""
    interval_seconds: Seconds | None = None
    """It fires first at start."""
    goal: GoalTemplate | None = None
    task: TaskTemplate | None = None
    expand_from: DottedName | None = None
    """A function that returns a list of dicts: one dispatch each, merged over context or payload."""
    enabled: Flag = True
    catch_up: Literal["skip", "once", "all"] = "skip"
    jitter_seconds: Number = 0

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if (self.cron is None) == (self.interval_seconds is None):
            raise contradiction("an entry needs either cron or interval_seconds", "cron" if self.cron else "")
        if self.cron is not None:
            from croniter import croniter

            if not croniter.is_valid(self.cron):
                raise contradiction(f'"{self.cron}" is not a cron expression', "cron", id="LQ140")
        wanted, other = ("goal", "task") if self.dispatch_type == "goal" else ("task", "goal")
        if getattr(self, wanted) is None:
            raise contradiction(f"dispatch_type {wanted} needs the key {wanted}", "dispatch_type", id="LQ111")
        if getattr(self, other) is not None:
            raise contradiction(f"dispatch_type {wanted} has no use for {other}", other)
        return self


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
