-- Write one plain goal, which most are, with as few statements as it takes: as loomq_submit_4, which does all others and
-- answers a call that is made again.
CREATE FUNCTION loomq_submit_5(p_goals jsonb, p_bodies jsonb)
RETURNS TABLE (nr integer, outcome text, goal_id uuid) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v jsonb := p_goals -> 0;
    g jsonb := v -> 'goal';
    v_hash text := v ->> 'hash';
    v_key text := v ->> 'key';
    v_id uuid := (g ->> 'id')::uuid;
    v_timeout_s double precision := g ->> 'timeout_s';
    v_deadline timestamptz := g ->> 'deadline';
BEGIN
    IF jsonb_array_length(p_goals) > 1 OR g ->> 'max_concurrent' IS NOT NULL OR g ->> 'parent_goal' IS NOT NULL
       OR g ->> 'session_id' IS NOT NULL OR g ->> 'rerun_of' IS NOT NULL OR g ->> 'kind' = 'round'
    THEN
        RETURN QUERY SELECT s.* FROM loomq_submit_4(p_goals, p_bodies) AS s;
        RETURN;
    END IF;
    PERFORM pg_advisory_xact_lock_shared(hashtextextended('loomq spec ' || v_hash, 0));  -- as loomq_hold_spec
    IF p_bodies <> '{}' THEN
        INSERT INTO specs (hash, body) SELECT b.key, b.value FROM jsonb_each(p_bodies) AS b ON CONFLICT DO NOTHING;
    END IF;
    IF NOT EXISTS (SELECT 1 FROM specs s WHERE s.hash = v_hash) THEN
        RETURN QUERY SELECT 0, 'spec_missing', NULL::uuid;
        RETURN;
    END IF;
    IF v_key IS NOT NULL THEN
        INSERT INTO idempotency_keys (key, goal_id) VALUES (v_key, v_id) ON CONFLICT DO NOTHING;
        IF NOT FOUND THEN
            RETURN QUERY SELECT s.* FROM loomq_submit_4(p_goals, p_bodies) AS s;
            RETURN;
        END IF;
    END IF;
    IF v_timeout_s IS NOT NULL THEN
        v_deadline := least(v_deadline, clock_timestamp() + make_interval(secs => v_timeout_s));
    END IF;
    INSERT INTO goals (id, pipeline, kind, snapshot, instruction, context, priority, state, leaves_left, idempotency_key,
                       request_id, deadline, budget, task_id, canvas, follows, on_failure, timeout_s, is_newer)
    VALUES (v_id, g ->> 'pipeline', g ->> 'kind', v_hash, g ->> 'instruction', g -> 'context',
            (g ->> 'priority')::smallint, 'open', (g ->> 'leaves_left')::integer, v_key, g ->> 'request_id', v_deadline,
            nullif(g -> 'budget', 'null'), g ->> 'task_id', nullif(g -> 'canvas', 'null'),
            coalesce(g -> 'canvas' ?| ARRAY['chain', 'link', 'link_error'], false), coalesce(g ->> 'on_failure', 'fail'),
            v_timeout_s, coalesce((g ->> 'is_newer')::boolean, false))
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN  -- the same call again, whose first answer was lost
        RETURN QUERY SELECT s.* FROM loomq_submit_4(p_goals, p_bodies) AS s;
        RETURN;
    END IF;
    INSERT INTO stages (goal_id, name, item, worker, tier, priority, state, waits_for, children, reads, timeout_s,
                        max_retries, attempt, deliveries, history, not_before, ready_at, published_at, needs, fallback, bulk)
    -- What a stage cannot be is null here, which no column takes.
    SELECT v_id, s.name, -1, s.worker, s.tier, s.priority,
           CASE WHEN s.state IN ('waiting', 'ready', 'published', 'done', 'skipped') THEN s.state END, s.waits_for,
           s.children, s.reads, CASE WHEN s.timeout_s > 0 AND s.timeout_s <= 1e7 THEN s.timeout_s END, s.max_retries,
           1, 0, '[]', s.not_before, CASE WHEN s.state <> 'waiting' THEN clock_timestamp() END,
           CASE WHEN s.state = 'published' THEN clock_timestamp() END, coalesce(s.needs, '{}'), s.fallback,
           coalesce(s.bulk, false)
    FROM jsonb_to_recordset(v -> 'stages') AS s (
        name text, worker text, tier text, priority smallint, state text, waits_for integer, children text[],
        reads text[], timeout_s double precision, max_retries integer, not_before timestamptz, needs text[],
        fallback jsonb, bulk boolean);
    INSERT INTO events (goal_id, kind) VALUES (v_id, 'goal_submitted');
    RETURN QUERY SELECT 1, 'created', v_id;
END $$;
