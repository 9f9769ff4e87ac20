"""The Celery app: Celery's own class with our settings, our task class and services that start when needed."""

from __future__ import annotations

from socket import gethostname
from typing import TYPE_CHECKING, Any, Protocol

from celery import Celery, signals
from celery.app.registry import TaskRegistry
from celery.app.trace import build_tracer
from celery.app.utils import Settings as CelerySettings
from celery.utils.log import get_multiprocessing_logger
from kombu import Exchange, Queue
from kombu.utils.url import maybe_sanitize_url

from loomq.logs import guard
from loomq.queues.broker import Broker
from loomq.queues.guard import bound_decompression, outlive_the_broker, read_any_properties
from loomq.queues.limits import Limiter
from loomq.queues.names import StageMessage, broker_priorities, broker_priority, level, task_name, urgency
from loomq.queues.quarantine import Quarantine
from loomq.queues.served import Served
from loomq.queues.task import StageTask

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from loomq.errors import LoomqError
    from loomq.queues.limits import Limits
    from loomq.queues.routing import Router
    from loomq.settings import Settings
    from loomq.store.engine import Database

# For connecting and for an answer. Whoever submits is told within half a second; a node on a busy machine waits longer
# before it calls its broker dead.
_PATIENCE_S = (0.4, 0.4)
_PATIENCE_OF_NODES_S = (1.0, 2.0)
_TWELVE_HOURS = 12 * 3600


