"""Fewer statements for a plain goal, no CHECKs on what every stage writes, and slots that fetch by themselves.

Revision ID: 0009
"""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the functions; those of before stay for nodes of that version."""
    here = Path(__file__).parent
    for part in ("checks", "submit", "take", "goals", "turns"):
        # The driver's own cursor: the text holds colons and percent signs that are no parameters.
        op.get_bind().exec_driver_sql((here / f"0009_{part}.sql").read_text(encoding="utf-8").replace("%", "%%"))


def downgrade() -> None:
    """Refuse, as every revision before."""
    raise NotImplementedError("goals in flight may need this; restore a backup instead")
