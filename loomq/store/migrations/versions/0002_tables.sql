-- An input that somebody has edited, in place of what the stage's mapping gives; and the day a dead letter was dropped.
ALTER TABLE stages ADD COLUMN payload jsonb, ADD COLUMN dropped_at timestamptz;

CREATE INDEX stages_dead ON stages (ended_at) WHERE state IN ('failed', 'dead') AND dropped_at IS NULL;

-- Messages that no task could be made of, with their bytes.
CREATE TABLE malformed (
    id          uuid PRIMARY KEY,
    queue       text NOT NULL,
    reason      text NOT NULL,
    body        bytea NOT NULL,
    properties  jsonb NOT NULL,
    node        uuid,
    seen_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    dropped_at  timestamptz
);
CREATE INDEX malformed_seen ON malformed (seen_at) WHERE dropped_at IS NULL;

-- Who did what to which dead letter, and when. Never updated.
CREATE TABLE audit (
    id        uuid PRIMARY KEY,
    at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor     text NOT NULL,
    action    text NOT NULL,
    goal_id   uuid,
    stage     text,
    item      integer,
    message   uuid,
    detail    jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX audit_goal ON audit (goal_id) WHERE goal_id IS NOT NULL;
