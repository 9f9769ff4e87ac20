"""Schedules: up to when each is served, and what became of each due time.

Revision ID: 0007
"""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables; nothing of before changes."""
    text = (Path(__file__).parent / "0007_tables.sql").read_text(encoding="utf-8")
    # The driver's own cursor: the text holds colons and percent signs that are no parameters.
    op.get_bind().exec_driver_sql(text.replace("%", "%%"))


def downgrade() -> None:
    """Refuse: due times that were served would be served again."""
    raise NotImplementedError("what was served would be served again; restore a backup instead")
