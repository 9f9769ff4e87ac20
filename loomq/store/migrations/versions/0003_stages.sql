-- When a stage is due that somebody has put away; Postgres' own infinity is no date to its clients.
CREATE FUNCTION loomq_never() RETURNS timestamptz LANGUAGE sql IMMUTABLE AS $$ SELECT timestamptz '9000-01-01 00:00+00' $$;

-- Tell of something that happened to a goal, and wake whoever watches it.
CREATE FUNCTION loomq_tell(p_goal uuid, p_kind text, p_stage text, p_item integer, p_detail jsonb)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO events (goal_id, kind, stage, item, detail) VALUES (p_goal, p_kind, p_stage, p_item, p_detail);
    -- Only for those who watch: a notification puts the commits of all writers in one queue.
    IF EXISTS (SELECT 1 FROM goals g WHERE g.id = p_goal AND g.watched_until > clock_timestamp()) THEN
        PERFORM pg_notify('loomq_ended', p_goal::text || ' event');
    END IF;
END $$;

-- What a stage that fanned out has given: its items' outputs in order, null for one that has none, and their errors.
CREATE FUNCTION loomq_items(p_goal uuid, p_name text) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object(
        'items', coalesce(jsonb_agg(s.output ORDER BY s.item), '[]'),
        'errors', coalesce(jsonb_agg(jsonb_build_object('index', s.item, 'error', s.error) ORDER BY s.item)
                           FILTER (WHERE s.state IN ('failed', 'dead')), '[]'))
    FROM stages s WHERE s.goal_id = p_goal AND s.name = p_name AND s.item >= 0
$$;

-- The finished stages of these, as mappings and conditions see them.
CREATE FUNCTION loomq_inputs(p_goal uuid, p_reads text[]) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT coalesce(jsonb_object_agg(r.name, jsonb_build_object(
        'output', CASE WHEN r.fan_out IS NULL THEN r.output ELSE loomq_items(p_goal, r.name) END,
        'model_used', r.model_used, 'processing_time_ms', r.processing_time_ms,
        'started_at', r.started_at, 'ended_at', r.ended_at,
        'wall_time_ms', round(extract(epoch FROM r.ended_at - r.started_at) * 1000)::integer)), '{}')
    FROM stages r WHERE r.goal_id = p_goal AND r.item = -1 AND r.name = ANY (p_reads) AND r.state = 'done'
$$;

-- Put a stage away again that was claimed and must not start: its goal is paused or has ended, or it is an item of a stage
-- that has. False if it may start after all.
CREATE FUNCTION loomq_hold_back(p stages) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    g goals%ROWTYPE;
    v stages%ROWTYPE;
    v_over text;
BEGIN
    -- Locked, so that what was seen still holds: whoever resumes the goal, or expands the stage, does not see this row yet.
    SELECT x.* INTO g FROM goals x WHERE x.id = p.goal_id FOR SHARE;
    v_over := CASE WHEN g.state <> 'open' THEN 'goal ' || g.state END;
    IF p.item >= 0 THEN
        SELECT s.* INTO v FROM stages s WHERE s.goal_id = p.goal_id AND s.name = p.name AND s.item = -1 FOR UPDATE;
        v_over := coalesce(v_over, CASE WHEN v.state <> 'claimed' OR v.node IS NOT NULL THEN 'stage ' || v.state END);
    END IF;
    IF v_over IS NULL AND g.paused_at IS NULL THEN
        RETURN false;
    END IF;
    UPDATE stages s SET
        state = CASE WHEN v_over IS NULL THEN 'ready' ELSE 'cancelled' END, token = NULL, lease_until = NULL,
        deliveries = s.deliveries - 1, published_at = NULL, not_before = CASE WHEN v_over IS NULL THEN loomq_never() END,
        reason = coalesce(v_over, 'paused'), started_at = NULL,
        ended_at = CASE WHEN v_over IS NOT NULL THEN clock_timestamp() END
    WHERE s.goal_id = p.goal_id AND s.name = p.name AND s.item = p.item;
    PERFORM loomq_tell(p.goal_id, 'stage_cancelled', p.name, p.item, jsonb_build_object('reason', v_over))
    WHERE v_over IS NOT NULL;
    RETURN true;
END $$;

