"""Raw Celery with Redis as broker and for results: the yardstick, which promises nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import Celery, chain, chord

from benchmarks import work
from benchmarks.harness import ROOT, Node, environment
from benchmarks.systems.base import LINKS, WIDTH, System

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# Not the current app: loomq's own lives in the same process while both are compared.
app = Celery("raw", set_as_current=False)
app.conf.update(
    task_serializer="json",
    result_serializer="json",
    accept_content=["json"],
    task_acks_late=False,
    worker_prefetch_multiplier=1,
)


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


def canvas(kind: str, run: str) -> Any:
    """Give the canvas of one run."""
    if kind == "noop":
        return step.si({"n": 0}, run)
    if kind == "chain":
        links = [step.s() for _ in range(LINKS - 2)]
        return chain(step.s({"n": 0}), *links, step.s(run))
    width = WIDTH if kind == "fan" else 2
    return chain(step.s({"n": 0}), chord([step.s() for _ in range(width)], join.s(run)))


class CeleryRedis(System):
    """Celery as it comes.

    Args:
        broker_url, result_url: Its servers.
    """

    name = "celery_redis"

    def __init__(
        self, folder: Path, broker_url: str, result_url: str, *, pool: Sequence[str] = ("-P", "prefork", "-c", "2")
    ) -> None:
        app.conf.update(broker_url=broker_url, result_backend=result_url)
        arguments = ["-A", "benchmarks.systems.celery_redis", "-b", broker_url, "--result-backend", result_url]
        self.node = Node(folder / f"{self.name}.log", *arguments, cwd=ROOT, environment=environment(), pool=pool)

    def hand_in(self, kind: str, runs: Sequence[str]) -> None:
        """Apply a canvas a run."""
        for run in runs:
            canvas(kind, run).apply_async()

    def close(self) -> None:
        """End it."""
        super().close()
        app.close()


class CeleryDatabase(CeleryRedis):
    """Celery with its results in Postgres."""

    name = "celery_db"
