"""The tables of what models were asked and said, of the silos that they change, and of checkpoints."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Double, Identity, Index, Integer, Table, Text, Uuid
from sqlalchemy.dialects.postgresql import JSONB

from loomq.store.tables import metadata, moment

llm_calls = Table(
    "llm_calls",
    metadata,
    Column("goal_id", Uuid, primary_key=True),
    Column("id", Uuid, primary_key=True),
    Column("stage", Text, nullable=False),
    Column("item", Integer, nullable=False),
    Column("round", Integer, nullable=False),
    Column("worker", Text, nullable=False),
    Column("tier", Text, nullable=False),
    Column("provider", Text),
    Column("model", Text),
    Column("state", Text, nullable=False),
    Column("request", Text, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("cost", Double),
    Column("took_ms", Integer),
    Column("reply", JSONB),
    moment("at", nullable=False),
    postgresql_partition_by="RANGE (goal_id)",
)
Index("llm_calls_stage", llm_calls.c.goal_id, llm_calls.c.stage, llm_calls.c.item, llm_calls.c.round)
Index("llm_calls_at", llm_calls.c.at)

tool_results = Table(
    "tool_results",
    metadata,
    Column("goal_id", Uuid, primary_key=True),
    Column("stage", Text, primary_key=True),
    Column("item", Integer, primary_key=True, autoincrement=False),
    Column("round", Integer, primary_key=True, autoincrement=False),
    Column("call", Text, primary_key=True),
    Column("message", JSONB, nullable=False),
    Column("took_ms", Integer, nullable=False),
    moment("at", nullable=False),
    postgresql_partition_by="RANGE (goal_id)",
)

llm_cache = Table(
    "llm_cache",
    metadata,
    Column("key", Text, primary_key=True),
    Column("worker", Text, nullable=False),
    Column("reply", JSONB, nullable=False),
    moment("created_at", nullable=False),
    moment("expires_at", nullable=False),
)
Index("llm_cache_expires", llm_cache.c.expires_at)

silo_updates = Table(
    "silo_updates",
    metadata,
    Column("goal_id", Uuid, primary_key=True),
    Column("stage", Text, primary_key=True),
    Column("item", Integer, primary_key=True, autoincrement=False),
    Column("nth", Integer, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, Identity(always=True), nullable=False),
    Column("folder", Text, nullable=False),
    Column("host", Text),
    Column("silo", JSONB, nullable=False),
    Column("asked", JSONB, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text),
    moment("at", nullable=False),
    moment("ended_at"),
)
Index(
    "silo_updates_pending",
    silo_updates.c.folder,
    silo_updates.c.seq,
    postgresql_where=silo_updates.c.state == "pending",
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("goal_id", Uuid, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("state", JSONB, nullable=False),
    moment("created_at", nullable=False),
    moment("expires_at", nullable=False),
    postgresql_partition_by="RANGE (goal_id)",
)
