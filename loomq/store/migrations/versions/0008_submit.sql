-- Write goals with their stages, all in one go, each once a key. p_goals: [{goal, stages, key, hash}], p_bodies: the
-- snapshots that may be new, by hash. As loomq_submit_3, which does those that are limited, part of another goal or of a
-- session, or take results over. One row a goal: created · known (the key is an older goal's, whose id it is); or one row
-- with spec_missing: call again with all bodies.
CREATE FUNCTION loomq_submit_4(p_goals jsonb, p_bodies jsonb)
RETURNS TABLE (nr integer, outcome text, goal_id uuid) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_known bigint[];
    e record;
BEGIN
    PERFORM loomq_hold_spec(h.hash) FROM (
        SELECT DISTINCT x.hash FROM jsonb_to_recordset(p_goals) AS x (hash text) ORDER BY 1) AS h;
    IF p_bodies <> '{}' THEN
        INSERT INTO specs (hash, body) SELECT b.key, b.value FROM jsonb_each(p_bodies) AS b ON CONFLICT DO NOTHING;
    END IF;
    IF EXISTS (SELECT 1 FROM jsonb_to_recordset(p_goals) AS x (hash text)
               WHERE NOT EXISTS (SELECT 1 FROM specs s WHERE s.hash = x.hash)) THEN
        RETURN QUERY SELECT 0, 'spec_missing', NULL::uuid;
        RETURN;
    END IF;
    WITH given AS MATERIALIZED (
        SELECT x.nr, x.value -> 'goal' AS goal, x.value -> 'stages' AS stages, x.value ->> 'key' AS key,
               x.value ->> 'hash' AS hash, (x.value -> 'goal' ->> 'id')::uuid AS id
        FROM jsonb_array_elements(p_goals) WITH ORDINALITY AS x (value, nr)
    ), plain AS MATERIALIZED (
        SELECT y.* FROM given y
        WHERE y.goal ->> 'max_concurrent' IS NULL AND y.goal ->> 'parent_goal' IS NULL AND y.goal ->> 'session_id' IS NULL
          AND y.goal ->> 'rerun_of' IS NULL AND y.goal ->> 'kind' <> 'round'
          -- The same call again, whose first answer was lost, is answered below.
          AND NOT EXISTS (SELECT 1 FROM goals g WHERE g.id = y.id)
    ), keyed AS (
        INSERT INTO idempotency_keys (key, goal_id) SELECT y.key, y.id FROM plain y WHERE y.key IS NOT NULL ORDER BY y.key
        ON CONFLICT DO NOTHING RETURNING goal_id
    ), fresh AS MATERIALIZED (
        SELECT y.* FROM plain y WHERE y.key IS NULL OR y.id IN (SELECT k.goal_id FROM keyed k)
    ), new_goals AS (
        INSERT INTO goals (id, pipeline, kind, snapshot, instruction, context, priority, state, leaves_left,
                           idempotency_key, request_id, deadline, budget, task_id, canvas, follows, on_failure, timeout_s,
                           is_newer)
        SELECT f.id, g.pipeline, g.kind, f.hash, g.instruction, g.context, g.priority, 'open', g.leaves_left, f.key,
               g.request_id, CASE WHEN g.timeout_s IS NULL THEN g.deadline ELSE
                   least(g.deadline, clock_timestamp() + make_interval(secs => g.timeout_s)) END,
               g.budget, g.task_id, g.canvas, coalesce(g.canvas ?| ARRAY['chain', 'link', 'link_error'], false),
               coalesce(g.on_failure, 'fail'), g.timeout_s, coalesce(g.is_newer, false)
        FROM fresh f CROSS JOIN LATERAL jsonb_to_record(f.goal) AS g (
            pipeline text, kind text, instruction text, context jsonb, priority smallint, leaves_left integer,
            request_id text, deadline timestamptz, budget jsonb, task_id text, canvas jsonb, on_failure text,
            timeout_s double precision, is_newer boolean)
    ), new_stages AS (
        INSERT INTO stages (goal_id, name, item, worker, tier, priority, state, waits_for, children, reads, timeout_s,
                            max_retries, attempt, deliveries, history, not_before, ready_at, published_at, needs, fallback,
                            bulk)
        SELECT f.id, s.name, -1, s.worker, s.tier, s.priority, s.state, s.waits_for, s.children, s.reads, s.timeout_s,
               s.max_retries, 1, 0, '[]', s.not_before,
               CASE WHEN s.state <> 'waiting' THEN clock_timestamp() END,
               CASE WHEN s.state = 'published' THEN clock_timestamp() END,
               coalesce(s.needs, '{}'), s.fallback, coalesce(s.bulk, false)
        FROM fresh f CROSS JOIN LATERAL jsonb_to_recordset(f.stages) AS s (
            name text, worker text, tier text, priority smallint, state text, waits_for integer, children text[],
            reads text[], timeout_s double precision, max_retries integer, not_before timestamptz, needs text[],
            fallback jsonb, bulk boolean)
    ), told AS (
        INSERT INTO events (goal_id, kind) SELECT f.id, 'goal_submitted' FROM fresh f
    )
    SELECT array_agg(y.nr ORDER BY y.nr) INTO v_known FROM given y WHERE y.id NOT IN (SELECT f.id FROM fresh f);
    RETURN QUERY SELECT x.nr::integer, 'created', (x.value -> 'goal' ->> 'id')::uuid
        FROM jsonb_array_elements(p_goals) WITH ORDINALITY AS x (value, nr)
        WHERE v_known IS NULL OR x.nr <> ALL (v_known);
    IF v_known IS NULL THEN
        RETURN;
    END IF;
    -- Keys of older goals, calls that are made again, and what takes more than rows of its own.
    FOR e IN
        SELECT x.nr, x.value AS v FROM jsonb_array_elements(p_goals) WITH ORDINALITY AS x (value, nr)
        WHERE x.nr = ANY (v_known) ORDER BY x.nr
    LOOP
        RETURN QUERY SELECT e.nr::integer, s.outcome, s.goal_id
            FROM loomq_submit_3(e.v -> 'goal', e.v -> 'stages', e.v ->> 'key', e.v ->> 'hash', NULL) AS s;
    END LOOP;
END $$;