-- As loomq_claim_2, and with the row's worker (a fallback's, maybe), the item's element and the goal's parent.
CREATE FUNCTION loomq_claim_3(p_goal uuid, p_name text, p_item integer, p_token uuid, p_node uuid, p_pid integer,
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
        started_at = clock_timestamp(), ended_at = NULL, not_before = NULL, reason = NULL
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

-- Count a stage that has ended down at those that wait for it. p_room says how many messages each `worker.tier` route's
-- queue still takes, p_carried names the stages that the message in hand publishes by itself; what has no place stays
-- ready and is topped up later. Gives those that became ready.
CREATE FUNCTION loomq_count_down(p_goal uuid, p_children text[], p_room jsonb, p_carried text[])
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    v_ready jsonb;
BEGIN
    -- Locked in one order: two parents that complete at once must not wait for each other.
    WITH held AS (
        SELECT h.name, h.state, h.waits_for, h.worker || '.' || h.tier AS route FROM stages h
        WHERE h.goal_id = p_goal AND h.item = -1 AND h.name = ANY (p_children)
          AND h.state IN ('waiting', 'cancelled') AND h.waits_for > 0
        ORDER BY h.name FOR UPDATE
    ), placed AS (
        SELECT held.*, held.name = ANY (p_carried) OR held.waits_for = 1 AND held.state = 'waiting'
            AND row_number() OVER (
                PARTITION BY held.route, held.waits_for = 1 AND held.state = 'waiting'
                    AND held.name <> ALL (p_carried) ORDER BY held.name
            ) <= coalesce((p_room ->> held.route)::integer, 0) AS has_place
        FROM held
    ), counted AS (
        -- A child that was cancelled with its goal counts down as well, for the day its goal is reopened.
        UPDATE stages c SET
            waits_for = c.waits_for - 1,
            state = CASE WHEN c.waits_for > 1 OR c.state = 'cancelled' THEN c.state
                         WHEN placed.has_place THEN 'published' ELSE 'ready' END,
            ready_at = CASE WHEN c.waits_for = 1 AND c.state = 'waiting' THEN clock_timestamp() END,
            published_at = CASE WHEN c.waits_for = 1 AND c.state = 'waiting' AND placed.has_place
                                THEN clock_timestamp() END
        FROM placed WHERE c.goal_id = p_goal AND c.item = -1 AND c.name = placed.name
        RETURNING c.name, c.state
    )
    SELECT coalesce(jsonb_agg(jsonb_build_object('name', counted.name, 'state', counted.state)), '[]') INTO v_ready
    FROM counted WHERE counted.state IN ('ready', 'published');
    RETURN v_ready;
END $$;

-- Do what follows from the end of a stage whose row says how it ended: done, skipped, or failed where the goal goes on.
-- An item counts down at its stage, the last one ends it; a stage counts down at its children, the last leaf ends the
-- goal. `stage` is the one whose children `ready` names.
CREATE FUNCTION loomq_after(p stages, p_room jsonb, p_carried text[])
RETURNS TABLE (ready jsonb, goal_ended boolean) LANGUAGE plpgsql AS $$
DECLARE
    v stages%ROWTYPE := p;
    g goals%ROWTYPE;
    v_ready jsonb := '[]';
BEGIN
    IF p.item >= 0 THEN
        -- The goal before the stage, as whoever ends the goal does; only a leaf will need it.
        IF (SELECT s.children = '{}' FROM stages s WHERE s.goal_id = p.goal_id AND s.name = p.name AND s.item = -1) THEN
            PERFORM 1 FROM goals x WHERE x.id = p.goal_id FOR NO KEY UPDATE;
        END IF;
        -- Found by its key alone: whoever expands or ends the stage at the same time is waited for, and then seen.
        SELECT s.* INTO v FROM stages s WHERE s.goal_id = p.goal_id AND s.name = p.name AND s.item = -1 FOR UPDATE;
        IF v.state <> 'claimed' OR v.node IS NOT NULL THEN
            RETURN QUERY SELECT '[]'::jsonb, false;
            RETURN;
        ELSIF v.waits_for > 1 THEN
            UPDATE stages s SET
                waits_for = s.waits_for - 1,
                released = CASE WHEN s.max_parallel IS NULL THEN s.released ELSE loomq_let_go(v, 1) END
            WHERE s.goal_id = v.goal_id AND s.name = v.name AND s.item = -1;
            RETURN QUERY SELECT '[]'::jsonb, false;
            RETURN;
        END IF;
        UPDATE stages s SET state = 'done', waits_for = 0, ended_at = clock_timestamp(), lease_until = NULL, error = NULL
        WHERE s.goal_id = v.goal_id AND s.name = v.name AND s.item = -1 RETURNING s.* INTO v;
        PERFORM loomq_tell(v.goal_id, 'stage_completed', v.name, -1, NULL);
    END IF;
    IF v.children <> '{}' THEN
        RETURN QUERY SELECT loomq_count_down(v.goal_id, v.children, p_room, p_carried), false;
        RETURN;
    END IF;
    UPDATE goals x SET leaves_left = x.leaves_left - 1 WHERE x.id = v.goal_id RETURNING x.* INTO g;
    IF g.leaves_left > 0 OR g.state <> 'open' THEN
        RETURN QUERY SELECT '[]'::jsonb, false;
        RETURN;
    END IF;
    RETURN QUERY SELECT '[]'::jsonb, loomq_finish_goal(g);
END $$;

-- Let the next items of a stage go that fanned out with a limit. Gives the last item that has gone.
CREATE FUNCTION loomq_let_go(p stages, p_count integer) RETURNS integer LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    v_next integer[];
BEGIN
    -- Found first and then changed by their keys: a join of both would read all items each time.
    SELECT array_agg(n.item ORDER BY n.item) INTO v_next FROM (
        SELECT s.item FROM stages s
        WHERE s.goal_id = p.goal_id AND s.name = p.name AND s.item > p.released AND s.state = 'waiting'
        ORDER BY s.item LIMIT greatest(p_count, 0)) AS n;
    UPDATE stages s SET state = 'ready', ready_at = clock_timestamp()
    WHERE s.goal_id = p.goal_id AND s.name = p.name AND s.item = ANY (v_next);
    RETURN CASE WHEN p_count <= 0 THEN p.released ELSE coalesce(v_next[cardinality(v_next)], p.fan_out) END;
END $$;

-- End a goal whose leaves have all ended. Where a failure does not end it, it has failed if no leaf has a result.
CREATE FUNCTION loomq_finish_goal(p goals) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v_state text := 'done';
BEGIN
    IF p.error IS NOT NULL AND NOT EXISTS (
        SELECT 1 FROM stages s WHERE s.goal_id = p.id AND s.item = -1 AND s.children = '{}' AND s.state = 'done')
    THEN
        v_state := 'failed';
    END IF;
    UPDATE goals g SET state = v_state, ended_at = clock_timestamp() WHERE g.id = p.id;
    PERFORM loomq_tell(p.id, CASE v_state WHEN 'done' THEN 'goal_completed' ELSE 'goal_failed' END, NULL, NULL, p.error);
    PERFORM loomq_answer(p.id, p.session_id) WHERE v_state = 'done';
    PERFORM pg_notify('loomq_ended', p.id::text || ' ' || coalesce(p.task_id, ''));
    RETURN true;
END $$;

-- Write what a goal's last stages gave into its session, once.
CREATE FUNCTION loomq_answer(p_goal uuid, p_session uuid) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    -- First: a session that is being deleted is waited for, and one that is gone gets nothing.
    UPDATE sessions x SET updated_at = clock_timestamp() WHERE x.id = p_session;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    INSERT INTO session_messages (session_id, role, content, goal_id)
    SELECT p_session, 'assistant', coalesce(CASE
        WHEN count(*) = 1 THEN (jsonb_agg(CASE WHEN s.fan_out IS NULL THEN s.output ELSE loomq_items(p_goal, s.name) END)
                                -> 0)::text
        ELSE jsonb_object_agg(s.name, CASE WHEN s.fan_out IS NULL THEN s.output ELSE loomq_items(p_goal, s.name) END)::text
        END, '{}'), p_goal
    FROM stages s WHERE s.goal_id = p_goal AND s.item = -1 AND s.children = '{}' AND s.state = 'done'
    ON CONFLICT DO NOTHING;
END $$;

-- Whether work of a route waits; searched for by index however much of it there is.
CREATE FUNCTION loomq_has_backlog(p_worker text, p_tier text) RETURNS boolean LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
    RETURN EXISTS (SELECT 1 FROM stages w WHERE w.state = 'ready' AND w.worker = p_worker AND w.tier = p_tier
                   AND w.not_before IS NULL)
        OR EXISTS (SELECT 1 FROM stages w WHERE w.state = 'ready' AND w.worker = p_worker AND w.tier = p_tier
                   AND w.not_before <= now());
END $$;

-- Store a result, or that the stage is skipped, and do what follows from it, if the token still holds: this transaction
-- is the barrier of every join. Without a token a stage is skipped that nobody has claimed.
-- outcome: accepted · repeated (the same call was committed before) · fenced.
CREATE FUNCTION loomq_complete_2(p_goal uuid, p_name text, p_item integer, p_token uuid, p_state text, p_output jsonb,
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
        SELECT coalesce(jsonb_agg(jsonb_build_object('name', c.name, 'state', c.state)), '[]') INTO v_ready
        FROM stages c
        WHERE c.goal_id = p_goal AND c.item = -1 AND c.name = ANY (v.children) AND c.state IN ('ready', 'published');
        RETURN QUERY SELECT 'repeated', v_ready,
            EXISTS (SELECT 1 FROM goals g WHERE g.id = p_goal AND g.state <> 'open'), false, false;
        RETURN;
    END IF;
    PERFORM loomq_tell(p_goal, CASE p_state WHEN 'skipped' THEN 'stage_skipped' ELSE 'stage_completed' END, p_name, p_item,
                       CASE WHEN p_reason IS NOT NULL THEN jsonb_build_object('reason', p_reason) END);
    SELECT a.ready, a.goal_ended INTO v_ready, v_ended FROM loomq_after(v, p_room, p_carried) AS a;
    IF p_chord IS NOT NULL THEN
        v_full := loomq_chord_part(p_chord, (SELECT g.task_id FROM goals g WHERE g.id = p_goal), p_position, 'SUCCESS',
                                   p_output);
    END IF;
    RETURN QUERY SELECT 'accepted', v_ready, v_ended,
        loomq_has_backlog(v.worker, v.tier), v_full;
END $$;
