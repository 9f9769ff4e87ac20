-- As loomq_submit_2, and of a round's tasks their place in the plan and how many may be under way.
CREATE FUNCTION loomq_submit_3(p_goal jsonb, p_stages jsonb, p_key text, p_hash text, p_body jsonb)
RETURNS TABLE (outcome text, goal_id uuid) LANGUAGE plpgsql AS $$
DECLARE
    v_outcome text;
    v_goal uuid;
BEGIN
    SELECT s.outcome, s.goal_id INTO v_outcome, v_goal FROM loomq_submit_2(p_goal, p_stages, p_key, p_hash, p_body) AS s;
    IF v_outcome = 'created' AND p_goal ->> 'kind' = 'round' THEN
        UPDATE stages s SET place = x.place, max_parallel = x.max_parallel
        FROM jsonb_to_recordset(p_stages) AS x (name text, place integer, max_parallel integer)
        WHERE s.goal_id = v_goal AND s.item = -1 AND s.name = x.name AND s.place IS NULL;
    END IF;
    RETURN QUERY SELECT v_outcome, v_goal;
END $$;

-- As in 0004; what a round's window has to let go waits for that.
CREATE OR REPLACE FUNCTION loomq_count_down(p_goal uuid, p_children text[], p_room jsonb, p_carried text[])
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    v_ready jsonb;
BEGIN
    -- Locked in one order: two parents that complete at once must not wait for each other.
    WITH held AS (
        SELECT h.name, h.state, h.waits_for, h.worker || '.' || h.tier AS route, h.priority,
            h.place IS NOT NULL AS in_window FROM stages h
        WHERE h.goal_id = p_goal AND h.item = -1 AND h.name = ANY (p_children)
          AND h.state IN ('waiting', 'cancelled') AND h.waits_for > 0
        ORDER BY h.name FOR UPDATE
    ), numbered AS (
        SELECT held.*, held.name = ANY (p_carried) AS carried,
            row_number() OVER (
                PARTITION BY held.route, held.priority, held.waits_for = 1 AND held.state = 'waiting'
                    AND held.name <> ALL (p_carried) ORDER BY held.name) AS nth
        FROM held
    ), placed AS (
        SELECT n.*, n.carried OR n.waits_for = 1 AND n.state = 'waiting' AND NOT n.in_window
            AND n.nth <= coalesce(p_room ->> (n.route || '.' || n.priority), p_room ->> n.route, '0')::integer AS has_place
        FROM numbered n
    ), counted AS (
        -- A child that was cancelled with its goal counts down as well, for the day its goal is reopened.
        UPDATE stages c SET
            waits_for = c.waits_for - 1,
            state = CASE WHEN c.waits_for > 1 OR c.state = 'cancelled' OR placed.in_window THEN c.state
                         WHEN placed.has_place THEN 'published' ELSE 'ready' END,
            ready_at = CASE WHEN c.waits_for = 1 AND c.state = 'waiting' AND NOT placed.in_window
                            THEN clock_timestamp() END,
            published_at = CASE WHEN c.waits_for = 1 AND c.state = 'waiting' AND placed.has_place
                                THEN clock_timestamp() END,
            bulk = placed.has_place AND NOT placed.carried AND placed.nth > 1
        FROM placed WHERE c.goal_id = p_goal AND c.item = -1 AND c.name = placed.name
        RETURNING c.name, c.state, c.bulk
    )
    SELECT coalesce(jsonb_agg(jsonb_build_object('name', counted.name, 'state', counted.state, 'bulk', counted.bulk)), '[]')
    INTO v_ready FROM counted WHERE counted.state IN ('ready', 'published');
    RETURN v_ready;
END $$;

-- Let as many of a round's tasks go as its window has room for: by priority, then in the order of the plan. Gives their
-- names.
CREATE FUNCTION loomq_window(p_goal uuid) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
    v_free integer;
BEGIN
    -- One after the other, or two tasks that end at once would both let the same go, or count each other's twice.
    PERFORM 1 FROM goals g WHERE g.id = p_goal AND g.state = 'open' AND g.paused_at IS NULL FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    SELECT max(s.max_parallel) - count(*) FILTER (WHERE s.state IN ('ready', 'published', 'claimed')) INTO v_free
    FROM stages s WHERE s.goal_id = p_goal AND s.item = -1;
    RETURN QUERY
    WITH next AS (
        SELECT s.name FROM stages s
        WHERE s.goal_id = p_goal AND s.item = -1 AND s.state = 'waiting' AND s.waits_for = 0 AND s.place IS NOT NULL
        ORDER BY s.priority DESC, s.place LIMIT greatest(v_free, 0) FOR UPDATE
    )
    UPDATE stages s SET state = 'ready', ready_at = clock_timestamp() FROM next n
    WHERE s.goal_id = p_goal AND s.item = -1 AND s.name = n.name RETURNING s.name;
