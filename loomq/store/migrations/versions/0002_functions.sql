-- As loomq_claim of 0001, and with it the input that somebody has put in place of the mapped one.
CREATE FUNCTION loomq_claim_2(p_goal uuid, p_name text, p_item integer, p_token uuid, p_node uuid, p_pid integer,
                              p_message text, p_lease_s double precision)
RETURNS TABLE (snapshot text, instruction text, context jsonb, canvas jsonb, task_id text, priority smallint,
               attempt integer, deliveries integer, timeout_s double precision, max_retries integer, inputs jsonb,
               tier text, payload jsonb)
LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY
    SELECT c.*, s.payload FROM loomq_claim(p_goal, p_name, p_item, p_token, p_node, p_pid, p_message, p_lease_s) AS c
    JOIN stages s ON s.goal_id = p_goal AND s.name = p_name AND s.item = p_item;
END $$;

-- As in 0001, and a goal that is being reopened is waited for: the failure that comes meanwhile must end it again.
CREATE OR REPLACE FUNCTION loomq_end_goal(p_goal uuid, p_state text, p_error jsonb)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v_task text;
    v_canvas jsonb;
BEGIN
    -- A statement of its own: the next one then sees what the holder of the lock has made of the goal.
    PERFORM 1 FROM goals g WHERE g.id = p_goal FOR UPDATE;
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

-- Keep a snapshot from being pruned until this transaction has ended; see loomq_prune_specs.
CREATE FUNCTION loomq_hold_spec(p_hash text) RETURNS void LANGUAGE sql AS $$
    SELECT pg_advisory_xact_lock_shared(hashtextextended('loomq spec ' || p_hash, 0))
$$;

-- As in 0001, and the snapshot stays for as long as the goal is being written.
CREATE OR REPLACE FUNCTION loomq_submit(p_goal jsonb, p_stages jsonb, p_key text, p_hash text, p_body jsonb)
RETURNS TABLE (outcome text, goal_id uuid) LANGUAGE plpgsql AS $$
DECLARE
    v_id uuid := (p_goal ->> 'id')::uuid;
    v_old uuid;
BEGIN
    PERFORM loomq_hold_spec(p_hash);
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

-- Delete snapshots that no goal runs from. Each is locked against the goals that are just being written, and looked at
-- again: what a goal found, it keeps; what a goal comes too late for, it brings along itself.
CREATE FUNCTION loomq_prune_specs(p_hashes text[]) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    v_free text[];
    v_count integer;
BEGIN
    SELECT array_agg(h) INTO v_free FROM unnest(p_hashes) AS h
    WHERE pg_try_advisory_xact_lock(hashtextextended('loomq spec ' || h, 0));
    DELETE FROM specs s WHERE s.hash = ANY (v_free) AND NOT EXISTS (SELECT 1 FROM goals g WHERE g.snapshot = s.hash);
    GET DIAGNOSTICS v_count = ROW_COUNT;
    RETURN v_count;
END $$;

-- Look at a dead letter before something is done to it, and hold its goal: whoever replays, edits, drops or ends waits.
-- verdict: letter · nothing (the stage has not failed, or works again) · dropped · ended (no way back to the goal, whose
-- state it is then) · missing.
CREATE FUNCTION loomq_hold_letter(p_goal uuid, p_name text, p_item integer)
RETURNS TABLE (verdict text, state text) LANGUAGE plpgsql AS $$
DECLARE
    g goals%ROWTYPE;
    v stages%ROWTYPE;
BEGIN
    -- The goal first, as whoever ends it does. No one waits for a goal with a failed or cancelled stage of it in hand.
    SELECT x.* INTO g FROM goals x WHERE x.id = p_goal FOR UPDATE;
    SELECT s.* INTO v FROM stages s WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = p_item;
    RETURN QUERY SELECT f.verdict, CASE f.verdict WHEN 'ended' THEN g.state ELSE v.state END
    FROM (SELECT CASE
        WHEN v.goal_id IS NULL THEN 'missing'
        WHEN v.state NOT IN ('failed', 'dead') THEN 'nothing'
        WHEN v.dropped_at IS NOT NULL THEN 'dropped'
        -- A goal that has counted all its leaves went on without the stage.
        WHEN g.state <> 'failed' OR g.leaves_left = 0 THEN 'ended'
        ELSE 'letter' END AS verdict) AS f;
