-- Fan a claimed stage out over a list: one row an element, and the stage itself stays claimed, without a lease, until
-- the last of them has ended. Elements come as [{"index", "element", "skip"}]; those that ended before (the stage was
-- replayed) keep their results.
-- outcome: accepted · repeated · fenced.
CREATE FUNCTION loomq_expand(p_goal uuid, p_name text, p_token uuid, p_elements jsonb, p_reads text[],
                             p_max_parallel integer, p_tolerant boolean, p_fallback jsonb, p_room jsonb)
RETURNS TABLE (outcome text, ready jsonb, goal_ended boolean, backlog boolean, chord_full boolean)
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    v stages%ROWTYPE;
    v_first text := CASE WHEN p_max_parallel IS NULL THEN 'ready' ELSE 'waiting' END;
    v_left integer;
    v_ready jsonb := '[]';
    v_ended boolean := false;
    v_open boolean;
BEGIN
    -- Held until the items are there: whoever ends the goal must find them.
    SELECT g.state = 'open' INTO v_open FROM goals g WHERE g.id = p_goal FOR NO KEY UPDATE;
    SELECT s.* INTO v FROM stages s
    WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = -1 AND s.token = p_token FOR UPDATE;
    IF NOT FOUND OR v.state <> 'claimed' OR v.node IS NULL THEN
        RETURN QUERY SELECT CASE WHEN v.fan_out IS NULL THEN 'fenced' ELSE 'repeated' END, v_ready, false, true, false;
        RETURN;
    END IF;
    IF NOT v_open THEN
        UPDATE stages s SET state = 'cancelled', lease_until = NULL, ended_at = clock_timestamp(), reason = 'goal ended'
        WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = -1;
        RETURN QUERY SELECT 'fenced', v_ready, false, false, false;
        RETURN;
    END IF;
    INSERT INTO stages AS s (goal_id, name, item, worker, tier, priority, state, waits_for, children, reads, timeout_s,
                             max_retries, attempt, deliveries, history, fallback, element, reason, ready_at, ended_at)
    SELECT p_goal, p_name, e.index, v.worker, v.tier, v.priority, CASE WHEN e.skip IS NULL THEN v_first ELSE 'skipped' END,
           0, '{}', p_reads, v.timeout_s, v.max_retries, 1, 0, '[]', p_fallback, e.element, e.skip,
           CASE WHEN e.skip IS NULL AND p_max_parallel IS NULL THEN clock_timestamp() END,
           CASE WHEN e.skip IS NOT NULL THEN clock_timestamp() END
    FROM jsonb_to_recordset(p_elements) AS e (index integer, element jsonb, skip text)
    -- Those that still run from before are not even touched: they may be waiting for this very stage.
    WHERE v.fan_out IS NULL OR NOT EXISTS (
        SELECT 1 FROM stages o WHERE o.goal_id = p_goal AND o.name = p_name AND o.item = e.index
          AND o.state NOT IN ('failed', 'dead', 'cancelled'))
    ON CONFLICT (goal_id, name, item) DO UPDATE SET
        state = excluded.state, element = excluded.element, reason = excluded.reason, attempt = 1, deliveries = 0,
        worker = excluded.worker, tier = excluded.tier, timeout_s = excluded.timeout_s,
        max_retries = excluded.max_retries, fallback = excluded.fallback, error = NULL, token = NULL, node = NULL,
        waits_for = 0, not_before = NULL, ready_at = excluded.ready_at, published_at = NULL, started_at = NULL,
        ended_at = excluded.ended_at
    WHERE s.state IN ('failed', 'dead', 'cancelled');
    SELECT count(*) INTO v_left FROM stages s
    WHERE s.goal_id = p_goal AND s.name = p_name AND s.item >= 0 AND s.state NOT IN ('done', 'skipped');
    v.fan_out := jsonb_array_length(p_elements);
    v.released := -1;
    UPDATE stages s SET
        fan_out = v.fan_out, waits_for = v_left, max_parallel = p_max_parallel, tolerant = p_tolerant, node = NULL,
        pid = NULL, lease_until = loomq_never(),
        released = CASE WHEN v_left > 0 AND p_max_parallel IS NOT NULL THEN loomq_let_go(v, p_max_parallel - (
            SELECT count(*) FROM stages o WHERE o.goal_id = p_goal AND o.name = p_name AND o.item >= 0
              AND o.state IN ('ready', 'published', 'claimed'))::integer) ELSE v.fan_out END
    WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = -1 RETURNING s.* INTO v;
    IF v_left > 0 THEN
        PERFORM loomq_tell(p_goal, 'stage_fanned_out', p_name, -1, jsonb_build_object('items', v.fan_out));
    ELSE
        UPDATE stages s SET state = 'done', ended_at = clock_timestamp(), lease_until = NULL, error = NULL
        WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = -1 RETURNING s.* INTO v;
        PERFORM loomq_tell(p_goal, 'stage_completed', p_name, -1, NULL);
        SELECT a.ready, a.goal_ended INTO v_ready, v_ended FROM loomq_after(v, p_room, '{}') AS a;
    END IF;
    RETURN QUERY SELECT 'accepted', v_ready, v_ended, true, false;
END $$;

-- Put a claimed stage aside whose work is a goal of its own: it stays claimed by that goal's id, without a lease, until
-- the goal has ended.
-- delegated · fenced (it is no longer this token's) · ended (its own goal).
CREATE FUNCTION loomq_delegate(p_goal uuid, p_name text, p_item integer, p_token uuid, p_child uuid)
RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM stages s WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = p_item AND s.state = 'claimed'
        AND s.token IN (p_token, p_child) FOR UPDATE;
    IF NOT FOUND THEN
        RETURN 'fenced';
    ELSIF (SELECT g.state FROM goals g WHERE g.id = p_goal FOR SHARE) <> 'open' THEN
        UPDATE stages s SET state = 'cancelled', lease_until = NULL, ended_at = clock_timestamp(), reason = 'goal ended'
        WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = p_item;
        PERFORM loomq_end_part(p_child, p_goal);
        RETURN 'ended';
    END IF;
    UPDATE stages s SET token = p_child, node = NULL, pid = NULL, lease_until = loomq_never()
    WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = p_item;
    RETURN 'delegated';
END $$;
