"""Celery's face of beat: the scheduler that ``celery -A loomq beat`` runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from celery.beat import Scheduler

if TYPE_CHECKING:
    from collections.abc import Mapping

    from celery.schedules import BaseSchedule


class Timekeeper(Protocol):
    """What the scheduler needs from whoever fires; ``runs`` has it."""

    @property
    def timings(self) -> Mapping[str, BaseSchedule]:
        """When each schedule is due."""

    def tick(self) -> float:
        """Fire what is due; gives in how many seconds to be called again."""

    def step_down(self) -> None:
        """Let another fire."""


class LoomScheduler(Scheduler):  # type: ignore[misc]
    """Fire the project's ``schedules/*.yaml``; the state is in Postgres, and any number of these may run.

    Celery's own ``beat_schedule`` is not read: what runs by the clock is in the files, where it can be looked at.
    """

    max_interval = 1.0

    def __init__(self, app: Any, *args: Any, lazy: bool = False, **kwargs: Any) -> None:
        self._keeper: Timekeeper | None = None
        kwargs.pop("schedule_filename", None)
        super().__init__(app, *args, lazy=lazy, **kwargs)

    @property
    def keeper(self) -> Timekeeper:
        """Who fires; made on first use."""
        if self._keeper is None:
            self._keeper = self.app.make_timekeeper()
        return self._keeper

    def setup_schedule(self) -> None:
        """Set nothing up: schedules are read at each tick, and there is nothing to clean up for Celery."""

    def get_schedule(self) -> dict[str, Any]:
        """Give the entries as Celery's own."""
        if self._keeper is None:
            return {}
        return {
            key: self.Entry(name=key, task="loomq.schedule", schedule=timing, app=self.app)
            for key, timing in self._keeper.timings.items()
        }

    def set_schedule(self, schedule: Any) -> None:
        """Ignore what Celery would set."""

    schedule = property(get_schedule, set_schedule)

    def tick(self, *args: Any, **kwargs: Any) -> float:  # noqa: ARG002  (the signature is Celery's)
        """Fire what is due."""
        return self.keeper.tick()

    def close(self) -> None:
        """Let another beat fire at once."""
        if self._keeper is not None:
            self._keeper.step_down()
        super().close()

    @property
    def info(self) -> str:
        """Say what beat's banner says of it."""
        return "    . schedules -> schedules/*.yaml, state in Postgres"