END $$;

-- Set a dead letter going again, and its goal with it: every stage of the goal that failed is ready as if it were new,
-- and what was cancelled by the failure waits or is ready as it would have been. The same request may ask twice.
-- outcome: replayed · blocked (another stage of the goal was dropped, whose name `state` is) · loomq_hold_letter's verdict.
-- going: what was replayed, how many stages were reopened with it, and the routes whose queues can be topped up.
CREATE FUNCTION loomq_replay(p_goal uuid, p_name text, p_item integer, p_payload jsonb, p_actor text, p_request uuid)
RETURNS TABLE (outcome text, state text, going jsonb) LANGUAGE plpgsql AS $$
DECLARE
    v_verdict text;
    v_state text;
    v_at timestamptz;
    v_going jsonb;
    v_goal goals%ROWTYPE;
    v_before jsonb;
    v_group text;
BEGIN
    SELECT h.verdict, h.state INTO v_verdict, v_state FROM loomq_hold_letter(p_goal, p_name, p_item) AS h;
    SELECT a.detail -> 'going' INTO v_going FROM audit a WHERE a.id = p_request;
    IF FOUND THEN
        RETURN QUERY SELECT 'replayed', v_state, v_going;
        RETURN;
    END IF;
    IF v_verdict <> 'letter' THEN
        RETURN QUERY SELECT v_verdict, v_state, NULL::jsonb;
        RETURN;
    END IF;
    -- What was dropped is not to run again, and without it the goal could never end.
    SELECT s.name INTO v_state FROM stages s
    WHERE s.goal_id = p_goal AND s.state IN ('failed', 'dead') AND s.dropped_at IS NOT NULL LIMIT 1;
    IF FOUND THEN
        RETURN QUERY SELECT 'blocked', v_state, NULL::jsonb;
        RETURN;
    END IF;
    v_at := clock_timestamp();
    -- In the order in which a completion locks them.
    PERFORM 1 FROM stages s WHERE s.goal_id = p_goal AND s.state IN ('failed', 'dead', 'cancelled')
    ORDER BY s.name, s.item FOR UPDATE;
    SELECT s.payload INTO v_before FROM stages s WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = p_item;
    WITH again AS (
        UPDATE stages s SET
            state = 'ready', reason = 'replayed', attempt = 1, deliveries = 0, error = NULL, token = NULL,
            lease_until = NULL, not_before = NULL, ready_at = v_at, published_at = NULL, started_at = NULL,
            ended_at = NULL,
            payload = CASE WHEN s.name = p_name AND s.item = p_item THEN coalesce(p_payload, s.payload)
                           ELSE s.payload END,
            history = s.history || jsonb_build_object('replayed_at', v_at, 'by', p_actor, 'edited',
                s.payload IS NOT NULL OR p_payload IS NOT NULL AND s.name = p_name AND s.item = p_item)
        WHERE s.goal_id = p_goal AND s.state IN ('failed', 'dead')
        RETURNING s.*
    ), reopened AS (
        -- Also what came back from a worker after the goal's end: it was cancelled for no other reason.
        UPDATE stages s SET
            state = CASE WHEN s.waits_for = 0 THEN 'ready' ELSE 'waiting' END, reason = 'goal reopened', token = NULL,
            lease_until = NULL, ready_at = CASE WHEN s.waits_for = 0 THEN v_at END, published_at = NULL,
            started_at = NULL, ended_at = NULL
        WHERE s.goal_id = p_goal AND s.state = 'cancelled'
        RETURNING s.*
    )
    SELECT jsonb_build_object(
        'replayed', (SELECT jsonb_agg(jsonb_build_array(a.name, a.item) ORDER BY a.name, a.item) FROM again a),
        'reopened', (SELECT count(*) FROM reopened),
        'routes', (SELECT jsonb_agg(DISTINCT jsonb_build_array(x.worker, x.tier))
                   FROM (SELECT * FROM again UNION ALL SELECT * FROM reopened) AS x WHERE x.state = 'ready'))
    INTO v_going;
    SELECT g.* INTO v_goal FROM goals g WHERE g.id = p_goal;
    UPDATE goals g SET
        state = 'open', error = NULL, ended_at = NULL,
        deadline = CASE WHEN g.deadline > v_at THEN g.deadline END,
        follows = coalesce(g.canvas ?| ARRAY['chain', 'link', 'link_error'], false)
    WHERE g.id = p_goal;
    -- A user's chord that this call failed: its part is awaited again, and with it the body that was told of the failure.
    v_group := v_goal.canvas ->> 'group_id';
    IF v_group IS NOT NULL AND v_goal.canvas -> 'chord' IS NOT NULL THEN
        PERFORM 1 FROM chords c WHERE c.group_id = v_group FOR UPDATE;
        DELETE FROM chord_parts p WHERE p.group_id = v_group AND p.task_id = v_goal.task_id AND p.state <> 'SUCCESS';
        IF FOUND THEN
            UPDATE chords c SET dispatched_at = NULL WHERE c.group_id = v_group;
        END IF;
    END IF;
    INSERT INTO audit (id, actor, action, goal_id, stage, item, detail)
    VALUES (p_request, p_actor, 'replay', p_goal, p_name, p_item, jsonb_strip_nulls(jsonb_build_object(
        'going', v_going,
        'deadline_removed', CASE WHEN v_goal.deadline <= v_at THEN v_goal.deadline END))
        || CASE WHEN p_payload IS NULL THEN '{}'::jsonb
                ELSE jsonb_build_object('payload', p_payload, 'payload_before', v_before) END);
    RETURN QUERY SELECT 'replayed', 'ready', v_going;
