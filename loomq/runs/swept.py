"""What one pass of the sweeper did."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Swept:
    """What one pass did.

    Args:
        taken_back: Stages whose lease ran out and that are ready again.
        timed_out: Stages that ran beyond their timeout and are tried again.
        given_up: Stages of either kind that had no attempt or delivery left.
        overdue: Goals that ended at their deadline.
        lost: Messages that were found lost.
        topped_up: Messages sent.
        chords: Bodies of users' chords sent.
        calls: Raw calls whose continuation was sent.
        told: Stages that heard of the end of the goal that was their work.
        admitted: Goals of limited pipelines that were let go.
        silo_updates: Changes of silos that were left behind and are made, or refused.
        windows: Rounds of which more could be under way, and whose next tasks were let go.
        faults: What could not be done in this pass, and will be tried in the next.
    """

    taken_back: int = 0
    timed_out: int = 0
    given_up: int = 0
    overdue: int = 0
    lost: int = 0
    topped_up: int = 0
    chords: int = 0
    calls: int = 0
    told: int = 0
    admitted: int = 0
    silo_updates: int = 0
    windows: int = 0
    faults: list[str] = field(default_factory=list)
