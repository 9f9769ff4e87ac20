"""The systems by name, and what each needs to be started."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.systems.celery_redis import CeleryDatabase, CeleryRedis
from benchmarks.systems.driven import BaselineMissing, Dbos, Dramatiq, LangGraph, Taskiq
from benchmarks.systems.loomq import Loomq

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.harness import Servers
    from benchmarks.systems.base import System

__all__ = ["SYSTEMS", "BaselineMissing", "open_system"]


def _celery_db(servers: Servers) -> System:
    return CeleryDatabase(servers.folder, servers.redis(12), f"db+{servers.database('celery')}")


def _dramatiq(servers: Servers) -> System:
    more = {"BENCH_REDIS": servers.plain_redis(11)}
    return Dramatiq(servers.folder, more, ("dramatiq", "benchmarks.baselines.dramatiq_driver", "-p", "2", "-t", "1"))


def _taskiq(servers: Servers) -> System:
    more = {"BENCH_REDIS": servers.plain_redis(10)}
    worker = ("taskiq", "worker", "benchmarks.baselines.taskiq_driver:broker", "-w", "2", "--max-async-tasks", "1")
    return Taskiq(servers.folder, more, (*worker, "--max-prefetch", "1", "--log-level", "WARNING"))


SYSTEMS: dict[str, Callable[[Servers], System]] = {
    "loomq": lambda servers: Loomq(servers.folder, servers.given),
    "celery_redis": lambda servers: CeleryRedis(servers.folder, servers.redis(14), servers.redis(15)),
    "celery_db": _celery_db,
    "dbos": lambda servers: Dbos(servers.folder, {"BENCH_POSTGRES": servers.database("dbos", driver=False)}),
    "langgraph": lambda servers: LangGraph(
        servers.folder, {"BENCH_POSTGRES": servers.database("langgraph", driver=False)}
    ),
    "dramatiq": _dramatiq,
    "taskiq": _taskiq,
}


def open_system(name: str, servers: Servers) -> System:
    """Start a system.

    Raises:
        BaselineMissing: It is not to be had.
    """
    return SYSTEMS[name](servers)
