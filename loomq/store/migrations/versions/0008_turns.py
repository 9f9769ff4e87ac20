"""Fewer round trips: several ends and the next claims in one call, and many goals in one.

Revision ID: 0008
"""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the functions; those of before stay for nodes of that version."""
    here = Path(__file__).parent
    for part in ("turns", "submit"):
        # The driver's own cursor: the text holds colons and percent signs that are no parameters.
        op.get_bind().exec_driver_sql((here / f"0008_{part}.sql").read_text(encoding="utf-8").replace("%", "%%"))


def downgrade() -> None:
    """Refuse, as every revision before."""
    raise NotImplementedError("goals in flight may need this; restore a backup instead")
