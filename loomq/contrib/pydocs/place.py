"""Where the demo keeps what is too big for a stage's output: a workspace of files, and the project's Postgres."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg

from loomq.embedded.client import services_for
from loomq.errors import BackendError, TransientBackendError
from loomq.settings import Settings
from loomq.workspace import WorkspaceManager

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECT_TIMEOUT_S = 5


def workspace() -> WorkspaceManager:
    """Open the folder of the files, which every node of a cluster must share: ``workspace`` in ``LOOMQ_DATA``."""
    return WorkspaceManager(services_for(Settings.load()).data_dir / "workspace")


def database_url() -> str:
    """Give the project's Postgres URL as libpq takes it."""
    settings = Settings.load()
    url = settings.database_url or services_for(settings).database_url
    return url.replace("postgresql+psycopg://", "postgresql://", 1)


@contextmanager
def connection() -> Iterator[psycopg.Connection]:
    """Connect to Postgres for one transaction, committed when the block ends without an error.

    Raises:
        TransientBackendError: Postgres is out of reach, or broke off.
        BackendError: It refused a statement.
    """
    try:
        with psycopg.connect(database_url(), connect_timeout=CONNECT_TIMEOUT_S, application_name="pydocs") as opened:
            yield opened
    except psycopg.OperationalError as error:
        raise TransientBackendError(f"Postgres did not answer: {error}") from error
    except psycopg.Error as error:
        raise BackendError(f"Postgres refused a statement: {error}") from error
