"""The systems by name, and what each needs to be started."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.systems.celery_redis import CeleryRedis
from benchmarks.systems.loomq import Loomq

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.harness import Servers
    from benchmarks.systems.base import System


class BaselineMissing(Exception):  # noqa: N818  (it is left out, and nothing failed)
    """A system that cannot be had on this machine."""


def _loomq(servers: Servers) -> System:
    return Loomq(servers.folder, servers.given)


def _celery_redis(servers: Servers) -> System:
    return CeleryRedis(servers.folder, servers.redis(14), servers.redis(15))


SYSTEMS: dict[str, Callable[[Servers], System]] = {
    "loomq": _loomq,
    "celery_redis": _celery_redis,
}


def open_system(name: str, servers: Servers) -> System:
    """Start a system.

    Raises:
        BaselineMissing: It is not to be had.
    """
    return SYSTEMS[name](servers)
