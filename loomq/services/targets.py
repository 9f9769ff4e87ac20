"""What a name that a user typed stands for: a pipeline, an orchestrator or a worker of the project."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from loomq.errors import UnknownNameError
from loomq.messages import ModelTier
from loomq.problems import listed, suggest

if TYPE_CHECKING:
    from loomq.loom import Loom

Kind = Literal["pipeline", "orchestrator", "worker"]


def kind_of(loom: Loom, name: str, *, worker: bool = False) -> Kind:
    """Say what a name stands for; a pipeline wins over a worker of the same name.

    Args:
        worker: Take it for a worker in any case.

    Raises:
        ConfigError: The project's files have errors.
        UnknownNameError: Nothing is called so.
    """
    known = loom.catalog
    if name in known.pipelines and not worker:
        return "pipeline"
    if name in known.workers:
        return "worker"
    if name in known.orchestrators and not worker:
        return "orchestrator"
    names = sorted({*known.workers} if worker else {*known.pipelines, *known.workers, *known.orchestrators})
    what = "worker" if worker else "pipeline, orchestrator or worker"
    hint = suggest(name, names) or f"{loom.settings.project} has {listed(names) if names else 'none'}"
    raise UnknownNameError(f'no {what} is called "{name}"', hint=hint)


def known_queues(loom: Loom) -> set[str]:
    """Name every queue that a worker of this project may be served from."""
    doers = (*loom.catalog.workers, *loom.catalog.orchestrators)
    return {loom.router.queue(name, tier) for name in doers for tier in ModelTier}
