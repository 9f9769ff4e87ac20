-- A notification holds one lock of the whole server until its commit is on the disk, so that commits with one go one by one.
-- That a goal has come to its end is therefore notified only if somebody waits for it; that it was ended, as by a failure,
-- always.
ALTER TABLE goals ADD COLUMN awaited_until timestamptz;

-- Ask to be notified of a goal's end. Says how the goal is, null if there is none, and whether the notification is sure to
-- come: not while somebody holds the goal. Written seldom: whoever waits asks every second.
CREATE FUNCTION loomq_await(p_goal uuid, p_seconds double precision)
RETURNS TABLE (state text, asked boolean) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    SELECT g.state, coalesce(g.awaited_until > clock_timestamp() + make_interval(secs => p_seconds / 2), false)
    INTO state, asked FROM goals g WHERE g.id = p_goal;
    IF NOT FOUND OR asked OR state <> 'open' THEN
        RETURN NEXT;
        RETURN;
    END IF;
    PERFORM set_config('synchronous_commit', 'off', true);
    UPDATE goals AS u SET awaited_until = clock_timestamp() + make_interval(secs => p_seconds) WHERE u.id = (
        SELECT g.id FROM goals g WHERE g.id = p_goal AND g.state = 'open' FOR NO KEY UPDATE SKIP LOCKED);
    asked := FOUND;
    SELECT g.state INTO state FROM goals g WHERE g.id = p_goal;
    RETURN NEXT;
END $$;

-- As in 0003, and notified only where it is waited for, or where a raw call's caller may.
CREATE OR REPLACE FUNCTION loomq_finish_goal(p goals) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v_state text := 'done';
BEGIN
    IF p.error IS NOT NULL AND NOT EXISTS (
        SELECT 1 FROM stages s WHERE s.goal_id = p.id AND s.item = -1 AND s.children = '{}' AND s.state = 'done')
    THEN
        v_state := 'failed';
    END IF;
    UPDATE goals g SET state = v_state, ended_at = clock_timestamp() WHERE g.id = p.id;
    PERFORM loomq_tell(p.id, CASE v_state WHEN 'done' THEN 'goal_completed' ELSE 'goal_failed' END, NULL, NULL, p.error);
    IF v_state = 'done' AND p.session_id IS NOT NULL THEN
        PERFORM loomq_answer(p.id, p.session_id);
    END IF;
    IF p.task_id IS NOT NULL OR p.awaited_until > clock_timestamp() THEN
        PERFORM pg_notify('loomq_ended', p.id::text || ' ' || coalesce(p.task_id, ''));
    END IF;
    RETURN true;
END $$;
