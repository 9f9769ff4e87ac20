"""Bring a schedule's run about: its goals are handed in, each once, whoever begins and whoever goes on."""

from __future__ import annotations

import logging
from datetime import UTC
from typing import TYPE_CHECKING, Any

from loomq.errors import BackendError, EnvironmentNotReadyError, LoomqError
from loomq.messages import OrchestratorGoal, TaskPriority
from loomq.registry import project_on_path
from loomq.schedules.expansion import Expansion
from loomq.store import schedules

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from datetime import datetime
    from uuid import UUID

    from loomq.runs.sequel import Sequel
    from loomq.runs.submit import Submitter
    from loomq.settings import Settings
    from loomq.store.engine import Database
    from loomq.store.schedules import Run

logger = logging.getLogger(__name__)

_EXPANDS_WITHIN_S = 60.0
_NOTED_AT_ONCE = 20  # goals between two notes of how far a run is
_EXPANSIONS = 4  # functions at work at once
_MOST_TOLD = 3


def key_of(schedule: str, due_at: datetime, number: int | None = None) -> str:
    """Give the idempotency key of a due time's goal.

    Args:
        number: Which of several, from 0.
    """
    due = due_at.astimezone(UTC).isoformat()
    return f"schedule:{schedule}/{due}" if number is None else f"schedule:{schedule}/{due}/{number}"


