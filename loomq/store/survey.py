"""What there is to repair: the sweeper's one look a pass, whose price does not grow with the work that waits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loomq.store.engine import Database


@dataclass(frozen=True, slots=True)
class Survey:
    """What a look found.

    Args:
        uptime_s: How long Postgres has been up.
        expired: Whether a lease ran out.
        overdue: Whether an open goal is past its deadline.
        chords: Whether a user's chord is open that might be full.
        calls: Whether what follows an ended raw call may not have been sent.
        ready: The (worker, tier) routes that have due stages.
        unheard: Whether a stage has not heard of the end of the goal that was its work.
        waiting: Pipelines that have goals waiting to be admitted.
        published: The age of the oldest published stage of each worker, tier and urgency, in seconds.
        keys: Whether a stage waits for a concurrency key.
    """

    uptime_s: float
    expired: bool
    overdue: bool
    chords: bool
    calls: bool
    ready: frozenset[tuple[str, str]]
    published: Mapping[tuple[str, str, int], float]
    unheard: bool
    waiting: tuple[str, ...]
    keys: bool


def survey(database: Database, stale_s: float) -> Survey:
    """Look at everything.

    Args:
        stale_s: For how long a chord or a call is somebody else's business.
    """
    rows = database.call("SELECT * FROM loomq_survey_3(%(stale)s)", {"stale": stale_s})
    uptime_s, expired, overdue, chords, calls, ready, published, unheard, waiting, keys = rows[0]
    return Survey(
        uptime_s,
        expired,
        overdue,
        chords,
        calls,
        ready=frozenset((worker, tier) for worker, tier in ready),
        published={(worker, tier, urgency): float(age_s) for worker, tier, urgency, age_s in published},
        unheard=unheard,
        waiting=tuple(waiting),
        keys=keys,
    )
