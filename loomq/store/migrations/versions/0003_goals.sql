-- As loomq_submit, and with what goals and stages have learned since: admission, parents, sessions, fallbacks. A goal that
-- is one too many for its pipeline waits, its first stages put away, until loomq_admit lets it go.
CREATE FUNCTION loomq_submit_2(p_goal jsonb, p_stages jsonb, p_key text, p_hash text, p_body jsonb)
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
        needs = coalesce(x.needs, '{}'), fallback = x.fallback,
        not_before = CASE WHEN v_limited AND s.state = 'ready' THEN loomq_never() ELSE s.not_before END,
        reason = CASE WHEN v_limited AND s.state = 'ready' THEN 'max_concurrent_goals' END
    FROM jsonb_to_recordset(p_stages) AS x (name text, needs text[], fallback jsonb)
    WHERE s.goal_id = v_id AND s.item = -1 AND s.name = x.name
      AND (v_limited OR x.needs <> '{}' OR x.fallback IS NOT NULL);
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

-- Let as many waiting goals of a pipeline go as it may have under way: by priority, then by age. The newest goal's limit
-- counts, so that a changed file holds for all of them.
CREATE FUNCTION loomq_admit(p_pipeline text) RETURNS SETOF uuid LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    v_limit integer;
    v_running integer;
    v_goal goals%ROWTYPE;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('loomq_admit ' || p_pipeline, 0));
    SELECT g.max_concurrent INTO v_limit FROM goals g
    WHERE g.pipeline = p_pipeline AND g.state = 'open' AND g.max_concurrent IS NOT NULL ORDER BY g.id DESC LIMIT 1;
    SELECT count(*) INTO v_running FROM goals g
    WHERE g.pipeline = p_pipeline AND g.state = 'open' AND g.max_concurrent IS NOT NULL AND g.admitted_at IS NOT NULL;
    FOR v_goal IN
        SELECT g.* FROM goals g
        WHERE g.pipeline = p_pipeline AND g.state = 'open' AND g.admitted_at IS NULL AND g.paused_at IS NULL
        ORDER BY g.priority DESC, g.id LIMIT greatest(v_limit - v_running, 0)
    LOOP
        UPDATE goals g SET
            admitted_at = clock_timestamp(),
            deadline = CASE WHEN g.timeout_s IS NULL THEN g.deadline
                            ELSE least(g.deadline, clock_timestamp() + make_interval(secs => g.timeout_s)) END
        WHERE g.id = v_goal.id AND g.state = 'open' AND g.paused_at IS NULL;
        CONTINUE WHEN NOT FOUND;  -- it ended, or was paused, in this moment
        UPDATE stages s SET not_before = NULL, reason = NULL, ready_at = clock_timestamp()
        WHERE s.goal_id = v_goal.id AND s.state = 'ready' AND s.not_before = loomq_never();
        PERFORM loomq_tell(v_goal.id, 'goal_admitted', NULL, NULL, NULL);
        RETURN NEXT v_goal.id;
    END LOOP;
END $$;

-- Start nothing more of a goal: what runs goes on to its end, what is ready is put away. False if it has ended.
CREATE FUNCTION loomq_pause(p_goal uuid) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v_before timestamptz;
BEGIN
    SELECT g.paused_at INTO v_before FROM goals g WHERE g.id = p_goal AND g.state = 'open' FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE goals g SET paused_at = clock_timestamp() WHERE g.id = p_goal AND g.paused_at IS NULL;
    -- What somebody has in hand is not waited for: it is put away when it is claimed.
    UPDATE stages s SET state = 'ready', not_before = loomq_never(), reason = 'paused', published_at = NULL
    FROM (SELECT f.name, f.item FROM stages f WHERE f.goal_id = p_goal AND f.state IN ('ready', 'published')
          FOR UPDATE SKIP LOCKED) AS f
    WHERE s.goal_id = p_goal AND s.name = f.name AND s.item = f.item;
    PERFORM loomq_tell(p_goal, 'goal_paused', NULL, NULL, NULL) WHERE v_before IS NULL;
    PERFORM loomq_pause(c.id) FROM goals c WHERE c.parent_goal = p_goal AND c.state = 'open';
    RETURN true;
END $$;

