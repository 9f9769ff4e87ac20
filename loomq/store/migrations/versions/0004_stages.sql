-- As in 0003: a stage that is claimed anew has not taken its slot of a concurrency key yet.
CREATE OR REPLACE FUNCTION loomq_claim_3(p_goal uuid, p_name text, p_item integer, p_token uuid, p_node uuid, p_pid integer,
                              p_message text, p_lease_s double precision)
RETURNS TABLE (snapshot text, instruction text, context jsonb, canvas jsonb, task_id text, priority smallint,
               attempt integer, deliveries integer, timeout_s double precision, max_retries integer, inputs jsonb,
               worker text, tier text, payload jsonb, element jsonb, parent_goal uuid, parent_stage text,
               parent_item integer)
LANGUAGE plpgsql AS $$
DECLARE
    v stages%ROWTYPE;
    g goals%ROWTYPE;
BEGIN
    -- A claim lost with the server is fenced by its token, so it need not wait for the disk.
    PERFORM set_config('synchronous_commit', 'off', true);
    UPDATE stages s SET
        state = 'claimed', token = p_token, node = p_node, pid = p_pid, message_id = p_message,
        lease_until = clock_timestamp() + make_interval(secs => p_lease_s),
        deliveries = s.deliveries + CASE WHEN s.state = 'claimed' THEN 0 ELSE 1 END,
        started_at = clock_timestamp(), ended_at = NULL, not_before = NULL, reason = NULL,
        limit_key = NULL, wants_key = false
    WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = p_item
      AND (s.state IN ('ready', 'published') AND (s.not_before IS NULL OR s.not_before <= clock_timestamp())
           OR s.state = 'claimed' AND s.token = p_token)
    RETURNING s.* INTO v;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    SELECT x.* INTO g FROM goals x WHERE x.id = p_goal;
    IF g.paused_at IS NOT NULL OR g.state <> 'open' OR p_item >= 0 AND NOT EXISTS (
        SELECT 1 FROM stages s
        WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = -1 AND s.state = 'claimed' AND s.node IS NULL)
    THEN
        IF loomq_hold_back(v) THEN
            RETURN;
        END IF;
    END IF;
    PERFORM loomq_tell(p_goal, 'stage_started', p_name, p_item,
                       jsonb_build_object('attempt', v.attempt, 'delivery', v.deliveries));
    RETURN QUERY SELECT g.snapshot, g.instruction, g.context, g.canvas, g.task_id, g.priority, v.attempt, v.deliveries,
        v.timeout_s, v.max_retries,
        CASE WHEN v.reads = '{}' THEN '{}'::jsonb ELSE loomq_inputs(p_goal, v.reads) END,
        v.worker, v.tier, v.payload, v.element, g.parent_goal, g.parent_stage, g.parent_item;
END $$;

-- As in 0003, and whoever waited for the concurrency key that the stage held may go.
CREATE OR REPLACE FUNCTION loomq_complete_2(p_goal uuid, p_name text, p_item integer, p_token uuid, p_state text, p_output jsonb,
                                 p_model text, p_tokens jsonb, p_ms integer, p_reason text, p_room jsonb,
                                 p_carried text[], p_chord text, p_position integer)
RETURNS TABLE (outcome text, ready jsonb, goal_ended boolean, backlog boolean, chord_full boolean)
LANGUAGE plpgsql AS $$
DECLARE
    v stages%ROWTYPE;
    v_ready jsonb := '[]';
    v_ended boolean := false;
    v_full boolean := false;
