"""What is due: in time, too late, with jitter; and what Celery is told."""

import pickle
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loomq.schedules.clock import Cron, Interval
from loomq.schedules.due import Timing

START = datetime(2026, 3, 1, 9, tzinfo=UTC)
SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def timing(now, clock=None, **more):
    return Timing("f.e", clock or Interval(300, START), nowfun=lambda: now, **more)


def test_what_is_due_in_time_fires_whatever_is_said_of_what_was_missed():
    for policy in ("skip", "once", "all"):
        found = timing(START + 40 * SECOND, catch_up=policy).due(START - SECOND, 10)
        assert (found.fires, found.missed, found.next_at) == ((START,), None, START + 5 * MINUTE)
    early = timing(START - MINUTE).due(START - DAY, 10)
    assert (early.fires, early.next_at) == ((), START)


@pytest.mark.parametrize(
    ("policy", "late_s", "fires", "missed", "makes_up"),
    [
        ("skip", 130, [], (0, 287), False),
        ("skip", 5, [288], (0, 287), False),
        ("once", 130, [287], (0, 287), True),
        ("once", 5, [288], (0, 287), False),
        ("all", 130, range(50), None, False),
    ],
)
def test_after_a_day_off(policy, late_s, fires, missed, makes_up):
    now = START + DAY - 5 * MINUTE + late_s * SECOND if late_s > 60 else START + DAY + late_s * SECOND
    found = timing(now, catch_up=policy).due(START - SECOND, 50)
    at = [START + number * 5 * MINUTE for number in range(300)]
    assert found.fires == tuple(at[number] for number in fires)
    assert found.missed == (None if missed is None else (at[missed[0]], at[missed[1]]))
    assert found.makes_up is makes_up
    last = found.fires[-1] if found.fires else at[missed[1]]
    assert found.next_at == last + 5 * MINUTE


def test_a_clock_that_is_never_due_again_is_left_alone():
    once = Cron("0 0 29 2 *")
    found = timing(START, once).due(datetime(2050, 1, 1, tzinfo=UTC), 10)
    assert found.fires == ()
    assert Timing("k", Cron("0 0 30 2 *"), nowfun=lambda: START).due(START, 10).next_at is None


def test_jitter_spreads_schedules_and_keeps_each_due_time_where_it_is():
    spread = {Timing(f"f.{n}", Interval(300, START), jitter_s=60).fires_at(START) - START for n in range(100)}
    assert len(spread) == 100
    assert timedelta(0) <= min(spread) < 10 * SECOND < 50 * SECOND < max(spread) < 60 * SECOND
    one = timing(START, jitter_s=60)
    assert one.fires_at(START) == timing(START, jitter_s=60).fires_at(START) != START
    found = timing(START + SECOND / 10, jitter_s=60).due(START - SECOND, 10)
    assert (found.fires, found.next_at) == ((), one.fires_at(START))
    # Jitter is no lateness: a due time counts as missed only after all of it and the grace.
    assert timing(START + 119 * SECOND, jitter_s=60).due(START - SECOND, 10).fires == (START,)
    assert timing(START + 121 * SECOND, jitter_s=60).due(START - SECOND, 10).fires == ()


def test_celery_is_told_what_it_asks():
    assert timing(START).is_due(START - SECOND) == (True, 0.0)
    assert timing(START - MINUTE).is_due(START - DAY) == (False, 60.0)
    assert timing(START + MINUTE).remaining_estimate(START) == 4 * MINUTE
    one = timing(START, jitter_s=3, catch_up="all")
    again = pickle.loads(pickle.dumps(one))
    assert again == one
    assert again != timing(START, jitter_s=4, catch_up="all")
    assert hash(again) == hash(one)


@given(
    step_s=st.integers(1, 5000),
    handled_s=st.integers(-1, 100_000),
    gone_s=st.integers(0, 200_000),
    grace_s=st.integers(1, 600),
    policy=st.sampled_from(["skip", "once", "all"]),
)
@settings(max_examples=200, deadline=None)
def test_every_due_time_is_fired_or_missed_once(step_s, handled_s, gone_s, grace_s, policy):
    """Against a plain walk: nothing between two looks is forgotten, and nothing comes twice."""
    clock = Interval(step_s, START)
    handled, now = START + handled_s * SECOND, START + (handled_s + gone_s) * SECOND
    all_due = []
    at = clock.after(handled)
    while at <= now:
        all_due.append(at)
        at = clock.after(at)
    found = Timing("k", clock, catch_up=policy, grace_s=grace_s, nowfun=lambda: now).due(handled, 10**6)
    in_time = [one for one in all_due if one >= now - grace_s * SECOND]
    late = [one for one in all_due if one < now - grace_s * SECOND]
    if policy == "all" or not late:
        assert (list(found.fires), found.missed) == (all_due, None)
    else:
        assert found.missed == (late[0], late[-1])
        made_up = [late[-1]] if policy == "once" and not in_time else []
        assert list(found.fires) == made_up + in_time
        assert found.makes_up is bool(made_up)
    assert found.next_at == at
