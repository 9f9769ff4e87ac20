"""Loom: settings, specs, services, store and queues, wired once and handed down."""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING

from loomq.configs import Configs
from loomq.embedded.client import ensure, services_for
from loomq.ids import uuid7
from loomq.llm.asking import Asker
from loomq.llm.http import HttpPool
from loomq.llm.settings import keys_in
from loomq.llm.tiers import Tiers
from loomq.queues.app import LoomCelery, speaks_redis
from loomq.redaction import know, know_url
from loomq.runs.beat import Beat
from loomq.runs.call import Calls
from loomq.runs.dispatch import Dispatcher
from loomq.runs.execute import Executor
from loomq.runs.node import WorkerNode
from loomq.runs.publish import Publisher
from loomq.runs.replay import Replayer
from loomq.runs.sequel import Sequel
from loomq.runs.silos import Silos
from loomq.runs.snapshot import PlanCache
from loomq.runs.subgoals import Subgoals
from loomq.runs.submit import Submitter
from loomq.runs.sweep import Sweeper
from loomq.store import migrate
from loomq.store.engine import Database
from loomq.tools.toolbox import Toolboxes
from loomq.workers.llm import LLMWorkers
from loomq.workers.loop import EventLoop
from loomq.workers.processor import Processors
from loomq.workers.runtime import WorkerRuntime

if TYPE_CHECKING:
    from uuid import UUID

    from loomq.catalog import Catalog
    from loomq.configs import Change
    from loomq.embedded.client import EmbeddedServices
    from loomq.queues.routing import Router
    from loomq.settings import Settings

_THREADS = 8  # connections that a process may keep; a threads pool shares them


