ALTER TABLE stages
    -- Whether its message was sent behind another one of its goal that waits on the same queue.
    ADD COLUMN bulk boolean NOT NULL DEFAULT false,
    -- The semaphore of a concurrency key that it holds or waits for, how many may hold that at once, and whether it waits.
    ADD COLUMN limit_key text,
    ADD COLUMN limit_max integer,
    ADD COLUMN wants_key boolean NOT NULL DEFAULT false,
    -- The priority that it had before it was let go with the most urgent, since it had waited long.
    ADD COLUMN raised_from smallint;

-- A message is only overtaken by one that was no more urgent, and of its goal's first ones if it is such a one.
DROP INDEX stages_published;
CREATE INDEX stages_published ON stages (worker, tier, priority, bulk, published_at) WHERE state = 'published';
-- The oldest of a queue, whatever its priority. Over the route as one text, so that no search for a goal's own stages in
-- their order takes this one, which holds all goals.
CREATE INDEX stages_oldest ON stages ((worker || '.' || tier), ready_at) WHERE state = 'ready' AND not_before IS NULL;
-- Those that a process works on: what limits on concurrency count.
CREATE INDEX stages_running ON stages (tier, worker) WHERE state = 'claimed' AND node IS NOT NULL;
CREATE INDEX stages_key_held ON stages (limit_key) WHERE state = 'claimed' AND limit_key IS NOT NULL;
CREATE INDEX stages_key_wanted ON stages (limit_key, priority DESC, ready_at) WHERE state = 'ready' AND wants_key;
-- Throughput: what ended lately.
CREATE INDEX stages_ended ON stages (ended_at, worker, tier) WHERE state IN ('done', 'failed', 'dead');

-- When a goal that has more work on a queue last had its turn there.
CREATE TABLE turns (
    worker   text NOT NULL,
    tier     text NOT NULL,
    goal_id  uuid NOT NULL,
    at       timestamptz NOT NULL,
    PRIMARY KEY (worker, tier, goal_id)
);
CREATE INDEX turns_last ON turns (worker, tier, at DESC);

-- Rates that somebody set by hand; they win over the files until they are reset.
CREATE TABLE limit_overrides (
    name    text PRIMARY KEY,
    rate    text NOT NULL,
    set_by  text NOT NULL,
    set_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
