"""Schedules in words: what "every 5 minutes" means, and what a cron expression says in a sentence."""

from __future__ import annotations

import re

from cron_descriptor import ExpressionDescriptor, Options
from cron_descriptor.Exception import FormatException

from loomq.schedules.meaning import Meaning

_UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400, "week": 7 * 86_400}
_DAYS = ("sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday")
_GROUPS = {"day": "*", "weekday": "mon-fri", "weekend": "sat,sun"}
_SPAN = re.compile(r"(?:(\d{1,7})\s+)?(second|minute|hour|day|week)s?")
_AT = re.compile(r"(.+?)\s+at\s+(\d{1,2}):(\d{2})")
_NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_WITH_SECONDS = 6  # fields; croniter has the seconds last, and the describer first
_MOST_HOURS, _MOST_MINUTES = 23, 59


def meaning_of(text: str) -> Meaning:
    """Read an interval, or times of day.

    Args:
        text: ``5 minutes``, ``hour``, ``day at 09:00``, ``weekday at 18:30``, ``monday and friday at 7:00``; with or
            without ``every`` before it.

    Raises:
        ValueError: It is none of these; the text says what there is.
    """
    said = " ".join(text.lower().split()).removeprefix("every ")
    if found := _SPAN.fullmatch(said):
        seconds = int(found[1] or 1) * _UNITS[found[2]]
        if seconds > 0:
            return Meaning(seconds=float(seconds))
    if found := _AT.fullmatch(said):
        days, hour, minute = _days(found[1]), int(found[2]), int(found[3])
        if days is not None and hour <= _MOST_HOURS and minute <= _MOST_MINUTES:
            return Meaning(cron=f"{minute} {hour} * * {days}")
    raise ValueError(
        f'"{text}" is not understood; write "5 minutes", "2 hours", "day at 09:00", "weekday at 09:00" or'
        ' "monday and friday at 09:00", or use cron'
    )


def _days(text: str) -> str | None:
    if text in _GROUPS:
        return _GROUPS[text]
    names = [name.removesuffix("s") for name in re.split(r",\s*|\s+and\s+", text)]
    if not names or any(name not in _DAYS for name in names):
        return None
    return ",".join(name[:3] for name in dict.fromkeys(names))


def sentence_of(cron: str) -> str:
    """Say a cron expression in words, as ``at 09:00, Monday through Friday``; as it is if there are no words for it."""
    fields = _NICKNAMES.get(cron.strip().lower(), cron).split()
    if len(fields) == _WITH_SECONDS:
        fields = [fields[-1], *fields[:-1]]
    options = Options()
    options.use_24hour_time_format = True
    options.locale_code = "en_US"
    try:
        found = str(ExpressionDescriptor(" ".join(fields), options).get_full_description())
    except (FormatException, ValueError, IndexError, KeyError):
        return cron
    is_daily = fields[-3:] == ["*"] * 3 and fields[-4].isdecimal()
    return f"{found[:1].lower()}{found[1:]}{', every day' if is_daily else ''}"


def every(seconds: float) -> str:
    """Say an interval in words: ``every 5 minutes``, ``every 1.5 seconds``."""
    unit, size = max(
        ((name, size) for name, size in _UNITS.items() if seconds % size == 0 or name == "second"),
        key=lambda pair: pair[1],
    )
    number = seconds / size
    return f"every {unit}" if number == 1 else f"every {number:g} {unit}s"