class Loom:
    """Everything that a process needs of loomq, made when it is first asked for.

    Args:
        settings: What the environment says.
        lenient: Leave files with errors out, for whoever only looks at what goes on.
    """

    def __init__(self, settings: Settings, *, lenient: bool = False) -> None:
        self.settings = settings
        self._lenient = lenient
        know_url(settings.database_url, settings.listen_url, settings.broker_url, settings.redis_url)
        know(*keys_in(os.environ))

    @cached_property
    def configs(self) -> Configs:
        """The project's files, which may be read again; nothing is read yet."""
        return Configs(self.settings, self._files_changed, lenient=self._lenient)

    def _files_changed(self, change: Change) -> None:
        """Know the tasks of workers that were added since."""
        if not change.is_empty and "app" in self.__dict__:
            self._add_workers(self.app)

    @property
    def catalog(self) -> Catalog:
        """The project's YAML, as it was last read.

        Raises:
            ConfigError: A file has errors.
        """
        return self.configs.project.catalog

    @cached_property
    def services(self) -> EmbeddedServices:
        """Where embedded services of this project are, whether they run or not."""
        return services_for(self.settings)

    @property
    def is_embedded(self) -> bool:
        """Whether the database is the embedded one, which starts when it is needed."""
        return self.settings.database_url is None

    @property
    def broker_url(self) -> str:
        """The broker: the user's, or the embedded one."""
        return self.settings.broker_url or self.services.broker_url

    @cached_property
    def database(self) -> Database:
        """The database: the user's, or the embedded one, which migrates by itself."""
        url = self.settings.database_url or self.services.database_url
        return Database(url, prepare=self._prepare_database, pool_size=_THREADS)

    def _prepare_database(self) -> None:
        if self.settings.database_url:
            return
        ensure(self.services, postgres=True, redis=self.settings.broker_url is None)
        plain = Database(self.services.database_url, pooled=False)
        found = migrate.current(plain)
        if found != migrate.HEAD and not migrate.is_newer(found):
            migrate.upgrade(plain)

    def _ensure_broker(self) -> None:
        if self.settings.broker_url is None or self.limits_url == self.services.broker_url:
            ensure(self.services, postgres=self.settings.database_url is None, redis=True)

    @property
    def limits_url(self) -> str | None:
        """The Redis that holds rates and token budgets: the one that is named for it, the broker, or the embedded one.

        ``None`` if there is none: a cluster on RabbitMQ must name one, which all of its machines share.
        """
        if self.settings.redis_url or speaks_redis(self.broker_url):
            return self.settings.redis_url or self.broker_url
        return self.services.broker_url if self.is_embedded else None

    @property
    def router(self) -> Router:
        """The project's routing rules, as they were last read; errors as in ``catalog``."""
        return self.configs.router

    @cached_property
    def app(self) -> LoomCelery:
        """The Celery app, with a task for each worker; nothing is connected yet."""
        app = LoomCelery(
            self.settings,
            broker_url=self.broker_url,
            database=self.database,
            limits=lambda: self.configs.limits,
            limits_url=self.limits_url,
            queues=self.router.queues_in_use,
            ensure_broker=self._ensure_broker,
        )
        self._add_workers(app)
        app.runner = self._executor(app)
        app.make_timekeeper = lambda: self.beat(uuid7())
        app.tasks.catch_up = self.configs.catch_up
        self.node.install(app)
        return app

    def _add_workers(self, app: LoomCelery) -> None:
        for name, worker in self.catalog.workers.items():
            app.add_worker(name, worker.description, worker.rate_limit)
        for name, orchestrator in self.catalog.orchestrators.items():
            app.add_worker(name, orchestrator.description)

    @cached_property
    def node(self) -> WorkerNode:
        """This process's part in a worker node."""
        return WorkerNode()

    @cached_property
    def tiers(self) -> Tiers:
        """The language models that this process may ask; nothing is read or connected yet."""
        return Tiers(HttpPool(), insecure=self.settings.insecure)

    @cached_property
    def plans(self) -> PlanCache:
        """The goals' plans that this process has parsed."""
        return PlanCache(self.database)

    @cached_property
    def publisher(self) -> Publisher:
        """The one way to the broker."""
        return Publisher(self.settings, self.database, self.app)

    @cached_property
    def sequel(self) -> Sequel:
        """What follows the end of a goal that this process brings about."""
        return Sequel(self.settings, self.database, self.plans, self.publisher)

    @cached_property
    def silos(self) -> Silos:
        """The folders that workers write."""
        return Silos(self.database, self.settings.project)

    def sweeper(self, holder: UUID) -> Sweeper:
        """Make a sweeper.

        Args:
            holder: Who leads when it does.
        """
        return Sweeper(self.settings, self.database, self.app, self.publisher, self.sequel, self.silos, holder)

    @cached_property
    def dispatcher(self) -> Dispatcher:
        """What brings the runs of schedules about."""
        return Dispatcher(self.settings, self.database, self.submitter, self.sequel)

    def beat(self, holder: UUID) -> Beat:
        """Make a beat.

        Args:
            holder: Who leads when it does.
        """
        return Beat(self.database, self.configs, self.dispatcher, holder)

    @cached_property
    def submitter(self) -> Submitter:
        """The one way to a goal."""
        return self._submitter(self.publisher)

    @cached_property
    def replayer(self) -> Replayer:
        """The one way back for dead letters."""
        return Replayer(self.settings, self.database, self.plans, self.publisher)

    def _submitter(self, publisher: Publisher) -> Submitter:
        return Submitter(self.settings, self.configs, self.database, publisher, self.plans)

    def _executor(self, app: LoomCelery) -> Executor:
        publisher = Publisher(self.settings, self.database, app)
        submitter = self._submitter(publisher)
        sequel = Sequel(self.settings, self.database, self.plans, publisher)
        loop = EventLoop()
        runtime = WorkerRuntime(
            Processors(self.settings.project, self.settings.import_allow, loop),
            LLMWorkers(
                Asker(self.tiers),
                loop,
                Toolboxes(self.settings.project, self.settings.import_allow),
                self.settings.project,
                joins=lambda: not self.node.is_pool_child,
                redacts=self.settings.redact_outputs,
            ),
            self.settings.project,
            self.settings.grace_seconds,
            own_process=lambda: self.node.is_pool_child,
        )
        return Executor(
            self.settings,
            self.database,
            app,
            self.plans,
            publisher,
            Calls(app, submitter, publisher),
            runtime,
            sequel,
            Subgoals(self.database, submitter, sequel),
            self.silos,
            node=self.node.id,
            process_lost=self.node.process_lost,
            configs=self.configs,
            served=lambda: app.queues_served,
            serves=self.node.serves,
        )

    def close(self) -> None:
        """Close what this process opened."""
        if "app" in self.__dict__:
            self.app.broker.close()
            self.app.close()
        if "database" in self.__dict__:
            self.database.close()
