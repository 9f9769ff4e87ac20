-- What the sweeper reads each second and what picks work from a backlog: each costs the same however much waits. So that
-- they also do when statistics are old, or a plan was made while the table was small, they are held to ordered indexes.

-- Stages that are ready now, apart from those that are ready later, which a top-up would read again and again.
DROP INDEX stages_ready;
CREATE INDEX stages_ready ON stages (worker, tier, priority DESC, ready_at) WHERE state = 'ready' AND not_before IS NULL;
CREATE INDEX stages_delayed ON stages (worker, tier, not_before) WHERE state = 'ready' AND not_before IS NOT NULL;

-- By priority too: a message is only overtaken by one that was no more urgent.
DROP INDEX stages_published;
CREATE INDEX stages_published ON stages (worker, tier, priority, published_at) WHERE state = 'published';

CREATE INDEX goals_deadline ON goals (deadline) WHERE state = 'open' AND deadline IS NOT NULL;
CREATE INDEX chords_open ON chords (created_at) WHERE dispatched_at IS NULL;

-- For people: who leads, since when, and when it last said so.
ALTER TABLE leases ADD COLUMN who text, ADD COLUMN since timestamptz, ADD COLUMN renewed_at timestamptz;

-- Take or keep a leadership; gives what the leaders before remembered, or null if somebody else leads.
CREATE FUNCTION loomq_lead(p_name text, p_holder uuid, p_lease_s double precision, p_who text)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    v_memory jsonb;
BEGIN
    -- Most who ask do not lead, and they ask each second: they write nothing.
    IF EXISTS (SELECT 1 FROM leases l
               WHERE l.name = p_name AND l.holder <> p_holder AND l.until >= clock_timestamp()) THEN
        RETURN NULL;
    END IF;
    -- A renewal lost with the server ends a leadership early, which it may at any time.
    PERFORM set_config('synchronous_commit', 'off', true);
    INSERT INTO leases AS l (name, holder, until, who, since, renewed_at)
    VALUES (p_name, p_holder, clock_timestamp() + make_interval(secs => p_lease_s), p_who, clock_timestamp(),
            clock_timestamp())
    ON CONFLICT (name) DO UPDATE SET
        holder = excluded.holder, until = excluded.until, who = excluded.who, renewed_at = excluded.renewed_at,
        since = CASE WHEN l.holder = excluded.holder THEN coalesce(l.since, excluded.since) ELSE excluded.since END
    WHERE l.holder = excluded.holder OR l.until < clock_timestamp()
    RETURNING l.memory INTO v_memory;
    RETURN v_memory;
END $$;

-- Say what there is to repair, from partial indexes alone: from each, one entry a route.
-- ready: [worker, tier] of stages that are due; published: [worker, tier, priority, age of the oldest in seconds].
CREATE FUNCTION loomq_survey(p_stale_s double precision)
RETURNS TABLE (uptime_s double precision, expired boolean, overdue boolean, chords boolean, calls boolean,
               ready jsonb, published jsonb)
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
        (SELECT s.worker, s.tier, s.priority, s.published_at FROM stages s WHERE s.state = 'published'
         ORDER BY s.worker, s.tier, s.priority, s.published_at LIMIT 1)
        UNION ALL
        SELECT n.* FROM sent d CROSS JOIN LATERAL (
            SELECT s.worker, s.tier, s.priority, s.published_at FROM stages s
            WHERE s.state = 'published' AND (s.worker, s.tier, s.priority) > (d.worker, d.tier, d.priority)
            ORDER BY s.worker, s.tier, s.priority, s.published_at LIMIT 1) AS n
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
        (SELECT coalesce(jsonb_agg(jsonb_build_array(
            d.worker, d.tier, d.priority, extract(epoch FROM v_now - d.published_at))), '[]') FROM sent d);
END $$;

-- As in 0001, and what is ready later is no work that waits.
CREATE OR REPLACE FUNCTION loomq_complete(p_goal uuid, p_name text, p_item integer, p_token uuid, p_output jsonb, p_model text,
                               p_tokens jsonb, p_ms integer, p_room jsonb, p_carried text[],
                               p_chord text, p_position integer)
RETURNS TABLE (outcome text, ready jsonb, goal_ended boolean, backlog boolean, chord_full boolean)
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
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
        EXISTS (SELECT 1 FROM stages w WHERE w.state = 'ready' AND w.worker = v.worker AND w.tier = v.tier
                AND w.not_before IS NULL)
        OR EXISTS (SELECT 1 FROM stages w WHERE w.state = 'ready' AND w.worker = v.worker AND w.tier = v.tier
                   AND w.not_before <= now()), v_full;
END $$;

-- As in 0001, and what was delayed joins the queue when its time has come; the rows come in the order to send them in.
CREATE OR REPLACE FUNCTION loomq_take_ready(p_worker text, p_tier text, p_limit integer)
RETURNS TABLE (goal_id uuid, name text, item integer, priority smallint, task_id text, canvas jsonb)
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    v_reach integer := greatest(p_limit * 8, 2000);
    v_now timestamptz := clock_timestamp();  -- in a variable: an index is not searched for a function's every value
BEGIN
    UPDATE stages s SET not_before = NULL FROM (
        SELECT d.goal_id, d.name, d.item FROM stages d
        WHERE d.state = 'ready' AND d.worker = p_worker AND d.tier = p_tier AND d.not_before <= v_now
        ORDER BY d.not_before LIMIT v_reach FOR UPDATE SKIP LOCKED
    ) AS d WHERE s.goal_id = d.goal_id AND s.name = d.name AND s.item = d.item;
    RETURN QUERY
    WITH oldest AS (
        SELECT s.goal_id, s.name, s.item, s.priority, s.ready_at FROM stages s
        WHERE s.state = 'ready' AND s.worker = p_worker AND s.tier = p_tier AND s.not_before IS NULL
        ORDER BY s.priority DESC, s.ready_at LIMIT v_reach
    ), fair AS (
        SELECT o.*, row_number() OVER (PARTITION BY o.goal_id, o.priority ORDER BY o.ready_at) AS turn FROM oldest o
    ), picked AS (
        SELECT s.goal_id, s.name, s.item, f.turn, f.ready_at FROM stages s
        JOIN (SELECT * FROM fair f ORDER BY f.priority DESC, f.turn, f.ready_at LIMIT p_limit) f
          ON s.goal_id = f.goal_id AND s.name = f.name AND s.item = f.item
        WHERE s.state = 'ready'
        FOR UPDATE OF s SKIP LOCKED
    ), taken AS (
        UPDATE stages s SET state = 'published', published_at = clock_timestamp()
        FROM picked p WHERE s.goal_id = p.goal_id AND s.name = p.name AND s.item = p.item
        RETURNING s.goal_id, s.name, s.item, s.priority, p.turn, p.ready_at
    )
    SELECT t.goal_id, t.name, t.item, t.priority, g.task_id, g.canvas FROM taken t JOIN goals g ON g.id = t.goal_id
    ORDER BY t.priority DESC, t.turn, t.ready_at;
END $$;
