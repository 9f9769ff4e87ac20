-- As in 0004, and what it costs grows with what is taken and no longer with its square.
CREATE OR REPLACE FUNCTION loomq_take_ready_2(p_workers text[], p_tiers text[], p_free integer[], p_limit integer,
                                   p_age_s double precision, p_share double precision)
RETURNS TABLE (goal_id uuid, name text, item integer, worker text, tier text, priority smallint, bulk boolean,
               task_id text, canvas jsonb)
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    v_at integer;
    v_now timestamptz := clock_timestamp();  -- in a variable: an index is not searched for a function's every value
    v_goals integer := greatest(p_limit, 64 / cardinality(p_workers), 4);
    -- What may be raised, over all routes together; whose turn it is among them is left to chance.
    v_may integer := floor(p_limit * p_share + random());
    v_raised integer := 0;
    v_from integer := floor(random() * cardinality(p_workers));
    v_messages jsonb;
    v_firsts jsonb;
BEGIN
    FOR nth IN 1..cardinality(p_workers) LOOP
        v_at := 1 + (v_from + nth) % cardinality(p_workers);
        UPDATE stages s SET not_before = NULL FROM (
            SELECT d.goal_id, d.name, d.item FROM stages d
            WHERE d.state = 'ready' AND d.worker = p_workers[v_at] AND d.tier = p_tiers[v_at] AND d.not_before <= v_now
            ORDER BY d.not_before LIMIT greatest(p_limit * 8, 2000) FOR UPDATE SKIP LOCKED
        ) AS d WHERE s.goal_id = d.goal_id AND s.name = d.name AND s.item = d.item;
        v_raised := v_raised
            + loomq_promote(p_workers[v_at], p_tiers[v_at], least(v_may - v_raised, p_free[8 * v_at]), p_age_s);
    END LOOP;
    -- What goals have on the queues already, to be looked up: without a hash join every one would be compared with every other.
    SELECT jsonb_object_agg(o.key, o.messages), jsonb_object_agg(o.key, o.firsts) INTO v_messages, v_firsts FROM (
        SELECT r.at || ' ' || s.goal_id AS key, count(*) AS messages, count(*) FILTER (WHERE NOT s.bulk) AS firsts
        FROM generate_subscripts(p_workers, 1) AS r (at)
        JOIN stages s ON s.state = 'published' AND s.worker = p_workers[r.at] AND s.tier = p_tiers[r.at]
        GROUP BY r.at, s.goal_id) AS o;
    RETURN QUERY
    WITH RECURSIVE route AS MATERIALIZED (
        SELECT r.at, p_workers[r.at] AS worker, p_tiers[r.at] AS tier FROM generate_subscripts(p_workers, 1) AS r (at)
    ), start AS (
        SELECT r.at, r.worker, r.tier, n.priority, n.goal_id FROM route r CROSS JOIN LATERAL (
            SELECT s.priority, s.goal_id FROM stages s
            WHERE s.state = 'ready' AND s.worker = r.worker AND s.tier = r.tier AND s.not_before IS NULL
            ORDER BY s.priority DESC, s.goal_id LIMIT 1) AS n
    ), first AS (
        -- From the oldest goal on, and from behind the one that had its turn last: so all of them come to theirs.
        SELECT b.*, 1 AS nth FROM (
            SELECT t.at, t.worker, t.tier, t.priority, t.goal_id FROM start t
            UNION
            SELECT t.at, t.worker, t.tier, t.priority, n.goal_id FROM start t CROSS JOIN LATERAL (
                SELECT u.goal_id FROM turns u WHERE u.worker = t.worker AND u.tier = t.tier
                ORDER BY u.at DESC LIMIT 1) AS u
            CROSS JOIN LATERAL (
                SELECT s.goal_id FROM stages s
                WHERE s.state = 'ready' AND s.worker = t.worker AND s.tier = t.tier AND s.not_before IS NULL
                  AND s.priority = t.priority AND s.goal_id > u.goal_id ORDER BY s.goal_id LIMIT 1) AS n) AS b
        UNION ALL
        SELECT f.at, f.worker, f.tier, n.priority, n.goal_id, f.nth + 1 FROM first f CROSS JOIN LATERAL (
            SELECT * FROM (
              (SELECT s.priority, s.goal_id FROM stages s
               WHERE s.state = 'ready' AND s.worker = f.worker AND s.tier = f.tier AND s.not_before IS NULL
                 AND s.priority = f.priority AND s.goal_id > f.goal_id ORDER BY s.goal_id LIMIT 1)
              UNION ALL
              (SELECT s.priority, s.goal_id FROM stages s
               WHERE s.state = 'ready' AND s.worker = f.worker AND s.tier = f.tier AND s.not_before IS NULL
                 AND s.priority < f.priority ORDER BY s.priority DESC, s.goal_id LIMIT 1)
            ) AS next LIMIT 1) AS n
        WHERE f.nth < v_goals
    ), reached AS MATERIALIZED (
        SELECT DISTINCT f.at, f.worker, f.tier, f.priority, f.goal_id FROM first f
    ), waits AS (
        SELECT f.at, o.*, row_number() OVER (PARTITION BY f.at, f.priority, f.goal_id ORDER BY o.ready_at, o.item) AS nth,
               count(*) OVER (PARTITION BY f.at, f.goal_id) AS there
        FROM reached f CROSS JOIN LATERAL (
            SELECT s.goal_id, s.name, s.item, s.worker, s.tier, s.priority, s.ready_at, s.raised_from FROM stages s
            WHERE s.state = 'ready' AND s.worker = f.worker AND s.tier = f.tier AND s.not_before IS NULL
              AND s.priority = f.priority AND s.goal_id = f.goal_id
            -- Of few goals much each, of many little: their first ones fill the place that there is.
            ORDER BY s.ready_at LIMIT (SELECT 2 + 2 * p_limit / count(*) FROM reached)) AS o
    ), fair AS (
        SELECT w.*, x.raised, x.bulk, 2 * w.priority + (NOT x.bulk)::integer AS urgency,
               -- Among equals it counts how many of its goal stand before it, and then since when it is its turn.
               ROW(CASE WHEN x.bulk THEN w.nth + o.messages ELSE 0 END, greatest(w.ready_at, t.at), w.item,
                   w.goal_id, w.name) AS turn
        FROM waits w
        LEFT JOIN turns t ON t.worker = w.worker AND t.tier = w.tier AND t.goal_id = w.goal_id
        CROSS JOIN LATERAL (
            SELECT coalesce((v_messages ->> (w.at || ' ' || w.goal_id))::integer, 0) AS messages,
                   coalesce((v_firsts ->> (w.at || ' ' || w.goal_id))::integer, 0) AS firsts) AS o
        CROSS JOIN LATERAL (SELECT w.raised_from IS NOT NULL AS raised) AS r
        CROSS JOIN LATERAL (
            SELECT r.raised, NOT r.raised AND (w.nth > 1 OR o.firsts > 0) AS bulk) AS x
    ), ranked AS (
        -- What was raised stands behind the first of those that are urgent by themselves; where only one is taken, it is
        -- that one's turn if something was raised just now.
        SELECT f.*, ROW(-f.urgency, row_number() OVER (PARTITION BY f.urgency, f.raised ORDER BY f.turn),
                        f.raised <> (p_limit = 1 AND v_raised > 0)) AS rank
        FROM fair f
    ), placed AS (
        SELECT r.*, row_number() OVER (PARTITION BY r.at ORDER BY r.rank) AS place FROM ranked r
    ), chosen AS (
        SELECT p.*, row_number() OVER (ORDER BY p.rank) AS nr FROM placed p
        WHERE p.place <= p_free[8 * (p.at - 1) + p.urgency + 1]
        ORDER BY p.rank LIMIT p_limit
    ), picked AS (
        -- One by one, by their keys: a plan that was made while the table was small would read all that waits for each.
        SELECT x.*, c.bulk, c.nr, c.there FROM chosen c CROSS JOIN LATERAL (
            SELECT s.goal_id, s.name, s.item FROM stages s
            WHERE s.goal_id = c.goal_id AND s.name = c.name AND s.item = c.item AND s.state = 'ready'
            LIMIT 1 FOR UPDATE SKIP LOCKED) AS x
    ), taken AS (
        UPDATE stages s SET state = 'published', published_at = clock_timestamp(), bulk = p.bulk
        FROM picked p WHERE s.goal_id = p.goal_id AND s.name = p.name AND s.item = p.item
        RETURNING s.goal_id, s.name, s.item, s.worker, s.tier, s.priority, s.bulk, p.nr, p.there
    ), rotated AS (
        -- Only where a goal has more than was taken: one that has had all its turns needs no place in the row.
        INSERT INTO turns AS t (worker, tier, goal_id, at)
        SELECT k.worker, k.tier, k.goal_id, v_now + max(k.nr) * interval '1 microsecond' FROM taken k
        GROUP BY 1, 2, 3 HAVING max(k.there) > count(*) ORDER BY 1, 2, 3
        ON CONFLICT (worker, tier, goal_id) DO UPDATE SET at = greatest(t.at, excluded.at)
    )
    SELECT k.goal_id, k.name, k.item, k.worker, k.tier, k.priority, k.bulk, g.task_id, g.canvas
    FROM taken k JOIN goals g ON g.id = k.goal_id ORDER BY k.nr;
END $$;