class Runner(Protocol):
    """What the app needs from whoever runs goals; ``runs`` fills it in when everything is wired."""

    def execute(self, task: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the message that a worker process has in hand."""

    def submit_call(
        self, task: Any, payload: dict[str, Any], options: dict[str, Any]
    ) -> tuple[StageMessage | None, dict[str, Any]]:
        """Write a raw call down as a goal; gives the message to send now, if any, and its sending options."""

    def not_sent(self, message: StageMessage, error: LoomqError) -> None:
        """Hear that a message did not reach the broker."""

    def put_back(self, task_id: str) -> None:
        """Hear that a stage's message came to a node that does not know its task."""

    def process_lost(self) -> None:
        """Hear from Celery's parent process that a child of its pool has ended."""

    def catch_up(self) -> None:
        """Read the project's files again if the parent process has."""

    def reload(self) -> dict[str, Any]:
        """Read the project's files again, and say what has changed.

        Raises:
            ConfigError: They have errors; what they said before stays.
        """

    def serves(self, queues: Sequence[str], *, reloaded: bool) -> None:
        """Hear which queues the node consumes by now, and whether that is because the files were read again."""


class Tasks(TaskRegistry):  # type: ignore[misc]
    """The tasks by name; one that is missing may be of a worker that was added since this process began."""

    catch_up: Callable[[], None] | None = None

    def __missing__(self, name: str) -> Any:
        if self.catch_up is not None:
            self.catch_up()
        if name in self:
            return self[name]
        raise self.NotRegistered(name)


class LoomCelery(Celery):  # type: ignore[misc]
    """The app that ``celery -A loomq`` finds.

    Args:
        settings: The process's settings.
        broker_url: Where the broker is; nothing is opened here.
        database: Where goals and results are kept.
        limits: Gives the limits, and with them the router, as the files say them now.
        limits_url: The Redis that holds rates and token budgets; ``None`` if there is none.
        queues: The queues that a worker without ``-Q`` consumes.
        ensure_broker: Called before the first connection of each process: starts an embedded broker.
    """

    events_cls = "loomq.queues.events:SafeEvents"

    registry_cls = Tasks

    amqp_cls = "loomq.queues.transport:GuardedAMQP"

    def __init__(
        self,
        settings: Settings,
        *,
        broker_url: str,
        database: Database,
        limits: Callable[[], Limits],
        queues: Sequence[str],
        limits_url: str | None = None,
        ensure_broker: Callable[[], None],
    ) -> None:
        self.loom_settings = settings
        self.database = database
        self._limits = limits
        self.runner: Runner | None = None
        self.make_timekeeper: Callable[[], object] | None = None
        self.is_node = False
        self.is_solo = False  # a node whose one process does everything
        self.while_waiting: Callable[[], None] | None = None  # called while a lost broker holds the node's loop up
        self.is_redis = speaks_redis(broker_url)
        self._ensure_broker = ensure_broker
        self.served = Served()
        self.quarantine = Quarantine(database)
        bound_decompression()
        if self.is_redis:
            outlive_the_broker()
        else:
            read_any_properties()
        signals.after_setup_logger.connect(_guard_logs)
        signals.after_setup_task_logger.connect(_guard_logs)
        super().__init__("loomq", set_as_current=True, loader="celery.loaders.app:AppLoader")
        object.__setattr__(self.conf, "__class__", OwnSettings)  # Celery has no way to say which class it makes
        self.conf.update(celery_settings(broker_url, queues, is_redis=self.is_redis))
        self.conf.task_routes = (self.route,)
        self.broker = Broker(self, is_redis=self.is_redis, shown_url=maybe_sanitize_url(broker_url))
        self.limiter = Limiter(self._limits_server(broker_url, limits_url), limits)

    def _limits_server(self, broker_url: str, url: str | None) -> Broker | None:
        if url is None or url == broker_url:
            return self.broker if self.is_redis else None
        return Broker(
            self,
            is_redis=True,
            shown_url=maybe_sanitize_url(url),
            url=url,
            name="the Redis of the limits",
            setting="LOOMQ_REDIS_URL",
        )

    @property
    def router(self) -> Router:
        """Which queue serves which worker and tier, as the files say it now."""
        return self._limits().router

    def route(self, name: str, *arguments: Any, **more: Any) -> dict[str, str] | None:
        """Route a task as Celery's ``task_routes`` asks; see ``Router.celery_route``."""
        return self.router.celery_route(name, *arguments, **more)

    def add_worker(self, name: str, description: str | None, rate_limit: str | None = None) -> None:
        """Register the task of one worker, or say its description and rate anew."""
        known = self._tasks.get(task_name(name))
        if known is not None:
            known.rate_limit = rate_limit
            return
        said = {"name": task_name(name), "__doc__": description, "worker": name, "rate_limit": rate_limit}
        task = self.register_task(type(f"worker_{name}", (StageTask,), said)())
        if self.use_fast_trace_task:  # this process is a worker's: it has prepared all tasks that it knew
            task.__trace__ = build_tracer(task.name, task, self.loader, gethostname(), app=self)

    @property
    def queues_served(self) -> frozenset[str]:
        """The queues that this process's node consumes by now."""
        told = self.served.names
        return frozenset(self.amqp.queues.consume_from) if told is None else told

    def broker_priority(self, urgency: int) -> int:
        """Give an urgency as this broker's number."""
        return broker_priority(urgency, low_is_urgent=self.is_redis)

    def priority_of(self, header: Mapping[str, Any]) -> int:
        """Give the broker's priority of one of our messages by its header."""
        return self.broker_priority(urgency(header["priority"], first=not header.get("bulk")))

    def _connection(self, *args: Any, **kwargs: Any) -> Any:
        self._ensure_broker()
        found = super()._connection(*args, **kwargs)
        found.while_waiting = self.while_waiting
        return found

    def producer_or_acquire(self, producer: Any = None) -> Any:
        """Lend the broker's own producer within its ``run``; Celery's chords would open a connection of their own."""
        return super().producer_or_acquire(producer or self.broker.lent)

    def connection_for_write(self, url: str | None = None, *args: Any, **kwargs: Any) -> Any:
        """Connect for publishing, with short timeouts and no patience: the database remembers what is not sent."""
        connect_s, answer_s = _PATIENCE_OF_NODES_S if self.is_node else _PATIENCE_S
        hasty: dict[str, Any] = {"max_retries": 0, "interval_start": 0, "interval_step": 0}
        hasty |= (
            {"socket_connect_timeout": connect_s, "socket_timeout": answer_s}
            if self.is_redis
            else {"read_timeout": answer_s, "write_timeout": answer_s}
        )
        kwargs["transport_options"] = {**hasty, **(kwargs.get("transport_options") or {})}
        kwargs["connect_timeout"] = kwargs.get("connect_timeout") or connect_s
        return super().connection_for_write(url, *args, **kwargs)


class OwnSettings(CelerySettings):  # type: ignore[misc]
    """Celery's settings without a way around ours: ``CELERY_BROKER_URL`` and its like may be another program's."""

    broker_url = property(lambda self: self["broker_url"])
    broker_read_url = broker_url
    broker_write_url = broker_url
    result_backend = property(lambda self: self["result_backend"])


def _guard_logs(logger: Any, **_: Any) -> None:
    guard(logger, get_multiprocessing_logger())


def celery_settings(broker_url: str, queues: Sequence[str], *, is_redis: bool) -> dict[str, Any]:
    """Give Celery's configuration; each choice is argued in ``docs/decisions/0004``.

    Args:
        queues: The queues that a worker without ``-Q`` consumes.
        is_redis: Whether the broker speaks Redis; RabbitMQ orders priorities by the queue's own argument.
    """
    normal = broker_priority(urgency(level("normal")), low_is_urgent=is_redis)
    return {
        "broker_url": broker_url,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_connection_timeout": 3,
        "broker_transport_options": _transport_options() if is_redis else {},
        "result_backend": "loomq.queues.results:PostgresBackend",
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "result_accept_content": ["json"],
        "event_serializer": "json",
        "task_acks_late": False,
        "worker_consumer": "loomq.queues.consumer:LoomConsumer",
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": is_redis,
        "worker_deduplicate_successful_tasks": False,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "task_track_started": False,
        "task_default_priority": normal,
        "task_default_exchange": "loomq",
        "task_queues": [task_queue(name, is_redis=is_redis) for name in queues],
        "task_create_missing_queues": True,
        "task_queue_max_priority": None if is_redis else 9,
        "task_default_queue": queues[0] if queues else "loomq.control",
        "worker_send_task_events": True,  # a read-only Flower cannot turn them on
        "worker_hijack_root_logger": True,
        "beat_scheduler": "loomq.schedules.scheduler:LoomScheduler",
        "enable_utc": True,
        "timezone": "UTC",
    }


def task_queue(name: str, *, is_redis: bool) -> Queue:
    """Describe a queue of ours to Celery."""
    arguments = {} if is_redis else {"x-max-priority": 9}
    return Queue(name, Exchange("loomq", type="direct"), routing_key=name, queue_arguments=arguments)


def speaks_redis(url: str) -> bool:
    """Say whether a broker's URL is one of a Redis."""
    return url.startswith(("redis", "rediss", "sentinel", "valkey", "unix"))


def _transport_options() -> dict[str, Any]:
    return {
        "visibility_timeout": _TWELVE_HOURS,  # redelivery is the sweeper's business
        # By priority first, and in turn over the queues of one priority: in the order of names the last would starve.
        "queue_order_strategy": "round_robin",
        "priority_steps": sorted(broker_priorities(low_is_urgent=True)),
        "socket_connect_timeout": 3,
        "socket_timeout": 10,
        "socket_keepalive": True,
        "health_check_interval": 10,
        "client_name": "loomq",
    }
