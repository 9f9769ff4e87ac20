"""Schedules in words, both ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loomq.schedules.clock import Cron
from loomq.schedules.words import every, meaning_of, sentence_of


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("every 5 minutes", (300, None)),
        ("5 Minutes", (300, None)),
        ("hour", (3600, None)),
        ("every   2 weeks", (1_209_600, None)),
        ("every day at 09:00", (None, "0 9 * * *")),
        ("weekday at 18:30", (None, "30 18 * * mon-fri")),
        ("weekend at 7:05", (None, "5 7 * * sat,sun")),
        ("Mondays and Friday at 23:59", (None, "59 23 * * mon,fri")),
        ("monday, tuesday, sunday at 0:00", (None, "0 0 * * mon,tue,sun")),
    ],
)
def test_what_people_write_is_understood(text, meaning):
    found = meaning_of(text)
    assert found == meaning
    assert found.cron is None or Cron(found.cron)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "every",
        "0 minutes",
        "-5 minutes",
        "5 fortnights",
        "day at 24:00",
        "day at 9",
        "moonday at 9:00",
        "* * * * *",
    ],
)
def test_what_is_not_understood_says_what_there_is(text):
    with pytest.raises(ValueError, match=r'is not understood; write "5 minutes"'):
        meaning_of(text)


@given(st.text(max_size=60))
def test_whatever_somebody_writes_is_understood_or_refused(text):
    try:
        found = meaning_of(text)
    except ValueError:
        return
    assert (found.seconds is None) != (found.cron is None)


@pytest.mark.parametrize(
    ("cron", "sentence"),
    [
        ("0 9 * * mon-fri", "at 09:00, Monday through Friday"),
        ("*/5 * * * *", "every 5 minutes"),
        ("30 6 * * *", "at 06:30, every day"),
        ("@daily", "at 00:00, every day"),
        ("0 0 13 * 5", "at 00:00, on day 13 of the month, or on Friday"),
        ("0 0 L * *", "at 00:00, on the last day of the month"),
        ("0 0 * * sun#1", "at 00:00, on the first Sunday of the month"),
        ("0 0 1 1 *", "at 00:00, on day 1 of the month, only in January"),
        ("*/5 * * * * 10", "at 10 seconds past the minute, every 5 minutes"),
    ],
)
def test_a_cron_expression_is_said_in_words(cron, sentence):
    assert sentence_of(cron) == sentence


def test_what_has_no_words_is_shown_as_it_is():
    assert sentence_of("what is this ? *") == "what is this ? *"


def test_an_interval_is_said_in_its_largest_unit():
    assert [every(seconds) for seconds in (1, 1.5, 90, 300, 3600, 7200, 86_400, 604_800)] == [
        "every second", "every 1.5 seconds", "every 90 seconds", "every 5 minutes", "every hour", "every 2 hours",
        "every day", "every week",
    ]  # fmt: skip
