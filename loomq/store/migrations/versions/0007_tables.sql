-- A schedule that beat has seen. Due times up to handled_until have a run, or were passed over.
CREATE TABLE schedules (
    key            text PRIMARY KEY,
    timing         text NOT NULL,        -- what says when it is due; another one begins anew
    anchor         timestamptz NOT NULL, -- where its intervals begin
    handled_until  timestamptz NOT NULL,
    is_live        boolean NOT NULL DEFAULT true, -- false of one that is disabled, or no longer in the files
    paused_at      timestamptz,
    paused_by      text,
    first_seen_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- What became of one due time. What is dispatched is written down before it is, so that whoever goes on after a death
-- dispatches the same; goals holds NULL for one that was refused.
CREATE TABLE schedule_runs (
    id          uuid NOT NULL UNIQUE DEFAULT gen_random_uuid(),
    key         text NOT NULL,
    due_at      timestamptz NOT NULL,
    cause       text NOT NULL CHECK (cause IN ('due', 'trigger', 'backfill')),
    state       text NOT NULL CHECK (state IN ('queued', 'firing', 'fired', 'skipped', 'failed')),
    reason      text,
    dispatch    jsonb NOT NULL,
    items       jsonb,                   -- NULL until expand_from has given them
    goals       uuid[] NOT NULL DEFAULT '{}',
    is_open     boolean NOT NULL DEFAULT true, -- false once it is known that all of its goals have ended
    held_until  timestamptz,             -- a command is at work at it until then
    decided_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at    timestamptz,
    PRIMARY KEY (key, due_at)
);
CREATE INDEX schedule_runs_open ON schedule_runs (due_at) WHERE state IN ('queued', 'firing');
CREATE INDEX schedule_runs_going_on ON schedule_runs (key) WHERE is_open;
CREATE INDEX schedule_runs_ended ON schedule_runs (decided_at) WHERE state NOT IN ('queued', 'firing');