END $$;

-- Rounds of which more could be under way: whoever ended a task died before it let the next go, or the round was paused.
CREATE FUNCTION loomq_stuck_rounds(p_limit integer) RETURNS SETOF uuid LANGUAGE sql STABLE
SET enable_seqscan = off SET enable_bitmapscan = off AS $$
    WITH RECURSIVE waiting AS (
        (SELECT s.goal_id FROM stages s WHERE s.state = 'waiting' AND s.waits_for = 0 AND s.place IS NOT NULL
         ORDER BY s.goal_id LIMIT 1)
        UNION ALL
        SELECT n.* FROM waiting w CROSS JOIN LATERAL (
            SELECT s.goal_id FROM stages s
            WHERE s.state = 'waiting' AND s.waits_for = 0 AND s.place IS NOT NULL AND s.goal_id > w.goal_id
            ORDER BY s.goal_id LIMIT 1) AS n
    )
    SELECT w.goal_id FROM waiting w JOIN goals g ON g.id = w.goal_id
    WHERE g.state = 'open' AND g.paused_at IS NULL AND (
        SELECT count(*) FILTER (WHERE b.state IN ('ready', 'published', 'claimed')) < max(b.max_parallel)
        FROM stages b WHERE b.goal_id = w.goal_id AND b.item = -1)
    LIMIT p_limit
$$;

-- As loomq_claim_4 was; that one leaves what it does not know to newer nodes.
CREATE FUNCTION loomq_claim_5(p_goal uuid, p_name text, p_item integer, p_token uuid, p_node uuid, p_pid integer,
                              p_message text, p_lease_s double precision, p_limits jsonb)
RETURNS TABLE (snapshot text, instruction text, context jsonb, canvas jsonb, task_id text, priority smallint,
               attempt integer, deliveries integer, timeout_s double precision, max_retries integer, inputs jsonb,
               worker text, tier text, payload jsonb, element jsonb, parent_goal uuid, parent_stage text,
               parent_item integer, rates jsonb)
LANGUAGE plpgsql AS $$
DECLARE
    v_why text;
BEGIN
    IF p_limits IS NOT NULL THEN
        v_why := loomq_no_slot(p_goal, p_name, p_item, p_limits);
        IF v_why IS NOT NULL THEN
            UPDATE stages s SET state = 'ready', published_at = NULL, reason = v_why
            WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = p_item AND s.state IN ('ready', 'published')
              AND (s.not_before IS NULL OR s.not_before <= clock_timestamp());
            RETURN;
        END IF;
    END IF;
    RETURN QUERY
    SELECT c.*, (SELECT coalesce(jsonb_object_agg(o.name, o.rate), '{}') FROM limit_overrides o)
    FROM loomq_claim_3(p_goal, p_name, p_item, p_token, p_node, p_pid, p_message, p_lease_s) AS c;
END $$;

CREATE OR REPLACE FUNCTION loomq_claim_4(p_goal uuid, p_name text, p_item integer, p_token uuid, p_node uuid, p_pid integer,
                              p_message text, p_lease_s double precision, p_limits jsonb)
RETURNS TABLE (snapshot text, instruction text, context jsonb, canvas jsonb, task_id text, priority smallint,
               attempt integer, deliveries integer, timeout_s double precision, max_retries integer, inputs jsonb,
               worker text, tier text, payload jsonb, element jsonb, parent_goal uuid, parent_stage text,
               parent_item integer, rates jsonb)
LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM goals g WHERE g.id = p_goal AND g.kind IN ('orchestrator', 'round')) THEN
        UPDATE stages s SET
            state = 'ready', published_at = NULL, not_before = clock_timestamp() + interval '1 second',
            reason = 'for a newer node'
        WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = p_item AND s.state = 'published';
        RETURN;
    END IF;
    RETURN QUERY SELECT c.* FROM loomq_claim_5(p_goal, p_name, p_item, p_token, p_node, p_pid, p_message, p_lease_s,
                                               p_limits) AS c;
END $$;
