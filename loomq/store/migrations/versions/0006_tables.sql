-- An orchestrator's goal, and a round of its tasks, which is a goal of its own.
ALTER TABLE goals DROP CONSTRAINT goals_kind_check;
ALTER TABLE goals ADD CONSTRAINT goals_kind_check CHECK (kind IN ('pipeline', 'worker', 'orchestrator', 'round'));

-- Of a round's task: its place in the plan. Such a stage starts when the window lets it, of which max_parallel are under
-- way; until then it waits, for no other stage.
ALTER TABLE stages ADD COLUMN place integer;
CREATE INDEX stages_in_window ON stages (goal_id) WHERE state = 'waiting' AND waits_for = 0 AND place IS NOT NULL;

-- The compressed memory of a long orchestration.
CREATE TABLE checkpoints (
    goal_id     uuid NOT NULL,
    number      integer NOT NULL,
    state       jsonb NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at  timestamptz NOT NULL,
    PRIMARY KEY (goal_id, number)
) PARTITION BY RANGE (goal_id);
CREATE TABLE checkpoints_default PARTITION OF checkpoints DEFAULT;

-- A goal is kept as long as another one has taken results over from it.
CREATE INDEX goals_reruns ON goals (rerun_of) WHERE rerun_of IS NOT NULL;
