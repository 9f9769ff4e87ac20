"""What a schedule's file may say."""

import pytest

from loomq.schedules.spec import ScheduleSpec

GOAL = {"instruction": "go"}


def schedule(**entry):
    said = {"name": "a", "dispatch_type": "goal", "goal": GOAL, **entry}
    return ScheduleSpec.model_validate({"name": "s", "schedules": [said]})


@pytest.mark.parametrize(
    "cron", ["* * * * *", "*/5 9-17 * * mon-fri", "@hourly", "@daily", "0 0 l * *", "0 0 * * sun#2", "* * * * * */10"]
)
def test_croniter_s_language_is_understood(cron):
    assert schedule(cron=cron).schedules[0].cron == cron


@pytest.mark.parametrize(
    "entry",
    [
        {"cron": "61 * * * *"},
        {"cron": "nonsense"},
        {"cron": "* * * * *", "interval_seconds": 5},
        {},
        {"interval_seconds": 0},
        {"interval_seconds": 5, "dispatch_type": "task"},
        {"interval_seconds": 5, "task": {"worker_type": "w"}},
        {"interval_seconds": 5, "expand_from": "nodot"},
        {"interval_seconds": 5, "catch_up": "some"},
    ],
)
def test_an_entry_that_no_clock_or_no_one_understands_is_refused(entry):
    with pytest.raises(ValueError, match="validation error"):
        schedule(**entry)


def test_a_zone_and_names_are_checked():
    entry = {"name": "a", "dispatch_type": "goal", "goal": GOAL, "interval_seconds": 5}
    with pytest.raises(ValueError, match="time zone"):
        ScheduleSpec.model_validate({"name": "s", "timezone": "Mars/Olympus", "schedules": [entry]})
    with pytest.raises(ValueError, match="two entries"):
        ScheduleSpec.model_validate({"name": "s", "schedules": [entry, entry]})


def test_a_schedule_survives_dump_and_load():
    spec = schedule(cron="@hourly", catch_up="all", jitter_seconds=2.5, enabled=False, expand_from="a.b")
    assert ScheduleSpec.model_validate(spec.model_dump(mode="json")) == spec
