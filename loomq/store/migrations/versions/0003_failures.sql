-- What becomes of a stage that comes back from a process: it is ready again if its goal is open, and for an item its stage.
CREATE FUNCTION loomq_state_back(p_goal uuid, p_name text, p_item integer) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_goal text;
BEGIN
    SELECT g.state INTO v_goal FROM goals g WHERE g.id = p_goal FOR SHARE;
    RETURN CASE WHEN v_goal = 'open' AND (p_item < 0 OR EXISTS (
        SELECT 1 FROM stages s WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = -1
          AND s.state IN ('waiting', 'ready', 'published', 'claimed'))) THEN 'ready' ELSE 'cancelled' END;
END $$;

-- Record a failure. Retries left and worth it: ready again after a delay, held here and not in a worker's memory. Else
-- the stage's fallback, else the goal's way with failures.
-- outcome: retried · fallback · continued · ended · fenced.
CREATE FUNCTION loomq_fail_2(p_goal uuid, p_name text, p_item integer, p_token uuid, p_error jsonb, p_retryable boolean,
                             p_delay_s double precision, p_dead boolean)
RETURNS TABLE (outcome text, ready jsonb, goal_ended boolean) LANGUAGE plpgsql AS $$
DECLARE
    v stages%ROWTYPE;
    g goals%ROWTYPE;
    v_entry jsonb;
    v_state text;
    v_error jsonb := p_error;
    v_ready jsonb := '[]';
    v_ended boolean := false;
