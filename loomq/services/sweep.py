"""Sweep from a process of its own, beside the sweepers in worker nodes: one of them all leads."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from loomq.errors import EnvironmentNotReadyError
from loomq.ids import uuid7
from loomq.runs.sweep import LEADERSHIP
from loomq.store import nodes

if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Event

    from loomq.loom import Loom
    from loomq.runs.sweep import Sweeper
    from loomq.store.nodes import Leader

logger = logging.getLogger(__name__)


def sweep_once(loom: Loom) -> dict[str, Any] | None:
    """Make one pass, and let others lead again.

    Returns:
        What it did, as ``Swept`` counts it; ``None`` if somebody else leads.

    Raises:
        EnvironmentNotReadyError: The database cannot be used.
    """
    sweeper = _sweeper(loom)
    try:
        done = sweeper.sweep()
        return None if done is None else asdict(done)
    finally:
        sweeper.step_down()


def sweep_until(loom: Loom, is_over: Event, report: Callable[[dict[str, Any]], object]) -> None:
    """Make a pass every ``sweep_seconds``, through outages too, and step down at the end.

    Args:
        is_over: Ends it after the pass in hand.
        report: Called after each pass that this process led.
    """
    sweeper = _sweeper(loom)
    is_out = False
    while not is_over.is_set():
        try:
            done = sweeper.sweep()
        except EnvironmentNotReadyError as error:
            if not is_out:
                logger.warning("%s", error.message)
            is_out = True
        else:
            if is_out:
                logger.warning("services answer again")
            is_out = False
            if done is not None:
                report(asdict(done))
        is_over.wait(loom.settings.sweep_seconds)
    try:
        sweeper.step_down()
    except EnvironmentNotReadyError as error:
        logger.warning("the leadership is left to run out: %s", error.message)


def _sweeper(loom: Loom) -> Sweeper:
    loom.app.is_node = True  # as patient with its broker as a node
    return loom.sweeper(uuid7())


def leader(loom: Loom) -> Leader | None:
    """Say who leads the sweeping, if anybody does."""
    return nodes.leader(loom.database, LEADERSHIP)


def leader_json(found: Leader | None) -> dict[str, Any] | None:
    """Describe a leader."""
    if found is None:
        return None
    since, last = (time.isoformat() if time else None for time in (found.since, found.renewed_at))
    return {"holder": str(found.holder), "who": found.who, "since": since, "last_pass": last}
