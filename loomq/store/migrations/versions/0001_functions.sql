-- The writes that decide: each is one call and one transaction. The rules stand in docs/decisions/0003.

-- Write a goal with its stages, once a key. `spec_missing`: call again with the snapshot's body.
CREATE FUNCTION loomq_submit(p_goal jsonb, p_stages jsonb, p_key text, p_hash text, p_body jsonb)
RETURNS TABLE (outcome text, goal_id uuid) LANGUAGE plpgsql AS $$
DECLARE
    v_id uuid := (p_goal ->> 'id')::uuid;
    v_old uuid;
BEGIN
    IF EXISTS (SELECT 1 FROM goals g WHERE g.id = v_id) THEN
        RETURN QUERY SELECT 'created', v_id;  -- the same call again: its first answer was lost
        RETURN;
    END IF;
    IF p_body IS NOT NULL THEN
        INSERT INTO specs (hash, body) VALUES (p_hash, p_body) ON CONFLICT DO NOTHING;
    ELSIF NOT EXISTS (SELECT 1 FROM specs WHERE hash = p_hash) THEN
        RETURN QUERY SELECT 'spec_missing', NULL::uuid;
        RETURN;
    END IF;
    IF p_key IS NOT NULL THEN
        INSERT INTO idempotency_keys (key, goal_id) VALUES (p_key, v_id) ON CONFLICT DO NOTHING;
        IF NOT FOUND THEN
            SELECT k.goal_id INTO v_old FROM idempotency_keys k WHERE k.key = p_key;
            RETURN QUERY SELECT 'known', v_old;
            RETURN;
        END IF;
    END IF;
    INSERT INTO goals (id, pipeline, kind, snapshot, instruction, context, priority, state, leaves_left,
                       idempotency_key, request_id, session_id, deadline, budget, task_id, canvas, follows)
    SELECT v_id, g.pipeline, g.kind, p_hash, g.instruction, g.context, g.priority, 'open', g.leaves_left,
           p_key, g.request_id, g.session_id, g.deadline, g.budget, g.task_id, g.canvas,
           coalesce(g.canvas ?| ARRAY['chain', 'link', 'link_error'], false)
    FROM jsonb_to_record(p_goal) AS g (
        pipeline text, kind text, instruction text, context jsonb, priority smallint, leaves_left integer,
        request_id text, session_id uuid, deadline timestamptz, budget jsonb, task_id text, canvas jsonb);
    INSERT INTO stages (goal_id, name, item, worker, tier, priority, state, waits_for, children, reads, timeout_s,
                        max_retries, attempt, deliveries, history, not_before, ready_at, published_at)
    SELECT v_id, s.name, -1, s.worker, s.tier, s.priority, s.state, s.waits_for, s.children, s.reads, s.timeout_s,
           s.max_retries, 1, 0, '[]', s.not_before,
           CASE WHEN s.state <> 'waiting' THEN clock_timestamp() END,
           CASE WHEN s.state = 'published' THEN clock_timestamp() END
    FROM jsonb_to_recordset(p_stages) AS s (
        name text, worker text, tier text, priority smallint, state text, waits_for integer, children text[],
        reads text[], timeout_s double precision, max_retries integer, not_before timestamptz);
    RETURN QUERY SELECT 'created', v_id;
END $$;

-- Take a stage that is due. No row: a duplicate, an early message, or somebody else's. The delivery is counted
-- before the work, so that work which kills its process is counted. The same token may ask twice.
CREATE FUNCTION loomq_claim(p_goal uuid, p_name text, p_item integer, p_token uuid, p_node uuid, p_pid integer,
                            p_message text, p_lease_s double precision)
RETURNS TABLE (snapshot text, instruction text, context jsonb, canvas jsonb, task_id text, priority smallint,
               attempt integer, deliveries integer, timeout_s double precision, max_retries integer, inputs jsonb,
               tier text)
LANGUAGE plpgsql AS $$
DECLARE
    v stages%ROWTYPE;
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
    RETURN QUERY SELECT g.snapshot, g.instruction, g.context, g.canvas, g.task_id, g.priority, v.attempt, v.deliveries,
        v.timeout_s, v.max_retries,
        CASE WHEN v.reads = '{}' THEN '{}'::jsonb ELSE coalesce((
            SELECT jsonb_object_agg(r.name, jsonb_build_object(
                'output', r.output, 'model_used', r.model_used, 'processing_time_ms', r.processing_time_ms,
                'started_at', r.started_at, 'ended_at', r.ended_at,
                'wall_time_ms', round(extract(epoch FROM r.ended_at - r.started_at) * 1000)::integer))
            FROM stages r WHERE r.goal_id = p_goal AND r.item = -1 AND r.name = ANY (v.reads) AND r.state = 'done'
        ), '{}') END, v.tier
    FROM goals g WHERE g.id = p_goal;
