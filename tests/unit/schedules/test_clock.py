"""When a schedule is due: against croniter, and against a walk over every minute of the wall clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter
from hypothesis import given, settings
from hypothesis import strategies as st

from loomq.schedules.clock import Cron, Interval

MINUTE = timedelta(minutes=1)
BEGIN, END = (datetime(year, 1, 1) for year in (2025, 2028))  # noqa: DTZ001  (hypothesis wants them so)
#: Where the clock jumps and is set back: by an hour, and by half of one.
CHANGES = {
    "America/New_York": [(2026, 3, 8, 7), (2026, 11, 1, 6)],
    "Europe/Paris": [(2026, 3, 29, 1), (2026, 10, 25, 1)],
    "Australia/Lord_Howe": [(2026, 4, 4, 15), (2026, 10, 3, 15)],
}
EXPRESSIONS = st.builds(
    " ".join,
    st.tuples(
        st.sampled_from(["0", "15", "30", "45,59", "*/20", "*", "5-10"]),
        st.sampled_from(["*", "1", "2", "*/2", "1,2", "1-3", "0", "23", "*/6", "2,3,4"]),
        st.sampled_from(["*", "*", "1", "L", "8,25"]),
        st.sampled_from(["*", "*", "3,10,11"]),
        st.sampled_from(["*", "*", "sun", "mon-fri"]),
    ),
)


def due(clock, start, end):
    """List the times between two moments."""
    found, at = [], start
    while (at := clock.after(at)) is not None and at < end:
        found.append(at)
    return found


def walked(clock, start, end):
    """List them by looking at each minute that really passes."""
    zone, found = ZoneInfo(clock.zone), []
    at, before = start + MINUTE, start.astimezone(zone).replace(tzinfo=None)
    while at < end:
        here = at.astimezone(zone)
        wall = here.replace(tzinfo=None, fold=0)
        is_due = croniter.match(clock.expression, wall) and (clock.goes_by_hours or not here.fold)
        missing = before + MINUTE
        while missing < wall and not clock.goes_by_hours:  # what the clock has jumped over
            is_due = is_due or croniter.match(clock.expression, missing)
            missing += MINUTE
        if is_due:
            found.append(at)
        before, at = wall, at + MINUTE
    return found


@settings(max_examples=10, deadline=None, derandomize=True)  # a walk over hours takes a second
@given(EXPRESSIONS, st.sampled_from(sorted(CHANGES)), st.integers(0, 1))
def test_around_a_change_of_the_clock_every_time_is_due_once(expression, zone, which):
    clock = Cron(expression, zone)
    change = datetime(*CHANGES[zone][which], tzinfo=UTC)
    start, end = change - timedelta(hours=4), change + timedelta(hours=4)
    assert due(clock, start, end) == walked(clock, start, end)


@settings(max_examples=60, deadline=None)
@given(EXPRESSIONS, st.datetimes(BEGIN, END))
def test_without_a_change_of_the_clock_it_is_croniter_s_word(expression, start):
    asked = croniter(expression, start)
    at = start.replace(tzinfo=UTC)
    clock = Cron(expression)
    for _ in range(5):
        at = clock.after(at)
        assert at == asked.get_next(datetime).replace(tzinfo=UTC)


def test_a_time_that_comes_twice_is_due_once_and_one_that_is_jumped_over_at_the_jump():
    back, forth = datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 3, 8, tzinfo=UTC)
    day = timedelta(hours=30)
    zone = "America/New_York"
    assert due(Cron("30 1 * * *", zone), back, back + day) == [datetime(2026, 11, 1, 5, 30, tzinfo=UTC)]
    assert due(Cron("30 2 * * *", zone), forth, forth + day) == [datetime(2026, 3, 8, 7, 0, tzinfo=UTC)]
    assert len(due(Cron("30 * * * *", zone), back + timedelta(hours=4), back + timedelta(hours=29))) == 25


@pytest.mark.parametrize(
    ("expression", "count"),
    [
        ("0 0 13 * fri", 61),  # the 13th or a Friday, and not a Friday the 13th
        ("@daily", 365),
        ("0 0 L * *", 12),
        ("0 12 * * sun#1", 12),
        ("0 0 * * 7", 52),
        ("5/15 0 1 1 *", 4),
        ("0 0 1 1 * */20", 3),
        ("0 0 29 feb *", 0),
    ],
)
def test_croniter_s_language_over_a_year(expression, count):
    start = datetime(2025, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert len(due(Cron(expression), start, start + timedelta(days=365))) == count


def test_what_is_never_due_has_no_next_time_and_what_is_no_expression_is_refused():
    assert Cron("0 0 30 2 *").after(datetime(2026, 1, 1, tzinfo=UTC)) is None
    for wrong in ("61 * * * *", "* * *", "nonsense", "H * * * *", "@reboot"):
        with pytest.raises(ValueError, match="is no cron expression"):
            Cron(wrong)


@pytest.mark.parametrize("expression", ["* * * * *", "0 */2 * * *", "0 */6 * * *", "0 1-23/2 * * *", "0 0-23 * * *"])
def test_what_runs_every_few_hours_goes_by_the_hours_that_pass(expression):
    assert Cron(expression).goes_by_hours


@pytest.mark.parametrize("expression", ["0 9 * * *", "0 */5 * * *", "0 1,2 * * *", "0 9-17 * * *", "@daily"])
def test_what_names_hours_goes_by_the_wall_clock(expression):
    assert not Cron(expression).goes_by_hours


@given(
    st.floats(0.5, 100_000, allow_nan=False),
    st.datetimes(BEGIN, END),
    st.floats(-100, 1e6),
)
def test_an_interval_is_due_at_its_beginning_and_then_at_whole_steps(seconds, anchor, later):
    anchor = anchor.replace(tzinfo=UTC)
    clock, moment = Interval(seconds, anchor), anchor + timedelta(seconds=later)
    found = clock.after(moment)
    assert found > moment
    steps = (found - anchor) / timedelta(seconds=seconds)
    assert steps == pytest.approx(round(steps), abs=1e-3)
    if moment < anchor:
        assert found == anchor
    else:
        assert found - moment <= timedelta(seconds=seconds, microseconds=1)
