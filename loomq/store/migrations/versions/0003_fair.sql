-- Work is picked by goal, so that one with thousands of stages keeps no other waiting.
DROP INDEX stages_ready;
CREATE INDEX stages_ready ON stages (worker, tier, priority DESC, goal_id, ready_at)
    WHERE state = 'ready' AND not_before IS NULL;

-- As in 0002, and in turn over the oldest goals however much work the first of them has: the index is skipped through,
-- goal by goal, and each gives as many as could be taken.
CREATE OR REPLACE FUNCTION loomq_take_ready(p_worker text, p_tier text, p_limit integer)
RETURNS TABLE (goal_id uuid, name text, item integer, priority smallint, task_id text, canvas jsonb)
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off AS $$
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
    WITH RECURSIVE first AS (
        (SELECT s.priority, s.goal_id, 1 AS at FROM stages s
         WHERE s.state = 'ready' AND s.worker = p_worker AND s.tier = p_tier AND s.not_before IS NULL
         ORDER BY s.priority DESC, s.goal_id LIMIT 1)
        UNION ALL
        SELECT n.priority, n.goal_id, f.at + 1 FROM first f CROSS JOIN LATERAL (
            SELECT * FROM (
              (SELECT s.priority, s.goal_id FROM stages s
               WHERE s.state = 'ready' AND s.worker = p_worker AND s.tier = p_tier AND s.not_before IS NULL
                 AND s.priority = f.priority AND s.goal_id > f.goal_id ORDER BY s.goal_id LIMIT 1)
              UNION ALL
              (SELECT s.priority, s.goal_id FROM stages s
               WHERE s.state = 'ready' AND s.worker = p_worker AND s.tier = p_tier AND s.not_before IS NULL
                 AND s.priority < f.priority ORDER BY s.priority DESC, s.goal_id LIMIT 1)
            ) AS next LIMIT 1) AS n
        WHERE f.at < p_limit
    ), fair AS (
        SELECT o.*, row_number() OVER (PARTITION BY o.goal_id, o.priority ORDER BY o.ready_at) AS turn
        FROM first f CROSS JOIN LATERAL (
            SELECT s.goal_id, s.name, s.item, s.priority, s.ready_at FROM stages s
            WHERE s.state = 'ready' AND s.worker = p_worker AND s.tier = p_tier AND s.not_before IS NULL
              AND s.priority = f.priority AND s.goal_id = f.goal_id ORDER BY s.ready_at LIMIT p_limit) AS o
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
