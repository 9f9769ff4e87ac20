"""The project's files as a process uses them: read once, and again on demand; broken ones are refused, the old stay."""

from __future__ import annotations

import logging
import mmap
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from loomq.catalog import load_catalog, project_files, require_catalog
from loomq.errors import ConfigError
from loomq.queues.limits import Limits, WorkerLimit
from loomq.queues.routing import Router

if TYPE_CHECKING:
    from collections.abc import Callable

    from loomq.catalog import Catalog
    from loomq.problems import Problem
    from loomq.settings import Settings

logger = logging.getLogger(__name__)

_NUMBER = struct.Struct("=Q")


@dataclass(frozen=True)
class Project:
    """One reading of the files: what they say, and what follows from it."""

    catalog: Catalog

    @cached_property
    def router(self) -> Router:
        """The routing rules."""
        return router_of(self.catalog)

    @cached_property
    def limits(self) -> Limits:
        """The limits on rates, concurrency and tokens."""
        return limits_of(self.catalog, self.router)


@dataclass(frozen=True, slots=True)
class Change:
    """What another reading of the files changed: names of workers, pipelines, orchestrators, and new queues.

    Args:
        rules: Whether the router's rules are others.
    """

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    queues: tuple[str, ...]
    rules: bool

    @property
    def is_empty(self) -> bool:
        """Whether the files say what they said before."""
        return not (self.added or self.changed or self.removed or self.queues or self.rules)


class Configs:
    """The files of one project, for a process and the children that it forks.

    Children hear of a reload by a number in shared memory, and read the files themselves before their next task.

    Args:
        on_change: Called in each process after it has read the files again.
        lenient: Leave files with errors out instead of refusing all: for whoever only looks at what goes on.
    """

    def __init__(
        self, settings: Settings, on_change: Callable[[Change], None] | None = None, *, lenient: bool = False
    ) -> None:
        self.left_out: list[Problem] = []
        self._lenient = lenient
        self._settings = settings
        self._on_change = on_change
        self._lock = threading.RLock()
        self._project: Project | None = None
        self._shared = mmap.mmap(-1, _NUMBER.size)
        self._seen = 0

    @property
    def project(self) -> Project:
        """What the files say, as they were last read.

        Raises:
            ConfigError: They have never been right.
        """
        found = self._project
        if found is None:
            with self._lock:
                found = self._project = self._project or Project(self._load())
        return found

    def _load(self) -> Catalog:
        if not self._lenient:
            return require_catalog(self._settings)
        catalog, problems = load_catalog(self._settings)
        self.left_out = [problem for problem in problems if problem.severity == "error"]
        return catalog

    @property
    def router(self) -> Router:
        """The routing rules; errors as in ``project``."""
        return self.project.router

    @property
    def limits(self) -> Limits:
        """The limits; errors as in ``project``."""
        return self.project.limits

    def fingerprint(self) -> tuple[tuple[str, int, int], ...]:
        """Say which files there are, how large, and when they were written last: another answer means a change."""
        found = []
        for file in project_files(self._settings):
            with suppress(OSError):
                status = file.stat()
                found.append((str(file), status.st_size, status.st_mtime_ns))
        return tuple(found)

    def reload(self) -> Change:
        """Read the files again, here and soon in every child.

        Raises:
            ConfigError: They have errors: what they said before stays.
        """
        change = self._read()
        number = self._number() + 1
        self._shared[:] = _NUMBER.pack(number)
        self._seen = number
        return change

    def catch_up(self) -> None:
        """Read the files again if the parent process has; costs next to nothing if it has not."""
        number = self._number()
        if number == self._seen:
            return
        self._seen = number
        try:
            self._read()
        except ConfigError as error:
            logger.warning("the project's files are broken again, and what they said before stays: %s", error.message)

    def _number(self) -> int:
        return int(_NUMBER.unpack(self._shared[:])[0])

    def _read(self) -> Change:
        with self._lock:
            before = self.project
            after = Project(self._load())
            self._project = after
            change = _compared(before, after)
        if self._on_change is not None:
            self._on_change(change)
        return change


def router_of(catalog: Catalog) -> Router:
    """Give the routing rules of a project."""
    defaults = {name: str(worker.tier) for name, worker in catalog.workers.items()}
    # Steps of orchestrators are tasks on queues of their own.
    defaults |= {name: str(one.default_model_tier) for name, one in catalog.orchestrators.items()}
    overrides = {name: str(tier) for name, tier in catalog.rules.tier_overrides.items()}
    asked = [pair for pipeline in catalog.pipelines.values() for pair in pipeline.tiers_asked]
    asked += [pair for orchestrator in catalog.orchestrators.values() for pair in orchestrator.tiers_asked]
    asked += [pair for schedule in catalog.schedules.values() for pair in schedule.tiers_asked]
    return Router(defaults, overrides, frozenset((name, str(tier)) for name, tier in asked))


def limits_of(catalog: Catalog, router: Router) -> Limits:
    """Give the limits of a project."""
    workers = {
        name: WorkerLimit(worker.rate_limit, worker.max_concurrent, worker.concurrency_key)
        for name, worker in catalog.workers.items()
        if worker.rate_limit or worker.max_concurrent or worker.concurrency_key
    }
    return Limits(router, workers, {str(tier): limit for tier, limit in catalog.rules.rate_limits.items()})


def _compared(before: Project, after: Project) -> Change:
    olds, news = (
        {**each.catalog.workers, **each.catalog.pipelines, **each.catalog.orchestrators} for each in (before, after)
    )
    return Change(
        added=tuple(sorted(news.keys() - olds.keys())),
        changed=tuple(sorted(name for name in news.keys() & olds.keys() if news[name] != olds[name])),
        removed=tuple(sorted(olds.keys() - news.keys())),
        queues=tuple(sorted({*after.router.queues_in_use} - {*before.router.queues_in_use})),
        rules=before.catalog.rules != after.catalog.rules,
    )
