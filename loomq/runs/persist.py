"""Calls that must be made: only its holder can let a stage go."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, TypeVar

from loomq.errors import DatabaseUnavailableError, SubmitUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LONGEST_PAUSE_S = 1.0


def persist(work: Callable[[], T]) -> T:
    """Make a call until Postgres answers, however long that takes.

    Each call may be made twice.
    """
    pause = 0.05
    while True:
        try:
            return work()
        except (DatabaseUnavailableError, SubmitUnavailableError) as error:
            logger.debug("%s", error.message)  # the node's agent says it aloud
        time.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE_S)