-- Let a paused goal go on. False if it was not paused, or has ended.
CREATE FUNCTION loomq_resume(p_goal uuid) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    g goals%ROWTYPE;
BEGIN
    UPDATE goals x SET paused_at = NULL WHERE x.id = p_goal AND x.state = 'open' AND x.paused_at IS NOT NULL
    RETURNING x.* INTO g;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    IF g.admitted_at IS NOT NULL THEN
        UPDATE stages s SET not_before = NULL, reason = NULL
        WHERE s.goal_id = p_goal AND s.state = 'ready' AND s.not_before = loomq_never();
    ELSE
        UPDATE stages s SET reason = 'max_concurrent_goals'
        WHERE s.goal_id = p_goal AND s.state = 'ready' AND s.not_before = loomq_never();
        PERFORM loomq_admit(g.pipeline);
    END IF;
    PERFORM loomq_tell(p_goal, 'goal_resumed', NULL, NULL, NULL);
    PERFORM loomq_resume(c.id) FROM goals c WHERE c.parent_goal = p_goal AND c.state = 'open';
    RETURN true;
END $$;

-- End a goal with the one that it is a part of.
CREATE FUNCTION loomq_end_part(p_goal uuid, p_parent uuid) RETURNS boolean LANGUAGE sql AS $$
    SELECT loomq_end_goal(p_goal, 'cancelled', jsonb_build_object(
        'type', 'GoalCancelledError', 'message', format('the goal %s that it was a part of has ended', p_parent),
        'retryable', false))
$$;

-- As in 0002, and with the goals that are the work of this one's stages.
CREATE OR REPLACE FUNCTION loomq_end_goal(p_goal uuid, p_state text, p_error jsonb)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    g goals%ROWTYPE;
BEGIN
    -- A statement of its own: the next one then sees what the holder of the lock has made of the goal.
    PERFORM 1 FROM goals x WHERE x.id = p_goal FOR UPDATE;
    UPDATE goals x SET state = p_state, error = p_error, ended_at = clock_timestamp()
    WHERE x.id = p_goal AND x.state = 'open' RETURNING x.* INTO g;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    -- In the order in which a completion locks them: a stage that waits for its items, or for a goal, before its children.
    PERFORM 1 FROM stages s WHERE s.goal_id = p_goal
        AND (s.state IN ('waiting', 'ready', 'published') OR s.state = 'claimed' AND s.node IS NULL)
    ORDER BY s.state = 'claimed' DESC, s.name, s.item FOR UPDATE;
    UPDATE stages s SET
        state = 'cancelled', reason = 'goal ' || p_state, ended_at = clock_timestamp(), lease_until = NULL,
        waits_for = CASE WHEN s.state = 'claimed' THEN 0 ELSE s.waits_for END
    WHERE s.goal_id = p_goal
      AND (s.state IN ('waiting', 'ready', 'published') OR s.state = 'claimed' AND s.node IS NULL);
    IF g.canvas ->> 'group_id' IS NOT NULL AND g.canvas -> 'chord' IS NOT NULL THEN
        PERFORM loomq_chord_part(g.canvas ->> 'group_id', g.task_id, coalesce((g.canvas ->> 'group_index')::integer, 0),
                                 'FAILURE', p_error);
    END IF;
    PERFORM loomq_tell(p_goal, 'goal_' || p_state, NULL, NULL, p_error);
    PERFORM loomq_end_part(c.id, p_goal) FROM goals c WHERE c.parent_goal = p_goal AND c.state = 'open';
    PERFORM loomq_answer(p_goal, g.session_id) WHERE p_state = 'done';
    PERFORM pg_notify('loomq_ended', p_goal::text || ' ' || coalesce(g.task_id, ''));
    RETURN true;
END $$;

-- Goals that ended as the work of a stage which has not heard of it.
CREATE FUNCTION loomq_unheard(p_limit integer) RETURNS SETOF uuid LANGUAGE sql STABLE
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
    SELECT g.id FROM stages s JOIN goals g ON g.id = s.token
    WHERE s.state = 'claimed' AND s.node IS NULL AND g.parent_goal = s.goal_id AND g.state <> 'open' LIMIT p_limit
$$;

-- As loomq_survey, and whether a stage has not heard of the end of its goal, and which pipelines have goals that wait.
CREATE FUNCTION loomq_survey_2(p_stale_s double precision)
RETURNS TABLE (uptime_s double precision, expired boolean, overdue boolean, chords boolean, calls boolean,
               ready jsonb, published jsonb, unheard boolean, waiting jsonb)