BEGIN
    IF p_token IS NULL THEN  -- a stage in nobody's hands: the goal before it, as whoever ends the goal does
        PERFORM 1 FROM goals g WHERE g.id = p_goal FOR NO KEY UPDATE;
    END IF;
    UPDATE stages s SET
        state = p_state, output = p_output, model_used = p_model, token_usage = p_tokens, processing_time_ms = p_ms,
        reason = p_reason, ended_at = clock_timestamp(), lease_until = NULL, error = NULL
    WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = p_item
      AND (s.state = 'claimed' AND s.token = p_token OR p_token IS NULL AND s.state IN ('ready', 'published'))
    RETURNING s.* INTO v;
    IF NOT FOUND THEN
        SELECT s.* INTO v FROM stages s
        WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = p_item AND s.state = p_state AND s.token = p_token;
        IF NOT FOUND THEN
            RETURN QUERY SELECT 'fenced', v_ready, false, false, false;
            RETURN;
        END IF;
        SELECT coalesce(jsonb_agg(jsonb_build_object('name', c.name, 'state', c.state, 'bulk', c.bulk)), '[]')
        INTO v_ready FROM stages c
        WHERE c.goal_id = p_goal AND c.item = -1 AND c.name = ANY (v.children) AND c.state IN ('ready', 'published');
        RETURN QUERY SELECT 'repeated', v_ready,
            EXISTS (SELECT 1 FROM goals g WHERE g.id = p_goal AND g.state <> 'open'), false, false;
        RETURN;
    END IF;
    PERFORM loomq_tell(p_goal, CASE p_state WHEN 'skipped' THEN 'stage_skipped' ELSE 'stage_completed' END, p_name, p_item,
                       CASE WHEN p_reason IS NOT NULL THEN jsonb_build_object('reason', p_reason) END);
    SELECT a.ready, a.goal_ended INTO v_ready, v_ended FROM loomq_after(v, p_room, p_carried) AS a;
    PERFORM loomq_wake(v.limit_key) WHERE v.limit_key IS NOT NULL;
    IF p_chord IS NOT NULL THEN
        v_full := loomq_chord_part(p_chord, (SELECT g.task_id FROM goals g WHERE g.id = p_goal), p_position, 'SUCCESS',
                                   p_output);
    END IF;
    RETURN QUERY SELECT 'accepted', v_ready, v_ended,
        loomq_has_backlog(v.worker, v.tier), v_full;
END $$;

-- As in 0003, and which of the first stages stand behind another of the same goal.
CREATE OR REPLACE FUNCTION loomq_submit_2(p_goal jsonb, p_stages jsonb, p_key text, p_hash text, p_body jsonb)
RETURNS TABLE (outcome text, goal_id uuid) LANGUAGE plpgsql AS $$
DECLARE
    v_id uuid := (p_goal ->> 'id')::uuid;
    v_limited boolean := p_goal ->> 'max_concurrent' IS NOT NULL;
    v_parent goals%ROWTYPE;
    v_outcome text;
    v_goal uuid;