END $$;

-- Put another input in place of a dead letter's, for the day it is replayed.
-- outcome: edited, or loomq_hold_letter's verdict.
CREATE FUNCTION loomq_edit(p_goal uuid, p_name text, p_item integer, p_payload jsonb, p_actor text, p_request uuid)
RETURNS TABLE (outcome text, state text) LANGUAGE plpgsql AS $$
DECLARE
    v_verdict text;
    v_state text;
    v_before jsonb;
BEGIN
    SELECT h.verdict, h.state INTO v_verdict, v_state FROM loomq_hold_letter(p_goal, p_name, p_item) AS h;
    IF v_verdict = 'letter' AND NOT EXISTS (SELECT 1 FROM audit a WHERE a.id = p_request) THEN
        SELECT s.payload INTO v_before FROM stages s WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = p_item;
        UPDATE stages s SET payload = p_payload WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = p_item;
        INSERT INTO audit (id, actor, action, goal_id, stage, item, detail)
        VALUES (p_request, p_actor, 'edit', p_goal, p_name, p_item,
                jsonb_build_object('payload', p_payload, 'payload_before', v_before));
    END IF;
    RETURN QUERY SELECT CASE v_verdict WHEN 'letter' THEN 'edited' ELSE v_verdict END, v_state;
END $$;

-- Say that nobody will replay a dead letter; its row stays until it is pruned.
-- outcome: dropped, or loomq_hold_letter's verdict (`dropped` as well if somebody has done it before).
CREATE FUNCTION loomq_drop(p_goal uuid, p_name text, p_item integer, p_actor text, p_request uuid)
RETURNS TABLE (outcome text, state text) LANGUAGE plpgsql AS $$
DECLARE
    v_verdict text;
    v_state text;
BEGIN
    SELECT h.verdict, h.state INTO v_verdict, v_state FROM loomq_hold_letter(p_goal, p_name, p_item) AS h;
    IF v_verdict IN ('letter', 'ended') THEN
        UPDATE stages s SET dropped_at = clock_timestamp()
        WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = p_item;
        INSERT INTO audit (id, actor, action, goal_id, stage, item)
        VALUES (p_request, p_actor, 'drop', p_goal, p_name, p_item);
        v_verdict := 'dropped';
    END IF;
    RETURN QUERY SELECT v_verdict, v_state;
END $$;
