"""The bars of a goal: readable for one stage and for sixty, on any terminal."""

from __future__ import annotations

import io
import sys
from datetime import UTC, datetime, timedelta

import pytest

from loomq.cli import gantt
from loomq.services.timing import GoalTiming, Part, Track, timing_of

START = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def part(kind: str, start: float, end: float) -> Part:
    return Part(kind, at(start), at(end))


def two_stages() -> GoalTiming:
    first = Track("first", (), at(4), (part("retry", 0, 0.01), part("work", 2, 4)), (part("delay", 0.01, 1),))
    second = Track("second", ("first",), at(6), (part("work", 5, 6),))
    side = Track("side", (), at(1), (part("lost", 0.5, 0.75), part("work", 0.75, 1)))
    return timing_of(START, at(6), [first, second, side])


def chain(count: int) -> GoalTiming:
    tracks = [
        Track(
            f"s{number}",
            (f"s{number - 1}",) if number else (),
            at(number + 1),
            (part("work", number + 0.5, number + 1),),
        )
        for number in range(count)
    ]
    return timing_of(START, at(count), tracks)


def test_a_bar_tells_waiting_from_work_and_shows_the_shortest_failure(capsys):
    gantt.print_timing(two_stages())
    lines = capsys.readouterr().out.splitlines()
    side, first, second = lines[1:4]
    assert first.startswith("* first   ▓·")
    assert "░██" in first
    assert side.startswith("  side    ░")
    assert "▒" in side
    assert second.startswith("* second")
    assert second.rstrip().endswith("2.0 s")
    assert lines[-2].split("   ") == [
        "  █ work",
        "▓ failed attempt",
        "▒ lost with its process",
        "░ queue",
        "· delay",
        "* critical path",
    ]
    assert lines[-1] == "critical path 6.00 s: work 3.00, retry 0.01, queue 2.00, delay 0.99"


@pytest.mark.parametrize("why", ["dumb", "ascii"])
def test_where_shades_cannot_be_shown_letters_are(monkeypatch, why):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii" if why == "ascii" else "utf-8")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("TERM", "dumb" if why == "dumb" else "xterm")
    gantt.print_timing(two_stages())
    stream.flush()
    out = stream.buffer.getvalue().decode("ascii")
    assert "* first   r." in out
    assert "# work   r failed attempt   x lost with its process   - queue   . delay" in out


def test_one_stage_has_a_line_and_no_chart(capsys):
    gantt.print_timing(chain(1))
    assert capsys.readouterr().out == "\ncritical path 1.00 s: work 0.50, queue 0.50\n"


def test_sixty_stages_are_cut_to_the_path_and_the_longest_and_fit_a_narrow_terminal():
    drawn = list(gantt.bars(chain(60), 80))
    assert len(drawn) == 41
    assert drawn[-1][0] == "  … and 20 shorter stages"
    assert max(len("  ".join(line)) for line in drawn) <= 80


def test_long_goals_are_told_in_minutes_and_short_ones_in_milliseconds():
    long = timing_of(START, at(3725), [Track("a", (), at(3725), (part("work", 100, 3725),))])
    assert gantt.summary(long) == "critical path 1 h 02 min: work 1 h 00 min, queue 1 min 40 s"
    short = timing_of(START, at(0.062), [Track("a", (), at(0.062), (part("work", 0.04, 0.062),))])
    assert gantt.summary(short) == "critical path 62 ms: work 22 ms, queue 40 ms"
