-- What is to be told of a result besides its output: degraded modes, how the answer was read, rounds of tools.
ALTER TABLE stages ADD COLUMN notes jsonb;

-- Every call to a language model that was paid for, or may have been; with its reply for as long as it may be used again.
CREATE TABLE llm_calls (
    goal_id            uuid NOT NULL,
    id                 uuid NOT NULL,
    stage              text NOT NULL,
    item               integer NOT NULL,
    round              integer NOT NULL,
    worker             text NOT NULL,
    tier               text NOT NULL,
    provider           text,
    model              text,
    -- done · open (under way, or its process died: counted at the most that it may have cost) · cached (nothing was asked)
    state              text NOT NULL,
    request            text NOT NULL,
    prompt_tokens      bigint NOT NULL,
    completion_tokens  bigint NOT NULL,
    cached_tokens      bigint NOT NULL DEFAULT 0,
    -- US dollars; null if nobody knows the price.
    cost               double precision,
    took_ms            integer,
    reply              jsonb,
    at                 timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (goal_id, id)
) PARTITION BY RANGE (goal_id);
CREATE TABLE llm_calls_default PARTITION OF llm_calls DEFAULT;
CREATE INDEX llm_calls_stage ON llm_calls (goal_id, stage, item, round);
CREATE INDEX llm_calls_at ON llm_calls (at);

-- What tools gave in each round; a redelivery does not call them again.
CREATE TABLE tool_results (
    goal_id   uuid NOT NULL,
    stage     text NOT NULL,
    item      integer NOT NULL,
    round     integer NOT NULL,
    -- The hash of what was asked in the round, and of this call: ids of calls come again.
    call      text NOT NULL,
    message   jsonb NOT NULL,
    took_ms   integer NOT NULL,
    at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (goal_id, stage, item, round, call)
) PARTITION BY RANGE (goal_id);
CREATE TABLE tool_results_default PARTITION OF tool_results DEFAULT;

-- Answers that workers with a cache may be given again.
CREATE TABLE llm_cache (
    key         text PRIMARY KEY,
    worker      text NOT NULL,
    reply       jsonb NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at  timestamptz NOT NULL
);
CREATE INDEX llm_cache_expires ON llm_cache (expires_at);

-- Changes of silos that came with a result: written with it, made on the disk after it, in this order, once.
CREATE TABLE silo_updates (
    goal_id   uuid NOT NULL,
    stage     text NOT NULL,
    item      integer NOT NULL,
    nth       integer NOT NULL,
    seq       bigint GENERATED ALWAYS AS IDENTITY,
    folder    text NOT NULL,
    -- Whose worker brought it: other machines may have no such folder.
    host      text,
    silo      jsonb NOT NULL,
    asked     jsonb NOT NULL,
    state     text NOT NULL CHECK (state IN ('pending', 'applied', 'refused')),
    reason    text,
    at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at  timestamptz,
    PRIMARY KEY (goal_id, stage, item, nth)
);
CREATE INDEX silo_updates_pending ON silo_updates (folder, seq) WHERE state = 'pending';
