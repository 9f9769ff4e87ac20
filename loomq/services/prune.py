"""Keep the database small: what has ended long ago goes, with all that belongs to it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from loomq.services.dead_letters import actor_named
from loomq.services.submit import default_loom
from loomq.store import prune as store

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from loomq.loom import Loom
    from loomq.store.engine import Database
    from loomq.store.prune import Cutoffs


@dataclass(frozen=True)
class Pruned:
    """How much went, or would go.

    Args:
        dead_letters: Those among the stages.
        runs: Of schedules; what they handed in are goals.
        results: Of Celery tasks that are no workers of loomq.
        answers: Of language models, kept for others, that have expired.
        specs: Snapshots that no goal runs from any more.
    """

    goals: int = 0
    stages: int = 0
    dead_letters: int = 0
    results: int = 0
    chords: int = 0
    malformed: int = 0
    audit: int = 0
    runs: int = 0
    answers: int = 0
    specs: int = 0

    def plus(self, **more: int) -> Self:
        """Count more."""
        return replace(self, **{name: getattr(self, name) + count for name, count in more.items()})

    def to_json(self) -> dict[str, Any]:
        """Describe it."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def prune(
    *,
    older: timedelta | None = None,
    dry_run: bool = False,
    actor: str | None = None,
    on_progress: Callable[[Pruned], None] = lambda _: None,
    loom: Loom | None = None,
) -> Pruned:
    """Delete what ended long ago, in batches; safe to run at any time, twice at once, and to end anywhere.

    Failed goals with dead letters stay ``keep_dead_letters_days``, and no more than ``keep_dead_letters`` of them;
    malformed messages likewise. The audit trail outlives its goals by up to a year.

    Args:
        older: How long ago other goals must have ended; ``keep_goals_days`` if not given.
        dry_run: Only count.
        actor: Who asks, for the audit trail; ``user@host`` if not given.
        on_progress: Called after each batch with what has gone so far.
        loom: Another project than that of the current folder.

    Raises:
        DatabaseUnavailableError: Postgres went away; what has gone is gone, ask again for the rest.
    """
    home = loom or default_loom()
    settings = home.settings
    until = store.cutoffs(
        home.database,
        goals=timedelta(days=settings.keep_goals_days) if older is None else older,
        letters=timedelta(days=settings.keep_dead_letters_days),
        most_letters=settings.keep_dead_letters,
    )
    if dry_run:
        return _counted(home.database, until)
    done = Pruned()
    for batch in store.goals(home.database, until, actor=actor_named(actor)):
        done = done.plus(goals=batch.goals, stages=batch.stages, dead_letters=batch.letters)
        on_progress(done)
    for what in store.PLAIN:
        for count in store.rows(home.database, what, until):
            done = done.plus(**{what: count})
            on_progress(done)
    for count in store.specs(home.database, until):
        done = done.plus(specs=count)
        on_progress(done)
    return done


def _counted(database: Database, until: Cutoffs) -> Pruned:
    found = store.count_goals(database, until)
    plain = {what: store.count_rows(database, what, until) for what in store.PLAIN}
    return Pruned(found.goals, found.stages, found.letters, specs=store.count_specs(database, until), **plain)