BEGIN
    SELECT s.outcome, s.goal_id INTO v_outcome, v_goal FROM loomq_submit(p_goal, p_stages, p_key, p_hash, p_body) AS s;
    IF v_outcome <> 'created' OR EXISTS (SELECT 1 FROM events e WHERE e.goal_id = v_id) THEN
        RETURN QUERY SELECT v_outcome, v_goal;
        RETURN;
    END IF;
    UPDATE goals g SET
        on_failure = coalesce(x.on_failure, 'fail'), timeout_s = x.timeout_s, max_concurrent = x.max_concurrent,
        admitted_at = CASE WHEN v_limited THEN NULL ELSE g.admitted_at END, parent_goal = x.parent_goal,
        parent_stage = x.parent_stage, parent_item = x.parent_item, rerun_of = x.rerun_of,
        is_newer = coalesce(x.is_newer, false) OR v_limited OR x.parent_goal IS NOT NULL OR g.session_id IS NOT NULL,
        deadline = CASE WHEN v_limited OR x.timeout_s IS NULL THEN g.deadline
                        ELSE least(g.deadline, clock_timestamp() + make_interval(secs => x.timeout_s)) END
    FROM jsonb_to_record(p_goal) AS x (
        on_failure text, timeout_s double precision, max_concurrent integer, parent_goal uuid, parent_stage text,
        parent_item integer, rerun_of uuid, is_newer boolean)
    WHERE g.id = v_id;
    UPDATE stages s SET
        needs = coalesce(x.needs, '{}'), fallback = x.fallback, bulk = coalesce(x.bulk, false),
        not_before = CASE WHEN v_limited AND s.state = 'ready' THEN loomq_never() ELSE s.not_before END,
        reason = CASE WHEN v_limited AND s.state = 'ready' THEN 'max_concurrent_goals' END
    FROM jsonb_to_recordset(p_stages) AS x (name text, needs text[], fallback jsonb, bulk boolean)
    WHERE s.goal_id = v_id AND s.item = -1 AND s.name = x.name
      AND (v_limited OR x.needs <> '{}' OR x.fallback IS NOT NULL OR x.bulk);
    IF p_goal ->> 'rerun_of' IS NOT NULL THEN
        -- What an earlier goal has finished is taken over, and paid for there.
        UPDATE stages s SET
            output = o.output, fan_out = o.fan_out, model_used = o.model_used, processing_time_ms = o.processing_time_ms,
            ready_at = o.ready_at, started_at = o.started_at, ended_at = o.ended_at,
            reason = CASE s.state WHEN 'done' THEN 'reused' ELSE o.reason END
        FROM stages o
        WHERE s.goal_id = v_id AND s.state IN ('done', 'skipped') AND o.goal_id = (p_goal ->> 'rerun_of')::uuid
          AND o.name = s.name AND o.item = -1 AND s.item = -1;
        INSERT INTO stages (goal_id, name, item, worker, tier, priority, state, waits_for, children, reads, timeout_s,
                            max_retries, attempt, deliveries, history, output, error, element, reason, ended_at,
                            dropped_at)
        -- An item that failed is a dead letter of the earlier goal, and none of this one.
        SELECT v_id, o.name, o.item, o.worker, o.tier, o.priority, o.state, 0, '{}', '{}', o.timeout_s, o.max_retries,
               o.attempt, 0, '[]', o.output, o.error, o.element, 'reused', o.ended_at,
               CASE WHEN o.state IN ('failed', 'dead') THEN clock_timestamp() END
        FROM stages o JOIN stages s ON s.goal_id = v_id AND s.name = o.name AND s.item = -1 AND s.state = 'done'
        WHERE o.goal_id = (p_goal ->> 'rerun_of')::uuid AND o.item >= 0;
    END IF;
    PERFORM loomq_tell(v_id, 'goal_submitted', NULL, NULL, NULL);
    IF p_goal ->> 'session_id' IS NOT NULL THEN
        INSERT INTO sessions (id, title) VALUES (
            (p_goal ->> 'session_id')::uuid,
            coalesce(nullif(left(btrim(regexp_replace(left(p_goal ->> 'instruction', 400), '\s+', ' ', 'g')), 80), ''),
                     p_goal ->> 'pipeline'))
        ON CONFLICT (id) DO UPDATE SET
            updated_at = clock_timestamp(), title = coalesce(nullif(sessions.title, ''), excluded.title);
        INSERT INTO session_messages (session_id, role, content, goal_id) VALUES (
            (p_goal ->> 'session_id')::uuid, 'user',
            coalesce(nullif(p_goal ->> 'instruction', ''), p_goal ->> 'context'), v_id)
        ON CONFLICT DO NOTHING;
    END IF;
    IF p_goal ->> 'parent_goal' IS NOT NULL THEN
        -- Held until this goal is there: whoever ends or pauses the parent must find it, or is seen here.
        SELECT g.* INTO v_parent FROM goals g WHERE g.id = (p_goal ->> 'parent_goal')::uuid FOR SHARE;
        IF v_parent.state <> 'open' THEN
            PERFORM loomq_end_part(v_id, v_parent.id);
        ELSIF v_parent.paused_at IS NOT NULL THEN
            PERFORM loomq_pause(v_id);
        END IF;
    END IF;
    IF v_limited THEN
        PERFORM loomq_admit(p_goal ->> 'pipeline');
    END IF;
    RETURN QUERY SELECT v_outcome, v_goal;
END $$;

