-- The first schema. Tables that grow are partitioned by id (UUIDv7, so by time); until `loomq prune` makes
-- monthly partitions, one default partition holds everything.

CREATE TABLE specs (
    hash        text PRIMARY KEY,
    body        jsonb NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE goals (
    id               uuid NOT NULL PRIMARY KEY,
    pipeline         text NOT NULL,
    kind             text NOT NULL CHECK (kind IN ('pipeline', 'worker')),
    snapshot         text NOT NULL,
    instruction      text NOT NULL,
    context          jsonb NOT NULL,
    priority         smallint NOT NULL,
    state            text NOT NULL CHECK (state IN ('open', 'done', 'failed', 'cancelled')),
    leaves_left      integer NOT NULL,
    idempotency_key  text,
    request_id       text,
    session_id       uuid,
    deadline         timestamptz,
    budget           jsonb,
    task_id          text,
    canvas           jsonb,
    follows          boolean NOT NULL,
    error            jsonb,
    created_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at         timestamptz
) PARTITION BY RANGE (id);
CREATE TABLE goals_default PARTITION OF goals DEFAULT;

-- Uniqueness cannot span partitions, so the keys have a table of their own.
CREATE TABLE idempotency_keys (
    key         text PRIMARY KEY,
    goal_id     uuid NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE stages (
    goal_id             uuid NOT NULL,
    name                text NOT NULL,
    item                integer NOT NULL,
    worker              text NOT NULL,
    tier                text NOT NULL,
    priority            smallint NOT NULL,
    state               text NOT NULL CHECK (state IN (
                            'waiting', 'ready', 'published', 'claimed', 'done', 'failed', 'skipped', 'cancelled', 'dead')),
    waits_for           integer NOT NULL,
    children            text[] NOT NULL,
    reads               text[] NOT NULL,
    timeout_s           double precision NOT NULL CHECK (timeout_s > 0 AND timeout_s <= 1e7),
    max_retries         integer NOT NULL,
    attempt             integer NOT NULL,
    deliveries          integer NOT NULL,
    token               uuid,
    lease_until         timestamptz,
    node                uuid,
    pid                 integer,
    message_id          text,
    not_before          timestamptz,
    reason              text,
    ready_at            timestamptz,
    published_at        timestamptz,
    started_at          timestamptz,
    ended_at            timestamptz,
    output              jsonb,
    error               jsonb,
    model_used          text,
    token_usage         jsonb,
    processing_time_ms  integer,
    history             jsonb NOT NULL,
    PRIMARY KEY (goal_id, name, item)
) PARTITION BY RANGE (goal_id);
CREATE TABLE stages_default PARTITION OF stages DEFAULT;

-- Partial, so that finished stages cost them nothing.
CREATE INDEX stages_ready ON stages (worker, tier, priority DESC, ready_at) WHERE state = 'ready';
CREATE INDEX stages_published ON stages (worker, tier, published_at) WHERE state = 'published';
CREATE INDEX stages_claimed ON stages (node, lease_until) WHERE state = 'claimed';
CREATE INDEX goals_open ON goals (id) WHERE state = 'open';
-- Raw calls whose continuation (the rest of a chain, links) is not known to have been sent.
CREATE INDEX goals_follows ON goals (ended_at) WHERE follows;

CREATE TABLE nodes (
    id          uuid PRIMARY KEY,
    hostname    text NOT NULL,
    pid         integer NOT NULL,
    pool        text NOT NULL,
    slots       integer NOT NULL,
    queues      text[] NOT NULL,
    version     text NOT NULL,
    started_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_at     timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Leadership on server time; an advisory lock would outlive a stopped leader.
CREATE TABLE leases (
    name    text PRIMARY KEY,
    holder  uuid NOT NULL,
    until   timestamptz NOT NULL,
    memory  jsonb NOT NULL DEFAULT '{}'
);

-- Celery's own side: a user's chords over our tasks, and results of tasks that are not loomq workers.
CREATE TABLE chords (
    group_id       text PRIMARY KEY,
    size           integer,
    body           jsonb,
    created_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    dispatched_at  timestamptz
);

CREATE TABLE chord_parts (
    group_id  text NOT NULL,
    task_id   text NOT NULL,
    position  integer NOT NULL,
    state     text NOT NULL,
    result    jsonb,
    PRIMARY KEY (group_id, task_id)
);

CREATE TABLE task_results (
    task_id     text PRIMARY KEY,
    state       text NOT NULL,
    body        jsonb NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
