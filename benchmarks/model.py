"""A model of how much gets done: slots that wait, and processors and a database that are shared."""

from __future__ import annotations


def runs_per_s(
    *,
    nodes: int,
    slots: int,
    wait_ms: float,
    own_ms: float,
    cores: int,
    cpu_ms: float,
    database_per_s: float = 3_000.0,
) -> float:
    """Give how many stages a second some nodes end.

    The least of three: what the slots allow, what the processors of the nodes' machine allow, and what one Postgres
    commits.

    Args:
        nodes, slots: Worker nodes, and slots of each.
        wait_ms: What a stage waits for others: a model, a disk.
        own_ms: What a slot does besides, calls to the database included.
        cores, cpu_ms: Of the machine that the nodes share, and what a stage takes of them.
        database_per_s: Ends of stages that one Postgres takes.
    """
    by_slots = nodes * slots * 1000 / (wait_ms + own_ms)
    by_cores = cores * 1000 / cpu_ms
    return min(by_slots, by_cores, database_per_s)