END $$;

-- Store a result and do what follows from it, if the token still holds: this transaction is the barrier of every
-- join. p_room says how many messages each `worker.tier` route's queue still takes, p_carried names the stages that the
-- message in hand publishes by itself; what has no place stays ready and is topped up later.
-- outcome: accepted · repeated (the same call was committed before) · fenced.
CREATE FUNCTION loomq_complete(p_goal uuid, p_name text, p_item integer, p_token uuid, p_output jsonb, p_model text,
                               p_tokens jsonb, p_ms integer, p_room jsonb, p_carried text[],
                               p_chord text, p_position integer)
RETURNS TABLE (outcome text, ready jsonb, goal_ended boolean, backlog boolean, chord_full boolean)
LANGUAGE plpgsql AS $$
DECLARE
    v stages%ROWTYPE;
    v_ready jsonb := '[]';
    v_ended boolean := false;
    v_task text;
    v_full boolean := false;
BEGIN
    UPDATE stages s SET
        state = 'done', output = p_output, model_used = p_model, token_usage = p_tokens, processing_time_ms = p_ms,
        ended_at = clock_timestamp(), lease_until = NULL, error = NULL
    WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = p_item AND s.state = 'claimed' AND s.token = p_token
    RETURNING s.* INTO v;
    IF NOT FOUND THEN
        SELECT s.* INTO v FROM stages s
        WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = p_item AND s.state = 'done' AND s.token = p_token;
        IF NOT FOUND THEN
            RETURN QUERY SELECT 'fenced', v_ready, false, false, false;
            RETURN;
        END IF;
        SELECT coalesce(jsonb_agg(jsonb_build_object('name', c.name, 'state', c.state)), '[]') INTO v_ready
        FROM stages c
        WHERE c.goal_id = p_goal AND c.item = -1 AND c.name = ANY (v.children) AND c.state = 'published';
        RETURN QUERY SELECT 'repeated', v_ready, false, false, false;
        RETURN;
    END IF;
    IF v.children <> '{}' THEN
        -- Locked in one order: two parents that complete at once must not wait for each other.
        WITH held AS (
            SELECT h.name, h.state, h.waits_for, h.worker || '.' || h.tier AS route FROM stages h
            WHERE h.goal_id = p_goal AND h.item = -1 AND h.name = ANY (v.children)
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
    ELSE
        UPDATE goals g SET
            leaves_left = g.leaves_left - 1,
            state = CASE WHEN g.leaves_left = 1 AND g.state = 'open' THEN 'done' ELSE g.state END,
            ended_at = CASE WHEN g.leaves_left = 1 AND g.state = 'open' THEN clock_timestamp() ELSE g.ended_at END
        WHERE g.id = p_goal
        RETURNING g.leaves_left = 0 AND g.state = 'done' INTO v_ended;
    END IF;
    IF v_ended OR p_chord IS NOT NULL THEN
        SELECT g.task_id INTO v_task FROM goals g WHERE g.id = p_goal;
    END IF;
    IF p_chord IS NOT NULL THEN
        v_full := loomq_chord_part(p_chord, v_task, p_position, 'SUCCESS', p_output);
    END IF;
    IF v_ended THEN
        PERFORM pg_notify('loomq_ended', p_goal::text || ' ' || coalesce(v_task, ''));
    END IF;
    RETURN QUERY SELECT 'accepted', v_ready, v_ended,
        EXISTS (SELECT 1 FROM stages w WHERE w.state = 'ready' AND w.worker = v.worker AND w.tier = v.tier), v_full;
END $$;

-- Count one part of a user's chord, once a task. True for the part that fills it.
CREATE FUNCTION loomq_chord_part(p_group text, p_task text, p_position integer, p_state text, p_result jsonb)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v_size integer;
    v_done integer;
BEGIN
    IF p_task IS NULL THEN
        RETURN false;
    END IF;
    -- The chord's row is the lock that puts its last parts in order; a part may come before the size is known.
    INSERT INTO chords (group_id) VALUES (p_group) ON CONFLICT DO NOTHING;
    SELECT c.size INTO v_size FROM chords c WHERE c.group_id = p_group FOR UPDATE;
    INSERT INTO chord_parts (group_id, task_id, position, state, result)
    VALUES (p_group, p_task, p_position, p_state, p_result) ON CONFLICT DO NOTHING;
    IF NOT FOUND OR v_size IS NULL THEN
        RETURN false;
    END IF;
    SELECT count(*) INTO v_done FROM chord_parts p WHERE p.group_id = p_group;
    RETURN v_done >= v_size;
END $$;

-- End a goal without its result: what waits is cancelled, what runs is told by the next extension of its lease.
CREATE FUNCTION loomq_end_goal(p_goal uuid, p_state text, p_error jsonb)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v_task text;
    v_canvas jsonb;
BEGIN
    UPDATE goals g SET state = p_state, error = p_error, ended_at = clock_timestamp()
    WHERE g.id = p_goal AND g.state = 'open' RETURNING g.task_id, g.canvas INTO v_task, v_canvas;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    -- In the order in which a completion locks them.
    PERFORM 1 FROM stages s WHERE s.goal_id = p_goal AND s.state IN ('waiting', 'ready', 'published')
    ORDER BY s.name, s.item FOR UPDATE;
    UPDATE stages s SET state = 'cancelled', reason = 'goal ' || p_state, ended_at = clock_timestamp()
    WHERE s.goal_id = p_goal AND s.state IN ('waiting', 'ready', 'published');
    IF v_canvas ->> 'group_id' IS NOT NULL AND v_canvas -> 'chord' IS NOT NULL THEN
        PERFORM loomq_chord_part(v_canvas ->> 'group_id', v_task, coalesce((v_canvas ->> 'group_index')::integer, 0),
                                 'FAILURE', p_error);
    END IF;
    PERFORM pg_notify('loomq_ended', p_goal::text || ' ' || coalesce(v_task, ''));
    RETURN true;
END $$;

-- Record a failure. Retries left and worth it: ready again after a delay, held here and not in a worker's memory.
-- outcome: retried · ended · fenced.
CREATE FUNCTION loomq_fail(p_goal uuid, p_name text, p_item integer, p_token uuid, p_error jsonb, p_retryable boolean,
                           p_delay_s double precision, p_dead boolean)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v stages%ROWTYPE;
    v_entry jsonb;
    v_goal text;
BEGIN
    SELECT s.* INTO v FROM stages s
    WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = p_item AND s.state = 'claimed' AND s.token = p_token
    FOR UPDATE;
    IF NOT FOUND THEN
        RETURN 'fenced';
    END IF;
    v_entry := jsonb_build_object('attempt', v.attempt, 'delivery', v.deliveries, 'error', p_error, 'node', v.node,
                                  'started_at', v.started_at, 'ended_at', clock_timestamp());
    IF p_retryable AND v.attempt <= v.max_retries THEN
        SELECT g.state INTO v_goal FROM goals g WHERE g.id = p_goal FOR SHARE;
        UPDATE stages s SET
            state = CASE WHEN v_goal = 'open' THEN 'ready' ELSE 'cancelled' END,
            attempt = s.attempt + 1, deliveries = s.deliveries - 1, token = NULL, lease_until = NULL,
            error = p_error, reason = 'retry', ended_at = clock_timestamp(), ready_at = clock_timestamp(),
            published_at = NULL, not_before = clock_timestamp() + make_interval(secs => p_delay_s),
            history = s.history || v_entry
        WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = p_item;
        RETURN 'retried';
    END IF;
    UPDATE stages s SET
        state = CASE WHEN p_dead THEN 'dead' ELSE 'failed' END, error = p_error, ended_at = clock_timestamp(),
        lease_until = NULL, history = s.history || v_entry
    WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = p_item;
    PERFORM loomq_end_goal(p_goal, 'failed', p_error);
    RETURN 'ended';
END $$;

-- Hand a claimed stage back uncounted: nothing was done with it.
CREATE FUNCTION loomq_release(p_goal uuid, p_name text, p_item integer, p_token uuid, p_reason text)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v_goal text;
BEGIN
    PERFORM 1 FROM stages s
    WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = p_item AND s.state = 'claimed' AND s.token = p_token
    FOR UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    SELECT g.state INTO v_goal FROM goals g WHERE g.id = p_goal FOR SHARE;
    UPDATE stages s SET
        state = CASE WHEN v_goal = 'open' THEN 'ready' ELSE 'cancelled' END, deliveries = s.deliveries - 1,
        token = NULL, lease_until = NULL, published_at = NULL, ready_at = clock_timestamp(), reason = p_reason
    WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = p_item;
    RETURN true;
END $$;

-- Take stages back from processes that are gone (p_node with p_gone) or whose lease ran out (p_node null).
-- A stage past its deadline when it was last known to run is timed out; one that was delivered too often is dead; the
-- rest is ready again.
CREATE FUNCTION loomq_take_back(p_node uuid, p_gone integer[], p_lease_s double precision, p_max_deliveries integer,
                                p_limit integer)
RETURNS TABLE (goal_id uuid, name text, item integer, outcome text) LANGUAGE plpgsql AS $$
DECLARE
    v stages%ROWTYPE;
    v_error jsonb;
    v_late boolean;
    v_goal text;
BEGIN
    FOR v IN
        SELECT s.* FROM stages s
        WHERE s.state = 'claimed' AND CASE WHEN p_node IS NULL THEN s.lease_until < clock_timestamp()
                                           ELSE s.node = p_node AND s.pid = ANY (p_gone) END
        LIMIT p_limit FOR UPDATE SKIP LOCKED
    LOOP
        -- Judged by the last sign of life, not by now: the database may have been away in between.
        v_late := v.lease_until - make_interval(secs => p_lease_s) >= v.started_at + make_interval(secs => v.timeout_s);
        v_error := CASE
            WHEN v_late THEN jsonb_build_object(
                'type', 'PipelineTimeoutError', 'stage', v.name, 'retryable', true,
                'message', format('stage %s ran longer than its %s s and its process was ended', v.name, v.timeout_s))
            ELSE jsonb_build_object(
                'type', 'WorkerLostError', 'stage', v.name, 'retryable', true,
                'message', format('the process that ran stage %s ended before it did (delivery %s)', v.name, v.deliveries))
            END;
        goal_id := v.goal_id; name := v.name; item := v.item;
        IF v_late OR v.deliveries >= p_max_deliveries THEN
            outcome := loomq_fail(v.goal_id, v.name, v.item, v.token, v_error, v_late, 1, NOT v_late);
        ELSE
            SELECT g.state INTO v_goal FROM goals g WHERE g.id = v.goal_id FOR SHARE;
            UPDATE stages s SET
                state = CASE WHEN v_goal = 'open' THEN 'ready' ELSE 'cancelled' END, token = NULL, lease_until = NULL,
                published_at = NULL, ready_at = clock_timestamp(), reason = 'taken back', error = v_error,
                history = s.history || jsonb_build_object('attempt', v.attempt, 'delivery', v.deliveries,
                    'error', v_error, 'node', v.node, 'started_at', v.started_at, 'ended_at', clock_timestamp())
            WHERE s.goal_id = v.goal_id AND s.name = v.name AND s.item = v.item;
            outcome := 'ready';
        END IF;
        RETURN NEXT;
    END LOOP;
END $$;

-- Pick waiting work of one route for its queue: by priority, then fairly over goals, then by age.
CREATE FUNCTION loomq_take_ready(p_worker text, p_tier text, p_limit integer)
RETURNS TABLE (goal_id uuid, name text, item integer, priority smallint, task_id text, canvas jsonb)
LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY
    WITH oldest AS (
        SELECT s.goal_id, s.name, s.item, s.priority, s.ready_at FROM stages s
        WHERE s.state = 'ready' AND s.worker = p_worker AND s.tier = p_tier
          AND (s.not_before IS NULL OR s.not_before <= clock_timestamp())
        ORDER BY s.priority DESC, s.ready_at LIMIT greatest(p_limit * 8, 2000)
    ), fair AS (
        SELECT o.*, row_number() OVER (PARTITION BY o.goal_id, o.priority ORDER BY o.ready_at) AS turn FROM oldest o
    ), picked AS (
        SELECT s.goal_id, s.name, s.item FROM stages s
        JOIN (SELECT * FROM fair f ORDER BY f.priority DESC, f.turn, f.ready_at LIMIT p_limit) f
          ON s.goal_id = f.goal_id AND s.name = f.name AND s.item = f.item
        WHERE s.state = 'ready'
        FOR UPDATE OF s SKIP LOCKED
    )
    UPDATE stages s SET state = 'published', published_at = clock_timestamp()
    FROM picked p JOIN goals g ON g.id = p.goal_id
    WHERE s.goal_id = p.goal_id AND s.name = p.name AND s.item = p.item
    RETURNING s.goal_id, s.name, s.item, s.priority, g.task_id, g.canvas;
END $$;
