"""The worker's way again, with slots that go straight on: a process may die with several stages in hand."""

import pytest
from chaos import test_crash_points
from chaos.test_crash_points import NODE, WORKER_POINTS, town
from shapes import PARENTS, ROOTS

__all__ = ["NODE", "town"]

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]
#: A stage that follows in the same slot is never published.
POINTS = {point: stages for point, stages in WORKER_POINTS.items() if not point.startswith("publish.")}
#: What a slot has taken from its queue and not claimed yet is on no queue and in nobody's hand.
FETCHED = {"fetch.after": {name for shape in PARENTS.values() for name in shape} & ROOTS}


def stock(project):
    """Write the shapes, and let slots go straight on."""
    test_crash_points.stock(project, straight_on=True)


def test_a_death_at_any_point_of_a_turn_loses_and_doubles_nothing(town):
    town.plan(POINTS)
    town.rounds(at_once=4)
    town.check()


def test_a_death_with_what_was_fetched_in_hand_loses_and_doubles_nothing(town):
    town.plan(FETCHED)
    town.rounds(at_once=20)  # more than there are slots, so that some find others waiting
    town.check()
