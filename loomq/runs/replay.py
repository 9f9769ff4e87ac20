"""Set dead letters going again: first the rows, in one transaction a goal, then the messages."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from loomq.errors import EnvironmentNotReadyError, NotFoundError, PipelineValidationError
from loomq.ids import uuid7
from loomq.inline import inline_json
from loomq.store import letters

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from loomq.runs.publish import Publisher
    from loomq.runs.snapshot import PlanCache
    from loomq.settings import Settings
    from loomq.store.engine import Database
    from loomq.store.letters import Verdict
    from loomq.store.stages import StageKey

logger = logging.getLogger(__name__)

_GOALS_A_ROUND = 100  # of a bulk replay, between two looks at the queues


class Replayer:
    """Replay and edit dead letters.

    A process that dies between rows and messages loses nothing: the sweeper finds ready rows.
    """

    def __init__(self, settings: Settings, database: Database, plans: PlanCache, publisher: Publisher) -> None:
        self._settings = settings
        self._database = database
        self._plans = plans
        self._publisher = publisher

    def replay(
        self,
        key: StageKey,
        *,
        actor: str,
        payload: dict[str, Any] | None = None,
        before: Mapping[str, Any] | None = None,
    ) -> Verdict:
        """Replay a dead letter, and with it all that failed in its goal.

        Args:
            actor: Who asks, for the audit trail.
            payload: An input in place of the present one.
            before: What the audit trail tells of the present one, if nobody has edited it yet.

        Raises:
            PipelineValidationError: The payload breaks the contract; nothing was changed.
            InlineValueError: The payload is not JSON, or too large; nothing was changed.
        """
        written = None if payload is None else self._written(key, payload)
        verdict = letters.replay(self._database, key, actor=actor, request=uuid7(), payload=written, before=before)
        self._publish(verdict.routes)
        return verdict

    def replay_all(self, keys: Iterable[StageKey], *, actor: str) -> Iterator[tuple[StageKey, Verdict]]:
        """Replay one dead letter after the other, each of another goal, and tell of each when it is done."""
        routes: set[tuple[str, str]] = set()
        for number, key in enumerate(keys, 1):
            verdict = letters.replay(self._database, key, actor=actor, request=uuid7())
            routes.update(verdict.routes)
            if number % _GOALS_A_ROUND == 0:
                self._publish(routes)
                routes = set()
            yield key, verdict
        self._publish(routes)

    def edit(
        self, key: StageKey, payload: dict[str, Any], *, actor: str, before: Mapping[str, Any] | None = None
    ) -> Verdict:
        """Put another input in place of a dead letter's, to be used when it is replayed; as ``replay`` otherwise."""
        written = self._written(key, payload)
        return letters.edit(self._database, key, actor=actor, request=uuid7(), payload=written, before=before)

    def _written(self, key: StageKey, payload: dict[str, Any]) -> str:
        """Check an input as the stage's worker will, by the contract that the goal was frozen with."""
        what = f"the new input of stage {key.name}"
        written = inline_json(payload, what=what, limit_bytes=self._settings.max_inline_bytes)
        row = letters.get(self._database, key)
        if row is None:
            raise NotFoundError(f"goal {key.goal_id} has no such stage any more", hint="list: loomq dead-letter list")
        stage = self._plans.get(row.snapshot).stages[key.name]
        if stage.each is not None and key.item < 0:
            raise PipelineValidationError(
                f"stage {key.name} has no input of its own: it runs once an item",
                stage=key.name,
                hint=f"edit an item that failed: loomq dead-letter list --goal {key.goal_id}",
            )
        contract = stage.inputs
        faults = contract.errors(payload) if contract else []
        if faults:
            raise PipelineValidationError(
                f"{what} breaks the contract of worker {row.worker}: {'; '.join(faults)}",
                stage=key.name,
                hint="nothing was changed; the goal keeps the contract that it was submitted with",
            )
        return written

    def _publish(self, routes: Iterable[tuple[str, str]]) -> None:
        try:
            for worker, tier in routes:
                self._publisher.top_up(worker, tier)
        except EnvironmentNotReadyError as error:
            logger.warning("%s; what was replayed is sent by the sweeper", error.message)
