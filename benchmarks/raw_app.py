"""The yardstick: Celery as it comes, with Redis as broker and for results, doing the same work with nothing kept.

Its servers are named on the worker's command line, and with ``connect`` where tasks are sent from.
"""

from __future__ import annotations

from celery import Celery

# Not the current app: loomq's own lives in the same process while both are compared.
app = Celery("raw", set_as_current=False)
app.conf.update(
    task_serializer="json",
    result_serializer="json",
    accept_content=["json"],
    task_acks_late=False,
    worker_prefetch_multiplier=1,
)


def connect(broker_url: str, result_url: str) -> None:
    """Name the servers that this process sends to and reads results from."""
    app.conf.update(broker_url=broker_url, result_backend=result_url)


def disconnect() -> None:
    """Let go of the servers before they stop."""
    app.backend.result_consumer.stop()
    app.close()


@app.task  # type: ignore[untyped-decorator]
def step(payload: dict[str, int]) -> dict[str, int]:
    """Add one."""
    return {"n": payload["n"] + 1}


@app.task  # type: ignore[untyped-decorator]
def join(sides: list[dict[str, int]]) -> dict[str, int]:
    """Add up both sides."""
    return {"n": sum(side["n"] for side in sides)}
