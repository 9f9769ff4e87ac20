-- Say what keeps a stage from being claimed now: the semaphore of its worker or of its tier is taken. NULL if nothing
-- does. A semaphore is counted from the stages that processes have in hand, so that its slots come back with their
-- leases; whoever counts holds its lock until its own claim is there to be counted.
-- p_limits: {"name": the worker that they are of, "worker": slots, "tiers": {tier: slots}, "override": the worker's tier
-- by the router's rules, "moved": {worker: tier} of all such workers}.
CREATE FUNCTION loomq_no_slot(p_goal uuid, p_name text, p_item integer, p_limits jsonb)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_worker text;
    v_tier text;
    v_most integer;
    v_count integer;
BEGIN
    SELECT s.worker, coalesce(p_limits ->> 'override', s.tier) INTO v_worker, v_tier FROM stages s
    WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = p_item AND s.state IN ('ready', 'published');
    IF NOT FOUND THEN
        RETURN NULL;  -- there is nothing to claim, or it is claimed by the same call already
    END IF;
    -- The tier before the worker: everybody locks in this order.
    v_most := (p_limits -> 'tiers' ->> v_tier)::integer;
    IF v_most IS NOT NULL THEN
        PERFORM pg_advisory_xact_lock(hashtextextended('loomq_slots tier ' || v_tier, 0));
        SELECT loomq_running_in(v_tier, p_limits -> 'moved') INTO v_count;
        IF v_count >= v_most THEN
            RETURN format('tier %s has %s at work, its max_concurrent', v_tier, v_count);
        END IF;
    END IF;
    v_most := (p_limits ->> 'worker')::integer;
    IF v_most IS NOT NULL AND v_worker = p_limits ->> 'name' THEN
        PERFORM pg_advisory_xact_lock(hashtextextended('loomq_slots worker ' || v_worker, 0));
        SELECT loomq_running_of(v_worker) INTO v_count;
        IF v_count >= v_most THEN
            RETURN format('worker %s has %s at work, its max_concurrent', v_worker, v_count);
        END IF;
    END IF;
    RETURN NULL;
END $$;

-- How many stages of a worker are in some process's hands.
CREATE FUNCTION loomq_running_of(p_worker text) RETURNS integer LANGUAGE plpgsql STABLE
SET enable_seqscan = off AS $$
BEGIN
    RETURN (SELECT count(*) FROM stages s WHERE s.state = 'claimed' AND s.node IS NOT NULL AND s.worker = p_worker
              AND s.tier IN ('local', 'standard', 'frontier'));
END $$;

-- The same for a tier; p_moved names the workers that the router's rules send to another one than was asked.
CREATE FUNCTION loomq_running_in(p_tier text, p_moved jsonb) RETURNS integer LANGUAGE plpgsql STABLE
SET enable_seqscan = off AS $$
BEGIN
    IF coalesce(p_moved, '{}') = '{}' THEN
        RETURN (SELECT count(*) FROM stages s
                WHERE s.state = 'claimed' AND s.node IS NOT NULL AND s.tier = p_tier);
    END IF;
    RETURN (SELECT count(*) FROM stages s WHERE s.state = 'claimed' AND s.node IS NOT NULL
              AND coalesce(p_moved ->> s.worker, s.tier) = p_tier);
END $$;

-- As loomq_claim_3, under the limits on concurrency of the stage's worker and tier; what finds no free slot is ready
-- again, in its place in the order. Tells which rates somebody has set by hand.
CREATE FUNCTION loomq_claim_4(p_goal uuid, p_name text, p_item integer, p_token uuid, p_node uuid, p_pid integer,
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

-- Put a claimed stage back that a limit keeps waiting: uncounted, and in its place in the order.
CREATE FUNCTION loomq_hold(p_goal uuid, p_name text, p_item integer, p_token uuid, p_reason text, p_wait_s double precision)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v_state text;
BEGIN
    PERFORM 1 FROM stages s
    WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = p_item AND s.state = 'claimed' AND s.token = p_token
      AND s.node IS NOT NULL FOR UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    v_state := loomq_state_back(p_goal, p_name, p_item);
    UPDATE stages s SET
        state = v_state, deliveries = s.deliveries - 1, token = NULL, lease_until = NULL, published_at = NULL,
        started_at = NULL, reason = p_reason, priority = coalesce(s.raised_from, s.priority), raised_from = NULL,
        not_before = CASE WHEN p_wait_s > 0 THEN clock_timestamp() + make_interval(secs => p_wait_s) END
    WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = p_item;
    PERFORM loomq_tell(p_goal, CASE v_state WHEN 'ready' THEN 'stage_held' ELSE 'stage_cancelled' END, p_name, p_item,
                       jsonb_build_object('reason', p_reason));
    RETURN true;
END $$;

-- Take a slot of a concurrency key for a claimed stage, or put the stage back until one is free.
-- entered · held · fenced.
CREATE FUNCTION loomq_enter(p_goal uuid, p_name text, p_item integer, p_token uuid, p_key text, p_most integer)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_count integer;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('loomq_key ' || p_key, 0));
    SELECT count(*) INTO v_count FROM stages s
    WHERE s.limit_key = p_key AND s.state = 'claimed' AND s.token <> p_token;
    IF v_count < p_most THEN
        UPDATE stages s SET limit_key = p_key, limit_max = p_most
        WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = p_item AND s.state = 'claimed' AND s.token = p_token;
        RETURN CASE WHEN FOUND THEN 'entered' ELSE 'fenced' END;
    END IF;
    IF NOT loomq_hold(p_goal, p_name, p_item, p_token, format('waits for its concurrency key, "%s"', p_key), 0) THEN
        RETURN 'fenced';
    END IF;
    UPDATE stages s SET limit_key = p_key, limit_max = p_most, wants_key = true, not_before = loomq_never()
    WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = p_item AND s.state = 'ready';
    RETURN 'held';
END $$;

-- Let as many of those go that wait for a concurrency key as it has free slots, the most urgent and oldest first.
CREATE FUNCTION loomq_wake(p_key text) RETURNS integer LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    v_count integer;
BEGIN
    -- Paused goals, and those that wait for their turn, are let go by whoever resumes or admits them.
    WITH next AS (
        SELECT s.goal_id, s.name, s.item FROM stages s JOIN goals g ON g.id = s.goal_id
        WHERE s.state = 'ready' AND s.wants_key AND s.limit_key = p_key
          AND g.paused_at IS NULL AND g.admitted_at IS NOT NULL
        ORDER BY s.priority DESC, s.ready_at
        LIMIT greatest(0,
            (SELECT m.limit_max FROM stages m WHERE m.state = 'ready' AND m.wants_key AND m.limit_key = p_key
             ORDER BY m.priority DESC, m.ready_at LIMIT 1)
            - (SELECT count(*) FROM stages h WHERE h.limit_key = p_key AND h.state = 'claimed'))
        FOR UPDATE OF s SKIP LOCKED
    )
    UPDATE stages s SET not_before = NULL, wants_key = false FROM next n
    WHERE s.goal_id = n.goal_id AND s.name = n.name AND s.item = n.item;
    GET DIAGNOSTICS v_count = ROW_COUNT;
    RETURN v_count;
END $$;

-- The same for every key that somebody waits for: a holder may have died, or have failed.
CREATE FUNCTION loomq_wake_all() RETURNS integer LANGUAGE sql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
    WITH RECURSIVE wanted AS (
        (SELECT s.limit_key FROM stages s WHERE s.state = 'ready' AND s.wants_key ORDER BY s.limit_key LIMIT 1)
        UNION ALL
        SELECT n.* FROM wanted w CROSS JOIN LATERAL (
            SELECT s.limit_key FROM stages s
            WHERE s.state = 'ready' AND s.wants_key AND s.limit_key > w.limit_key
            ORDER BY s.limit_key LIMIT 1) AS n
    )
    SELECT coalesce(sum(loomq_wake(w.limit_key)), 0)::integer FROM wanted w
$$;

-- Take waiting stages of routes that share limits, as many as may start now; nothing if somebody else does so just now.
-- What is published already counts against what may start: it will take its share when it is claimed. But where messages of
-- one route wait for busy nodes, each of the others may still have one: whoever claims first has it.
-- Arrays by route; NULL is no limit.
-- p_grants: how often the worker's rate lets it start now; p_most: its slots.
-- p_group_grants, p_group_most: the same for the tier, if it is the tier that they share.
CREATE FUNCTION loomq_feed(p_group text, p_workers text[], p_tiers text[], p_free integer[], p_grants integer[],
                           p_most integer[], p_group_grants integer, p_tier text, p_group_most integer, p_moved jsonb,
                           p_limit integer, p_age_s double precision, p_share double precision)
RETURNS TABLE (goal_id uuid, name text, item integer, worker text, tier text, priority smallint, bulk boolean,
               task_id text, canvas jsonb)
LANGUAGE plpgsql AS $$
DECLARE
    v_out integer[] := '{}';
    v_all integer := 0;
    v_may integer := least(p_limit, p_group_grants);
    v_here integer;
    v_free integer[] := p_free;
    v_waited_s double precision;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('loomq_feed ' || p_group, 0)) THEN
        RETURN;
    END IF;
    IF p_group_most IS NOT NULL THEN
        v_may := least(v_may, p_group_most - loomq_running_in(p_tier, p_moved));
    END IF;
    FOR at IN 1..cardinality(p_workers) LOOP
        v_out[at] := (SELECT count(*) FROM stages s
                      WHERE s.state = 'published' AND s.worker = p_workers[at] AND s.tier = p_tiers[at]);
        v_all := v_all + v_out[at];
    END LOOP;
    FOR at IN 1..cardinality(p_workers) LOOP
        v_here := least(p_grants[at], p_most[at] - loomq_running_of(p_workers[at])) - v_out[at];
        IF v_may <= v_all THEN
            v_here := least(v_here, CASE WHEN v_out[at] = 0 THEN 1 ELSE 0 END);
        END IF;
        IF v_here IS NOT NULL THEN
            FOR urgency IN 8 * at - 7 .. 8 * at LOOP
                v_free[urgency] := least(v_free[urgency], v_here);
            END LOOP;
        END IF;
    END LOOP;
    IF v_may > v_all THEN
        v_may := v_may - v_all;
    END IF;
    IF v_may <= 0 THEN
        RETURN;
    END IF;
    FOR goal_id, name, item, worker, tier, priority, bulk, task_id, canvas IN
        SELECT * FROM loomq_take_ready_2(p_workers, p_tiers, v_free, v_may, p_age_s, p_share)
    LOOP
        -- What waited under a limit is to be seen afterwards.
        SELECT extract(epoch FROM clock_timestamp() - s.ready_at) INTO v_waited_s FROM stages s
        WHERE s.goal_id = loomq_feed.goal_id AND s.name = loomq_feed.name AND s.item = loomq_feed.item;
        PERFORM loomq_tell(goal_id, 'stage_let_go', name, item, jsonb_build_object(
            'limit', p_group, 'waited_s', round(v_waited_s::numeric, 1))) WHERE v_waited_s >= 1;
        RETURN NEXT;
    END LOOP;
END $$;

-- Which of some routes have work that waits and is due.
CREATE FUNCTION loomq_hungry(p_workers text[], p_tiers text[]) RETURNS TABLE (worker text, tier text)
LANGUAGE sql AS $$
    SELECT r.worker, r.tier FROM unnest(p_workers, p_tiers) AS r (worker, tier)
    WHERE loomq_has_backlog(r.worker, r.tier)
$$;
