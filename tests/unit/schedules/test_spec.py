"""What a schedule's file may say."""

from datetime import UTC, datetime

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


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"cron": "0 0 30 2 *"}, "is never due"),
        ({"cron": "61 * * * *"}, "is no cron expression"),
        ({"every": "now and then"}, "is not understood"),
        ({"every": "5 minutes", "cron": "* * * * *"}, "one of cron, interval_seconds and every"),
    ],
)
def test_what_is_wrong_with_the_times_is_said(entry, told):
    with pytest.raises(ValueError, match=told):
        schedule(**entry)


def test_an_entry_knows_its_clock_and_says_it_in_words():
    anchor = datetime(2026, 1, 1, tzinfo=UTC)
    (hourly,), (morning,), (cron,) = (
        schedule(**entry).schedules
        for entry in ({"interval_seconds": 3600}, {"every": "weekday at 09:00"}, {"cron": "0 12 * * *"})
    )
    assert (hourly.sentence, morning.sentence) == ("every hour", "at 09:00, Monday through Friday")
    assert hourly.clock("UTC", anchor).after(anchor) == datetime(2026, 1, 1, 1, tzinfo=UTC)
    assert morning.clock("Europe/Paris", anchor).after(anchor) == datetime(2026, 1, 1, 8, tzinfo=UTC)
    assert cron.clock("UTC", anchor).after(anchor) == datetime(2026, 1, 1, 12, tzinfo=UTC)
