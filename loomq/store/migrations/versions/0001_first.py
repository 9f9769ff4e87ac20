"""The first schema: goals, stages, specs, nodes, leases and Celery's own tables, with the functions that decide.

Revision ID: 0001
"""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables, then the functions over them."""
    here = Path(__file__).parent
    for part in ("0001_tables.sql", "0001_functions.sql"):
        # The driver's own cursor: the text holds colons and percent signs that are no parameters.
        op.get_bind().exec_driver_sql((here / part).read_text(encoding="utf-8").replace("%", "%%"))


def downgrade() -> None:
    """Refuse: the rows are the goals, and there is no schema before this one."""
    raise NotImplementedError("the first schema has none before it; drop the database instead")