LANGUAGE sql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
    WITH RECURSIVE waiting AS (
        (SELECT g.pipeline FROM goals g WHERE g.state = 'open' AND g.admitted_at IS NULL ORDER BY g.pipeline LIMIT 1)
        UNION ALL
        SELECT n.* FROM waiting w CROSS JOIN LATERAL (
            SELECT g.pipeline FROM goals g WHERE g.state = 'open' AND g.admitted_at IS NULL AND g.pipeline > w.pipeline
            ORDER BY g.pipeline LIMIT 1) AS n
    )
    SELECT s.*, EXISTS (SELECT 1 FROM loomq_unheard(1)),
        (SELECT coalesce(jsonb_agg(w.pipeline), '[]') FROM waiting w)
    FROM loomq_survey(p_stale_s) AS s
$$;

-- Whether a stage has its result, whatever became of its items.
CREATE FUNCTION loomq_has_ended_well(p_goal uuid, p_name text) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT 1 FROM stages s
                   WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = -1 AND s.state IN ('done', 'skipped'))
$$;

-- As in 0002, for goals and stages that have learned to go on after a failure.
CREATE OR REPLACE FUNCTION loomq_hold_letter(p_goal uuid, p_name text, p_item integer)
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
        -- A goal that has counted all its leaves went on without the stage; so did one that goes on after failures, and
        -- the stage of an item that was not missed. A part of another goal is replayed by the stage that it was the work of.
        WHEN g.state <> 'failed' OR g.leaves_left = 0 OR g.on_failure <> 'fail' OR g.parent_goal IS NOT NULL
            OR p_item >= 0 AND loomq_has_ended_well(p_goal, p_name) THEN 'ended'
        ELSE 'letter' END AS verdict) AS f;
END $$;

-- As in 0002, and told. Items are left to their stage, which fans out again and keeps those that are done; a goal of a
-- limited pipeline waits for its turn once more.
CREATE OR REPLACE FUNCTION loomq_replay(p_goal uuid, p_name text, p_item integer, p_payload jsonb, p_actor text, p_request uuid)
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
    WHERE s.goal_id = p_goal AND s.state IN ('failed', 'dead') AND s.dropped_at IS NOT NULL
      AND NOT (s.item >= 0 AND loomq_has_ended_well(p_goal, s.name)) LIMIT 1;
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
            -- An item waits, cancelled, for its stage to fan out again.
            state = CASE WHEN s.item < 0 THEN 'ready' ELSE 'cancelled' END, reason = 'replayed', attempt = 1,
            deliveries = 0, error = NULL, token = NULL,
            lease_until = NULL, not_before = NULL, ready_at = v_at, published_at = NULL, started_at = NULL,
            ended_at = NULL,
            payload = CASE WHEN s.name = p_name AND s.item = p_item THEN coalesce(p_payload, s.payload)
                           ELSE s.payload END,
            history = s.history || jsonb_build_object('replayed_at', v_at, 'by', p_actor, 'edited',
                s.payload IS NOT NULL OR p_payload IS NOT NULL AND s.name = p_name AND s.item = p_item)
        WHERE s.goal_id = p_goal AND s.state IN ('failed', 'dead')
          AND NOT (s.item >= 0 AND loomq_has_ended_well(p_goal, s.name))
        RETURNING s.*
    ), reopened AS (
        -- Also what came back from a worker after the goal's end: it was cancelled for no other reason.
        UPDATE stages s SET
            state = CASE WHEN s.waits_for = 0 THEN 'ready' ELSE 'waiting' END, reason = 'goal reopened', token = NULL,
            lease_until = NULL, ready_at = CASE WHEN s.waits_for = 0 THEN v_at END, published_at = NULL,
            started_at = NULL, ended_at = NULL
        WHERE s.goal_id = p_goal AND s.item = -1 AND s.state = 'cancelled'
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
        follows = coalesce(g.canvas ?| ARRAY['chain', 'link', 'link_error'], false), paused_at = NULL,
        admitted_at = CASE WHEN g.max_concurrent IS NULL THEN g.admitted_at END
    WHERE g.id = p_goal;
    IF v_goal.max_concurrent IS NOT NULL THEN
        UPDATE stages s SET not_before = loomq_never(), reason = 'max_concurrent_goals'
        WHERE s.goal_id = p_goal AND s.state = 'ready';
        PERFORM loomq_admit(v_goal.pipeline);
    END IF;
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
    PERFORM loomq_tell(p_goal, 'goal_replayed', NULL, NULL,
                       jsonb_build_object('stages', v_going -> 'replayed', 'by', p_actor, 'request', p_request));
    RETURN QUERY SELECT 'replayed', 'ready', v_going;
END $$;