BEGIN
    SELECT s.* INTO v FROM stages s
    WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = p_item AND s.state = 'claimed' AND s.token = p_token
    FOR UPDATE;
    IF NOT FOUND OR v.fan_out IS NOT NULL AND v.node IS NULL THEN  -- taken back, or its items have it
        RETURN QUERY SELECT 'fenced', v_ready, false;
        RETURN;
    END IF;
    v_entry := jsonb_build_object('attempt', v.attempt, 'delivery', v.deliveries, 'error', p_error, 'node', v.node,
                                  'started_at', v.started_at, 'ended_at', clock_timestamp());
    SELECT x.* INTO g FROM goals x WHERE x.id = p_goal FOR NO KEY UPDATE;
    IF p_retryable AND v.attempt <= v.max_retries THEN
        v_state := loomq_state_back(p_goal, p_name, p_item);
        UPDATE stages s SET
            state = v_state,
            attempt = s.attempt + 1, deliveries = s.deliveries - 1, token = NULL, lease_until = NULL,
            error = p_error, reason = 'retry', ended_at = clock_timestamp(), ready_at = clock_timestamp(),
            published_at = NULL, not_before = clock_timestamp() + make_interval(secs => p_delay_s),
            history = s.history || (v_entry || jsonb_build_object(
                'due_at', clock_timestamp() + make_interval(secs => p_delay_s)))
        WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = p_item;
        PERFORM loomq_tell(p_goal, CASE v_state WHEN 'ready' THEN 'stage_retried' ELSE 'stage_cancelled' END,
                           p_name, p_item, jsonb_build_object('error', p_error, 'delay_s', round(p_delay_s::numeric, 3)));
        RETURN QUERY SELECT 'retried', v_ready, false;
        RETURN;
    END IF;
    PERFORM loomq_tell(p_goal, 'stage_failed', p_name, p_item, jsonb_build_object('error', p_error));
    IF g.state = 'open' AND v.fallback ? 'output' THEN
        UPDATE stages s SET
            state = 'done', output = s.fallback -> 'output', reason = 'fallback', error = p_error,
            ended_at = clock_timestamp(), lease_until = NULL, history = s.history || v_entry
        WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = p_item RETURNING s.* INTO v;
        PERFORM loomq_tell(p_goal, 'stage_completed', p_name, p_item, '{"reason": "fallback"}');
        SELECT a.ready, a.goal_ended INTO v_ready, v_ended FROM loomq_after(v, '{}', '{}') AS a;
        RETURN QUERY SELECT 'fallback', v_ready, v_ended;
        RETURN;
    ELSIF g.state = 'open' AND v.fallback ? 'worker' THEN
        UPDATE stages s SET
            state = 'ready', worker = s.fallback ->> 'worker', tier = s.fallback ->> 'tier',
            timeout_s = (s.fallback ->> 'timeout_s')::double precision,
            max_retries = (s.fallback ->> 'max_retries')::integer, fallback = NULL, attempt = 1, deliveries = 0,
            token = NULL, lease_until = NULL, reason = 'fallback', error = p_error, ready_at = clock_timestamp(),
            published_at = NULL, not_before = NULL, history = s.history || v_entry
        WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = p_item;
        PERFORM loomq_tell(p_goal, 'stage_fell_back', p_name, p_item, v.fallback);
        RETURN QUERY SELECT 'fallback', v_ready, false;
        RETURN;
    END IF;
    UPDATE stages s SET
        state = CASE WHEN p_dead THEN 'dead' ELSE 'failed' END, error = p_error, ended_at = clock_timestamp(),
        lease_until = NULL, history = s.history || v_entry
    WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = p_item RETURNING s.* INTO v;
    IF p_item >= 0 THEN
        SELECT s.* INTO v FROM stages s WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = -1 FOR UPDATE;
        IF v.state <> 'claimed' OR v.node IS NOT NULL THEN  -- another item has failed before, or the goal has ended
            RETURN QUERY SELECT 'ended', v_ready, false;
            RETURN;
        ELSIF v.tolerant THEN
            v.item := p_item;
            SELECT a.ready, a.goal_ended INTO v_ready, v_ended FROM loomq_after(v, '{}', '{}') AS a;
            RETURN QUERY SELECT 'continued', v_ready, v_ended;
            RETURN;
        END IF;
        PERFORM 1 FROM stages s WHERE s.goal_id = p_goal AND s.name = p_name AND s.item >= 0
            AND (s.state IN ('waiting', 'ready', 'published') OR s.state = 'claimed' AND s.node IS NULL)
        ORDER BY s.item FOR UPDATE;
        UPDATE stages s SET state = 'cancelled', reason = format('item %s failed', p_item), ended_at = clock_timestamp(),
            lease_until = NULL
        WHERE s.goal_id = p_goal AND s.name = p_name AND s.item >= 0
          AND (s.state IN ('waiting', 'ready', 'published') OR s.state = 'claimed' AND s.node IS NULL);
        PERFORM loomq_end_part(c.id, p_goal) FROM goals c
        WHERE c.parent_goal = p_goal AND c.parent_stage = p_name AND c.state = 'open';
        v_error := p_error || jsonb_build_object('index', p_item);
        UPDATE stages s SET
            state = CASE WHEN p_dead THEN 'dead' ELSE 'failed' END, error = v_error, ended_at = clock_timestamp(),
            lease_until = NULL, waits_for = 0
        WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = -1 RETURNING s.* INTO v;
        PERFORM loomq_tell(p_goal, 'stage_failed', p_name, -1, jsonb_build_object('error', v_error));
    END IF;
    IF g.state <> 'open' THEN
        RETURN QUERY SELECT 'ended', v_ready, false;
    ELSIF g.on_failure = 'continue_partial' THEN
        UPDATE goals x SET error = v_error WHERE x.id = p_goal AND x.error IS NULL;
        SELECT a.ready, a.goal_ended INTO v_ready, v_ended FROM loomq_after(v, '{}', '{}') AS a;
        RETURN QUERY SELECT 'continued', v_ready, v_ended;
    ELSE
        PERFORM loomq_end_goal(p_goal, 'failed', v_error);
        RETURN QUERY SELECT 'ended', v_ready, true;
    END IF;
END $$;

-- As in 0001, by the rules of this version, in the words of that one: the attempt is over, or the stage is.
CREATE OR REPLACE FUNCTION loomq_fail(p_goal uuid, p_name text, p_item integer, p_token uuid, p_error jsonb,
                                      p_retryable boolean, p_delay_s double precision, p_dead boolean)
