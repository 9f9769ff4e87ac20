"""What a schedule's text stands for."""

from __future__ import annotations

from typing import NamedTuple


class Meaning(NamedTuple):
    """What a text stands for: either of both.

    Args:
        seconds: An interval.
        cron: A cron expression.
    """

    seconds: float | None = None
    cron: str | None = None
