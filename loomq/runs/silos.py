"""Changes of silos: made on the disk when their result is recorded, one after the other, by whoever is there."""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING, Any

from loomq.knowledge.load import located
from loomq.knowledge.spec import FolderSilo
from loomq.knowledge.updates import Update, apply_update
from loomq.store import silos as store

if TYPE_CHECKING:
    from pathlib import Path

    from loomq.store.engine import Database

logger = logging.getLogger(__name__)

_PATIENCE_S = 3600.0
_AGE_S = 2.0  # whoever recorded the result is given so long to make them himself


class Silos:
    """The folders that workers write.

    Args:
        project: What their paths are relative to.
    """

    def __init__(self, database: Database, project: Path) -> None:
        self._database = database
        self._project = project

    def settle(self, folder: str) -> int:
        """Make the changes that a folder waits for; what the disk does not take now waits, for an hour at most.

        Returns:
            How many were made or refused.

        Raises:
            DatabaseUnavailableError: Postgres does not answer.
        """
        if not store.has_pending(self._database, folder):
            return 0
        count = 0
        try:
            while store.apply_next(self._database, folder, self._apply):
                count += 1
        except OSError as error:
            logger.warning("the changes of silo folder %s wait: %s", folder, error)
            reason = f"the disk did not take it: {error.strerror or error}"
            count += store.give_up(self._database, folder, reason, _PATIENCE_S)
        return count

    def _apply(self, silo: dict[str, Any], asked: dict[str, Any]) -> str | None:
        return apply_update(self._project, FolderSilo.model_validate(silo), Update(**asked))

    def settle_waiting(self) -> int:
        """Make the changes that were left behind, in folders that are here, or that this machine was to make.

        Raises:
            DatabaseUnavailableError: Postgres does not answer.
        """
        found = store.waiting(self._database, _AGE_S)
        here = socket.gethostname()
        return sum(self.settle(folder) for folder, hosts in found.items() if here in hosts or self._is_here(folder))

    def _is_here(self, folder: str) -> bool:
        try:
            return located(self._project, folder).is_dir()
        except OSError:  # a home that this machine does not have
            return False
