"""Raw Celery with Redis as broker and for results: the yardstick, which promises nothing."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from celery import Celery, chain, chord

from benchmarks import work
from benchmarks.harness import ROOT, Node, environment
from benchmarks.systems.base import LINKS, WIDTH, System

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def _made() -> Celery:
    # Not the current app: loomq's own lives in the same process while both are compared.
    found = Celery("raw", set_as_current=False)
    found.conf.update(
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],
        task_acks_late=False,
        worker_prefetch_multiplier=1,
    )
    return found


app = _made()  # what the worker runs


@app.task  # type: ignore[untyped-decorator]
def step(payload: dict[str, Any], run: str | None = None) -> dict[str, Any]:
    """Add one."""
    return work.step({**payload, "run": run})


@app.task  # type: ignore[untyped-decorator]
def join(sides: list[dict[str, Any]], run: str | None = None) -> dict[str, Any]:
    """Add up the sides."""
    return work.join([side["n"] for side in sides], run)


@app.task  # type: ignore[untyped-decorator]
def wait(ms: float, run: str) -> dict[str, Any]:
    """Wait."""
    return work.wait(ms, run)


def canvas(given: Celery, kind: str, run: str) -> Any:
    """Give the canvas of one run."""

    def task(name: str, *args: Any, immutable: bool = False) -> Any:
        return given.signature(f"{__name__}.{name}", args=args, immutable=immutable)

    if kind == "noop":
        return task("step", {"n": 0}, run, immutable=True)
    if kind == "chain":
        return chain(task("step", {"n": 0}), *(task("step") for _ in range(LINKS - 2)), task("step", run), app=given)
    width = WIDTH if kind == "fan" else 2
    return chain(
        task("step", {"n": 0}), chord([task("step") for _ in range(width)], task("join", run), app=given), app=given
    )


class CeleryRedis(System):
    """Celery as it comes.

    Args:
        broker_url, result_url: Its servers.
    """

    name = "celery_redis"

    def __init__(
        self, folder: Path, broker_url: str, result_url: str, *, pool: Sequence[str] = ("-P", "prefork", "-c", "2")
    ) -> None:
        self._app = _made()
        self._app.conf.update(broker_url=broker_url, result_backend=result_url)
        arguments = ["-A", "benchmarks.systems.celery_redis", "-b", broker_url, "--result-backend", result_url]
        self.node = Node(folder / f"{self.name}.log", *arguments, cwd=ROOT, environment=environment(), pool=pool)

    def hand_in(self, kind: str, runs: Sequence[str]) -> None:
        """Apply a canvas a run."""
        for run in runs:
            canvas(self._app, kind, run).apply_async()

    def close(self) -> None:
        """End it."""
        super().close()
        with suppress(AttributeError):  # not every backend listens
            self._app.backend.result_consumer.stop()
        self._app.close()


class CeleryDatabase(CeleryRedis):
    """Celery with its results in Postgres."""

    name = "celery_db"
    kinds = frozenset({"diamond", "noop"})
    share = 0.03  # a chord asks the database again and again