-- As loomq_survey_2, with published stages by urgency (2 × priority, and 1 more for the first of its goal on a queue), and
-- whether somebody waits for a concurrency key.
CREATE FUNCTION loomq_survey_3(p_stale_s double precision)
RETURNS TABLE (uptime_s double precision, expired boolean, overdue boolean, chords boolean, calls boolean,
               ready jsonb, published jsonb, unheard boolean, waiting jsonb, keys boolean)
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    v_now timestamptz := clock_timestamp();
BEGIN
    RETURN QUERY
    WITH RECURSIVE due AS (
        (SELECT s.worker, s.tier FROM stages s WHERE s.state = 'ready' AND s.not_before IS NULL
         ORDER BY s.worker, s.tier LIMIT 1)
        UNION ALL
        SELECT n.* FROM due d CROSS JOIN LATERAL (
            SELECT s.worker, s.tier FROM stages s
            WHERE s.state = 'ready' AND s.not_before IS NULL AND (s.worker, s.tier) > (d.worker, d.tier)
            ORDER BY s.worker, s.tier LIMIT 1) AS n
    ), delayed AS (
        (SELECT s.worker, s.tier, s.not_before FROM stages s WHERE s.state = 'ready' AND s.not_before IS NOT NULL
         ORDER BY s.worker, s.tier, s.not_before LIMIT 1)
        UNION ALL
        SELECT n.* FROM delayed d CROSS JOIN LATERAL (
            SELECT s.worker, s.tier, s.not_before FROM stages s
            WHERE s.state = 'ready' AND s.not_before IS NOT NULL AND (s.worker, s.tier) > (d.worker, d.tier)
            ORDER BY s.worker, s.tier, s.not_before LIMIT 1) AS n
    ), sent AS (
        (SELECT s.worker, s.tier, s.priority, s.bulk, s.published_at FROM stages s WHERE s.state = 'published'
         ORDER BY s.worker, s.tier, s.priority, s.bulk, s.published_at LIMIT 1)
        UNION ALL
        SELECT n.* FROM sent d CROSS JOIN LATERAL (
            SELECT s.worker, s.tier, s.priority, s.bulk, s.published_at FROM stages s
            WHERE s.state = 'published' AND (s.worker, s.tier, s.priority, s.bulk) > (d.worker, d.tier, d.priority, d.bulk)
            ORDER BY s.worker, s.tier, s.priority, s.bulk, s.published_at LIMIT 1) AS n
    ), queueing AS (
        (SELECT g.pipeline FROM goals g WHERE g.state = 'open' AND g.admitted_at IS NULL ORDER BY g.pipeline LIMIT 1)
        UNION ALL
        SELECT n.* FROM queueing w CROSS JOIN LATERAL (
            SELECT g.pipeline FROM goals g WHERE g.state = 'open' AND g.admitted_at IS NULL AND g.pipeline > w.pipeline
            ORDER BY g.pipeline LIMIT 1) AS n
    )
    SELECT
        extract(epoch FROM v_now - pg_postmaster_start_time())::double precision,
        EXISTS (SELECT 1 FROM stages s WHERE s.state = 'claimed' AND s.lease_until < v_now),
        EXISTS (SELECT 1 FROM goals g WHERE g.state = 'open' AND g.deadline < v_now),
        EXISTS (SELECT 1 FROM chords c WHERE c.dispatched_at IS NULL AND c.body IS NOT NULL
                AND c.created_at < v_now - make_interval(secs => p_stale_s)),
        EXISTS (SELECT 1 FROM goals g WHERE g.follows AND g.state <> 'open'
                AND g.ended_at < v_now - make_interval(secs => p_stale_s)),
        (SELECT coalesce(jsonb_agg(DISTINCT jsonb_build_array(d.worker, d.tier)), '[]') FROM (
            SELECT due.worker, due.tier FROM due
            UNION ALL SELECT delayed.worker, delayed.tier FROM delayed WHERE delayed.not_before <= v_now) AS d),
        (SELECT coalesce(jsonb_agg(jsonb_build_array(d.worker, d.tier, 2 * d.priority + (NOT d.bulk)::integer,
            extract(epoch FROM v_now - d.published_at))), '[]') FROM sent d),
        EXISTS (SELECT 1 FROM loomq_unheard(1)),
        (SELECT coalesce(jsonb_agg(q.pipeline), '[]') FROM queueing q),
        EXISTS (SELECT 1 FROM stages s WHERE s.state = 'ready' AND s.wants_key);
END $$;