class Dispatcher:
    """Hand in what runs are made of.

    Two may work at one run, and either may die anywhere: what is handed in is written down before, and a goal has its
    due time for a key.
    """

    def __init__(self, settings: Settings, database: Database, submitter: Submitter, sequel: Sequel) -> None:
        self._settings = settings
        self._database = database
        self._submitter = submitter
        self._sequel = sequel
        self._expansions: dict[tuple[str, datetime], Expansion] = {}
        self._abandoned: dict[str, Expansion] = {}
        self._known_items: dict[tuple[str, datetime], list[dict[str, Any]]] = {}
        self._refusals: dict[tuple[str, datetime], list[str]] = {}

    def forget(self, but: Collection[tuple[str, datetime]] = ()) -> None:
        """Forget what was begun here: somebody else goes on with it, or it is over.

        Args:
            but: Schedules and due times that are still worked at.
        """
        for known in (self._expansions, self._known_items, self._refusals):
            for place in [place for place in known if place not in but]:
                del known[place]

    def bring_about(self, run: Run) -> None:
        """Work at a run to its end, and wait for what its function gives; errors as ``go_on``."""
        if not run.is_expanded and (begun := self._begin(run)):
            begun.wait()
        self.go_on(run)

    def go_on(self, run: Run, may_go_on: Callable[[], bool] = lambda: True) -> bool:
        """Work at a run that is firing.

        Args:
            may_go_on: Asked between two goals.

        Returns:
            Whether it has ended; it is to be worked at again otherwise.

        Raises:
            EnvironmentNotReadyError: A service is away; the run is kept as far as it is.
        """
        try:
            items = self._items(run)
            return items is not None and self._hand_in(run, items, may_go_on)
        except EnvironmentNotReadyError:
            raise
        except LoomqError as error:
            self._fail(run, error.message)
        except Exception as error:
            logger.exception("a run of schedule %s cannot be brought about", run.key)
            self._fail(run, f"{type(error).__name__}: {error}")
        return True

    def _fail(self, run: Run, reason: str) -> None:
        reason = schedules.storable(reason) or reason
        logger.warning("schedule %s, due %s: %s", run.key, run.due_at.isoformat(), reason)
        schedules.finish(self._database, run, "failed", reason, unless_expanded=not run.is_expanded)
        self._drop(run)

    def _begin(self, run: Run) -> Expansion | None:
        """Call a run's function, if not too many are called just now; ``None`` if so."""
        place, name = (run.key, run.due_at), run.dispatch["expand_from"]
        found = self._expansions.get(place)
        if found is None:
            hanging = self._abandoned.get(name)
            if hanging is not None and not hanging.is_over:
                raise BackendError(f"the last call of {name} has not come back")
            self._abandoned.pop(name, None)
            busy = [one for one in self._expansions.values() if not one.is_over]
            if len(busy) >= _EXPANSIONS or any(one.name == name for one in busy):
                return None
            project_on_path(self._settings.project)
            found = self._expansions[place] = Expansion(
                name,
                allow=self._settings.import_allow,
                limit_bytes=self._settings.max_inline_bytes,
                timeout_s=_EXPANDS_WITHIN_S,
            )
        return found

    def _items(self, run: Run) -> list[dict[str, Any]] | None:
        if run.dispatch["expand_from"] is None:
            return [{}]
        place = (run.key, run.due_at)
        known = self._known_items.get(place)
        if known is None and run.is_expanded:
            known = schedules.items_of(self._database, run)
        if known is None:
            begun = self._begin(run)
            found = begun.outcome() if begun is not None else None
            known = None if found is None else schedules.set_items(self._database, run, found)
        if known is not None:
            self._known_items[place] = known
        return known

    def _drop(self, run: Run) -> None:
        place = (run.key, run.due_at)
        expansion = self._expansions.pop(place, None)
        if expansion is not None and not expansion.is_over:
            self._abandoned[expansion.name] = expansion
        self._known_items.pop(place, None)
        self._refusals.pop(place, None)

    def _hand_in(self, run: Run, items: list[dict[str, Any]], may_go_on: Callable[[], bool]) -> bool:
        if run.dispatch["overlap"] == "cancel_previous" and not run.goals:
            reason = f"the next run of schedule {run.key} began"
            for goal_id in schedules.end_earlier(self._database, run, reason):
                self._sequel.cancel(goal_id, reason)
                if not may_go_on():
                    return False
        done = list(run.goals)
        noted = len(done)
        refusals = self._refusals.setdefault((run.key, run.due_at), [])
        while len(done) < len(items):
            done.append(self._submit(run, len(done), items[len(done)], refusals))
            has_time = may_go_on()
            if len(done) - noted >= _NOTED_AT_ONCE or len(done) == len(items) or not has_time:
                if not schedules.add_goals(self._database, run, noted, done[noted:]):
                    for goal_id in filter(None, done[noted:]):  # stopped meanwhile: by the next run, or a person
                        self._sequel.cancel(goal_id, f"its run of schedule {run.key} was stopped")
                    self._drop(run)
                    return True
                noted = len(done)
                if len(done) < len(items) and not has_time:
                    return False
        self._end(run, done, refusals)
        return True

    def _submit(self, run: Run, number: int, item: dict[str, Any], refusals: list[str]) -> UUID | None:
        what, is_one_of_many = run.dispatch, run.dispatch["expand_from"] is not None
        try:
            goal = OrchestratorGoal(
                instruction=what.get("instruction", ""),
                pipeline=what.get("pipeline"),
                context={**what["context"], **item},
                priority=TaskPriority(what["priority"]),
                idempotency_key=key_of(run.key, run.due_at, number if is_one_of_many else None),
                request_id=f"schedule {run.key}, due {run.due_at.astimezone(UTC).isoformat()}",
            )
            return self._submitter.submit(goal, worker=what.get("worker"), tier=what.get("tier")).goal_id
        except EnvironmentNotReadyError:
            raise
        except LoomqError as error:
            refusals.append(error.message)
        except Exception as error:
            logger.exception("schedule %s cannot hand in what it should", run.key)
            refusals.append(f"{type(error).__name__}: {error}")
        return None

    def _end(self, run: Run, done: list[UUID | None], refusals: list[str]) -> None:
        accepted = [goal_id for goal_id in done if goal_id is not None]
        refused = len(done) - len(accepted)
        reason = None
        if refused:
            told = "; ".join(dict.fromkeys(refusals[:_MOST_TOLD])) or "refused before"
            reason = told if len(done) == 1 else f"{refused} of {len(done)} were refused: {told}"
        elif not done:
            reason = f"{run.dispatch['expand_from']} gave nothing"
        schedules.finish(self._database, run, "failed" if refused and not accepted else "fired", reason)
        self._drop(run)
        told = f"goal {accepted[0]}" if len(accepted) == 1 else f"{len(accepted)} goals"
        level = logging.WARNING if refused else logging.INFO
        logger.log(
            level, "schedule %s, due %s: %s%s", run.key, run.due_at.isoformat(), told, f"; {reason}" if reason else ""
        )