RETURNS text LANGUAGE sql AS $$
    SELECT CASE WHEN f.outcome IN ('retried', 'fenced') THEN f.outcome ELSE 'ended' END
    FROM loomq_fail_2(p_goal, p_name, p_item, p_token, p_error, p_retryable, p_delay_s, p_dead) AS f
$$;

-- As in 0001, and told, and not a stage that has been left to its items.
CREATE OR REPLACE FUNCTION loomq_release(p_goal uuid, p_name text, p_item integer, p_token uuid, p_reason text)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v_state text;
BEGIN
    PERFORM 1 FROM stages s
    WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = p_item AND s.state = 'claimed' AND s.token = p_token
      AND (s.fan_out IS NULL OR s.node IS NOT NULL)
    FOR UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    v_state := loomq_state_back(p_goal, p_name, p_item);
    UPDATE stages s SET
        state = v_state, deliveries = s.deliveries - 1,
        token = NULL, lease_until = NULL, published_at = NULL, ready_at = clock_timestamp(), reason = p_reason
    WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = p_item;
    PERFORM loomq_tell(p_goal, CASE v_state WHEN 'ready' THEN 'stage_released' ELSE 'stage_cancelled' END, p_name, p_item,
                       jsonb_build_object('reason', p_reason));
    RETURN true;
END $$;

-- As in 0001, and told.
CREATE OR REPLACE FUNCTION loomq_take_back(p_node uuid, p_gone integer[], p_lease_s double precision,
                                           p_max_deliveries integer, p_limit integer)
RETURNS TABLE (goal_id uuid, name text, item integer, outcome text) LANGUAGE plpgsql AS $$
DECLARE
    v stages%ROWTYPE;
    v_error jsonb;
    v_late boolean;
    v_state text;
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
            v_state := loomq_state_back(v.goal_id, v.name, v.item);
            UPDATE stages s SET
                state = v_state, token = NULL, lease_until = NULL,
                published_at = NULL, ready_at = clock_timestamp(), reason = 'taken back', error = v_error,
                history = s.history || jsonb_build_object('attempt', v.attempt, 'delivery', v.deliveries,
                    'error', v_error, 'node', v.node, 'started_at', v.started_at, 'ended_at', clock_timestamp())
            WHERE s.goal_id = v.goal_id AND s.name = v.name AND s.item = v.item;
            PERFORM loomq_tell(v.goal_id, CASE v_state WHEN 'ready' THEN 'stage_taken_back' ELSE 'stage_cancelled' END,
                               v.name, v.item, jsonb_build_object('error', v_error));
            outcome := 'ready';
        END IF;
        RETURN NEXT;
    END LOOP;
END $$;

-- As in 0001, for nodes of before: they would run a stage with a condition or a for_each as if it had none. Such a stage
-- goes back, for a node that knows.
CREATE OR REPLACE FUNCTION loomq_claim(p_goal uuid, p_name text, p_item integer, p_token uuid, p_node uuid, p_pid integer,
                                       p_message text, p_lease_s double precision)
RETURNS TABLE (snapshot text, instruction text, context jsonb, canvas jsonb, task_id text, priority smallint,
               attempt integer, deliveries integer, timeout_s double precision, max_retries integer, inputs jsonb,
               tier text)
LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM goals g WHERE g.id = p_goal AND (g.is_newer OR g.paused_at IS NOT NULL)) THEN
        UPDATE stages s SET
            state = 'ready', published_at = NULL, not_before = clock_timestamp() + interval '1 second',
            reason = 'for a newer node'
        WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = p_item AND s.state = 'published';
        RETURN;
    END IF;
    RETURN QUERY
    SELECT c.snapshot, c.instruction, c.context, c.canvas, c.task_id, c.priority, c.attempt, c.deliveries, c.timeout_s,
           c.max_retries, c.inputs, c.tier
    FROM loomq_claim_3(p_goal, p_name, p_item, p_token, p_node, p_pid, p_message, p_lease_s) AS c;
END $$;
