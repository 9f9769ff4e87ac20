ALTER TABLE stages
    -- Stages whose output the mapping cannot do without.
    ADD COLUMN needs text[] NOT NULL DEFAULT '{}',
    -- What happens when the stage has failed for good: {"output": …}, or another worker with its limits.
    ADD COLUMN fallback jsonb,
    -- A stage that fanned out: how many items it has, how many may run at once, the last one let go, and whether it
    -- goes on when one has failed.
    ADD COLUMN fan_out integer,
    ADD COLUMN max_parallel integer,
    ADD COLUMN released integer,
    ADD COLUMN tolerant boolean NOT NULL DEFAULT false,
    -- One item: the element of the list that it stands for.
    ADD COLUMN element jsonb;

ALTER TABLE goals
    ADD COLUMN on_failure text NOT NULL DEFAULT 'fail' CHECK (on_failure IN ('fail', 'continue_partial')),
    -- Seconds from admission to the deadline.
    ADD COLUMN timeout_s double precision,
    -- How many goals of this pipeline may be under way; NULL is any number.
    ADD COLUMN max_concurrent integer,
    ADD COLUMN admitted_at timestamptz DEFAULT now(),
    ADD COLUMN paused_at timestamptz,
    -- The stage that this goal is the work of.
    ADD COLUMN parent_goal uuid,
    ADD COLUMN parent_stage text,
    ADD COLUMN parent_item integer,
    ADD COLUMN rerun_of uuid,
    -- Whether nodes of before this schema would run it wrongly; they leave its stages alone.
    ADD COLUMN is_newer boolean NOT NULL DEFAULT false,
    -- Until when somebody wants to be woken for each event.
    ADD COLUMN watched_until timestamptz;
ALTER TABLE goals ALTER COLUMN admitted_at SET DEFAULT clock_timestamp();

CREATE INDEX goals_waiting ON goals (pipeline, priority DESC, id) WHERE state = 'open' AND admitted_at IS NULL;
CREATE INDEX goals_limited ON goals (pipeline, id) WHERE state = 'open' AND max_concurrent IS NOT NULL;
CREATE INDEX goals_admitted ON goals (pipeline)
    WHERE state = 'open' AND max_concurrent IS NOT NULL AND admitted_at IS NOT NULL;
CREATE INDEX goals_children ON goals (parent_goal) WHERE parent_goal IS NOT NULL;
CREATE INDEX goals_session ON goals (session_id, id) WHERE session_id IS NOT NULL;

-- What happened, in order. A reader takes only what is older than every transaction that still runs, by (xid, seq): so
-- nothing can become visible behind it.
CREATE SEQUENCE events_seq;
CREATE TABLE events (
    goal_id  uuid NOT NULL,
    xid      bigint NOT NULL DEFAULT pg_current_xact_id()::text::bigint,
    seq      bigint NOT NULL DEFAULT nextval('events_seq'),
    at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    kind     text NOT NULL,
    stage    text,
    item     integer,
    detail   jsonb,
    PRIMARY KEY (goal_id, xid, seq)
) PARTITION BY RANGE (goal_id);
CREATE TABLE events_default PARTITION OF events DEFAULT;

CREATE TABLE sessions (
    id          uuid PRIMARY KEY,
    title       text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX sessions_updated ON sessions (updated_at DESC);

CREATE TABLE session_messages (
    session_id  uuid NOT NULL REFERENCES sessions ON DELETE CASCADE,
    seq         bigint GENERATED ALWAYS AS IDENTITY,
    role        text NOT NULL CHECK (role IN ('user', 'assistant')),
    content     text NOT NULL,
    goal_id     uuid,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- What a tsvector surely takes, for a message must not keep its goal from ending.
    words       tsvector NOT NULL GENERATED ALWAYS AS (to_tsvector('simple', left(content, 100000))) STORED,
    PRIMARY KEY (session_id, seq)
);
CREATE UNIQUE INDEX session_messages_goal ON session_messages (goal_id, role) WHERE goal_id IS NOT NULL;
CREATE INDEX session_messages_words ON session_messages USING gin (words);
