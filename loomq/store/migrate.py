"""Bring a database to this version's schema."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import text

if TYPE_CHECKING:
    from alembic.config import Config

    from loomq.store.engine import Database

HEAD = "0001"  # this version's newest revision, spelled out since asking Alembic costs half a second
_LOCK = 0x6C6F6F6D71  # "loomq", the advisory lock of whoever migrates


def config() -> Config:
    """Give Alembic's configuration of our migrations."""
    from alembic.config import Config

    found = Config()
    found.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return found


def current(database: Database) -> str | None:
    """Name the revision that a database is at, or ``None`` if it is empty."""
    with database.begin() as connection:
        if connection.scalar(text("SELECT to_regclass('alembic_version')")) is None:
            return None
        found: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
        return found


def upgrade(database: Database) -> str:
    """Migrate to the newest revision; several processes may ask at once, and one of them does it.

    Returns:
        The revision reached.
    """
    from alembic import command

    alembic = config()
    with database.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        alembic.attributes["connection"] = connection
        command.upgrade(alembic, "head")
    return HEAD
