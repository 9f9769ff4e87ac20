"""Run Alembic on the connection that ``store.migrate`` opened."""

from __future__ import annotations

from alembic import context

from loomq.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
