-- Whether a stage is still in the hands of who holds this token.
CREATE FUNCTION loomq_holds(p_goal uuid, p_stage text, p_item integer, p_token uuid) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT 1 FROM stages s WHERE s.goal_id = p_goal AND s.name = p_stage AND s.item = p_item
                   AND s.state = 'claimed' AND s.token = p_token)
$$;

-- The goal and those whose work it is, outwards, as far as they have a budget.
CREATE FUNCTION loomq_budgets(p_goal uuid) RETURNS TABLE (goal_id uuid, budget jsonb) LANGUAGE sql STABLE AS $$
    WITH RECURSIVE line AS (
        SELECT g.id, g.parent_goal, g.budget FROM goals g WHERE g.id = p_goal
        UNION ALL
        SELECT g.id, g.parent_goal, g.budget FROM line l JOIN goals g ON g.id = l.parent_goal
    )
    SELECT l.id, l.budget FROM line l WHERE jsonb_typeof(l.budget) = 'object' ORDER BY l.id
$$;

-- What a goal and those that are its work have spent: tokens, known cost, and whether some cost is unknown.
CREATE FUNCTION loomq_spent(p_goal uuid) RETURNS TABLE (tokens bigint, cost double precision, unknown boolean)
LANGUAGE sql STABLE AS $$
    WITH RECURSIVE family AS (
        SELECT p_goal AS id
        UNION ALL
        SELECT g.id FROM family f JOIN goals g ON g.parent_goal = f.id
    )
    SELECT coalesce(sum(c.prompt_tokens + c.completion_tokens), 0)::bigint, coalesce(sum(c.cost), 0),
           coalesce(bool_or(c.cost IS NULL), false)
    FROM family f JOIN llm_calls c ON c.goal_id = f.id WHERE c.state <> 'cached'
$$;

-- What a stage has been answered so far, and whether somebody counts what it spends.
CREATE FUNCTION loomq_journal(p_goal uuid, p_stage text, p_item integer)
RETURNS TABLE (calls jsonb, results jsonb, has_budget boolean) LANGUAGE sql STABLE AS $$
    SELECT
        (SELECT coalesce(jsonb_agg(jsonb_build_object('round', c.round, 'request', c.request, 'reply', c.reply)
                                   ORDER BY c.at), '[]')
         FROM llm_calls c WHERE c.goal_id = p_goal AND c.stage = p_stage AND c.item = p_item AND c.reply IS NOT NULL),
        (SELECT coalesce(jsonb_agg(jsonb_build_object('round', t.round, 'call', t.call, 'message', t.message)), '[]')
         FROM tool_results t WHERE t.goal_id = p_goal AND t.stage = p_stage AND t.item = p_item),
        EXISTS (SELECT 1 FROM loomq_budgets(p_goal))
$$;

-- Put the most that a call may cost aside, unless a budget has less left. One after the other for each budget, or two
-- that are asked for at once would both fit into what is left for one.
CREATE FUNCTION loomq_reserve(p_goal uuid, p_stage text, p_item integer, p_token uuid, p_id uuid, p_call jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    v_budget record;
    v_spent record;
    v_tokens bigint := (p_call ->> 'prompt_tokens')::bigint + (p_call ->> 'completion_tokens')::bigint;
    v_cost double precision := (p_call ->> 'cost')::double precision;
BEGIN
    IF NOT loomq_holds(p_goal, p_stage, p_item, p_token) THEN
        RETURN '{"verdict": "fenced"}';
    END IF;
    FOR v_budget IN SELECT * FROM loomq_budgets(p_goal) LOOP
        PERFORM pg_advisory_xact_lock(hashtextextended('loomq budget ' || v_budget.goal_id, 0));
    END LOOP;
    FOR v_budget IN SELECT * FROM loomq_budgets(p_goal) LOOP
        -- A call that is made a second time after a lost connection has its place already.
        CONTINUE WHEN EXISTS (SELECT 1 FROM llm_calls c WHERE c.goal_id = p_goal AND c.id = p_id);
        SELECT * INTO v_spent FROM loomq_spent(v_budget.goal_id);
        IF v_spent.tokens + v_tokens > (v_budget.budget ->> 'max_tokens')::bigint THEN
            RETURN jsonb_build_object('verdict', 'refused', 'limit', 'max_tokens', 'spent', v_spent.tokens,
                'most', v_budget.budget -> 'max_tokens', 'needs', v_tokens, 'goal', v_budget.goal_id);
        ELSIF v_budget.budget ->> 'max_cost' IS NOT NULL AND (v_cost IS NULL OR v_spent.unknown) THEN
            RETURN jsonb_build_object('verdict', 'refused', 'limit', 'unknown_price', 'goal', v_budget.goal_id);
        ELSIF v_spent.cost + v_cost > (v_budget.budget ->> 'max_cost')::double precision THEN
            RETURN jsonb_build_object('verdict', 'refused', 'limit', 'max_cost', 'spent', v_spent.cost,
                'most', v_budget.budget -> 'max_cost', 'needs', v_cost, 'goal', v_budget.goal_id);
        END IF;
    END LOOP;
    INSERT INTO llm_calls (goal_id, id, stage, item, round, worker, tier, provider, model, state, request, prompt_tokens,
                           completion_tokens, cost)
    SELECT p_goal, p_id, p_stage, p_item, x.round, x.worker, x.tier, x.provider, x.model, 'open', x.request,
           x.prompt_tokens, x.completion_tokens, x.cost
    FROM jsonb_to_record(p_call) AS x (round integer, worker text, tier text, provider text, model text, request text,
                                       prompt_tokens bigint, completion_tokens bigint, cost double precision)
    ON CONFLICT (goal_id, id) DO NOTHING;
    RETURN '{"verdict": "granted"}';
END $$;

-- Write down what a call was answered and what it cost. It was paid for in any case; its reply is only of use to who holds
-- the stage. False if that is somebody else by now.
CREATE FUNCTION loomq_keep_call(p_goal uuid, p_stage text, p_item integer, p_token uuid, p_id uuid, p_call jsonb)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v_holds boolean := loomq_holds(p_goal, p_stage, p_item, p_token);
BEGIN
    INSERT INTO llm_calls AS c (goal_id, id, stage, item, round, worker, tier, provider, model, state, request,
                                prompt_tokens, completion_tokens, cached_tokens, cost, took_ms, reply)
    SELECT p_goal, p_id, p_stage, p_item, x.round, x.worker, x.tier, x.provider, x.model, x.state, x.request,
           x.prompt_tokens, x.completion_tokens, x.cached_tokens, x.cost, x.took_ms, CASE WHEN v_holds THEN x.reply END
    FROM jsonb_to_record(p_call) AS x (round integer, worker text, tier text, provider text, model text, state text,
                                       request text, prompt_tokens bigint, completion_tokens bigint,
                                       cached_tokens bigint, cost double precision, took_ms integer, reply jsonb)
    WHERE EXISTS (SELECT 1 FROM goals g WHERE g.id = p_goal)
    ON CONFLICT (goal_id, id) DO UPDATE SET
        provider = excluded.provider, model = excluded.model, state = excluded.state,
        prompt_tokens = excluded.prompt_tokens, completion_tokens = excluded.completion_tokens,
        cached_tokens = excluded.cached_tokens, cost = excluded.cost, took_ms = excluded.took_ms, reply = excluded.reply;
    RETURN v_holds;
END $$;

CREATE FUNCTION loomq_keep_result(p_goal uuid, p_stage text, p_item integer, p_token uuid, p_round integer, p_call text,
                                  p_message jsonb, p_ms integer)
RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF NOT loomq_holds(p_goal, p_stage, p_item, p_token) THEN
        RETURN false;
    END IF;
    INSERT INTO tool_results (goal_id, stage, item, round, call, message, took_ms)
    VALUES (p_goal, p_stage, p_item, p_round, p_call, p_message, p_ms)
    ON CONFLICT (goal_id, stage, item, round, call) DO UPDATE SET
        message = excluded.message, took_ms = excluded.took_ms, at = excluded.at;
    RETURN true;
END $$;

-- Forget a round whose answer was no good, or every further attempt would be given the same again.
CREATE FUNCTION loomq_drop_round(p_goal uuid, p_stage text, p_item integer, p_token uuid, p_round integer)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF loomq_holds(p_goal, p_stage, p_item, p_token) THEN
        UPDATE llm_calls c SET reply = NULL
        WHERE c.goal_id = p_goal AND c.stage = p_stage AND c.item = p_item AND c.round >= p_round AND c.reply IS NOT NULL;
        DELETE FROM tool_results t
        WHERE t.goal_id = p_goal AND t.stage = p_stage AND t.item = p_item AND t.round >= p_round;
    END IF;
END $$;

-- As loomq_complete_2, with notes on the result and the changes of silos that come with it.
CREATE FUNCTION loomq_complete_3(p_goal uuid, p_name text, p_item integer, p_token uuid, p_state text, p_output jsonb,
                                 p_model text, p_tokens jsonb, p_ms integer, p_reason text, p_room jsonb,
                                 p_carried text[], p_chord text, p_position integer, p_notes jsonb, p_updates jsonb)
RETURNS TABLE (outcome text, ready jsonb, goal_ended boolean, backlog boolean, chord_full boolean)
LANGUAGE plpgsql AS $$
DECLARE
    v record;
BEGIN
    SELECT c.* INTO v FROM loomq_complete_2(p_goal, p_name, p_item, p_token, p_state, p_output, p_model, p_tokens, p_ms,
                                            p_reason, p_room, p_carried, p_chord, p_position) AS c;
    IF v.outcome = 'accepted' THEN
        UPDATE stages s SET notes = p_notes
        WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = p_item AND p_notes IS NOT NULL;
        INSERT INTO silo_updates (goal_id, stage, item, nth, folder, host, silo, asked, state, reason, ended_at)
        SELECT p_goal, p_name, p_item, u.nth, u.value ->> 'folder', u.value ->> 'host', u.value -> 'silo',
               u.value -> 'asked',
               CASE WHEN u.value ->> 'reason' IS NULL THEN 'pending' ELSE 'refused' END, u.value ->> 'reason',
               CASE WHEN u.value ->> 'reason' IS NOT NULL THEN clock_timestamp() END
        FROM jsonb_array_elements(coalesce(p_updates, '[]')) WITH ORDINALITY AS u (value, nth)
        ON CONFLICT DO NOTHING;
    END IF;
    RETURN QUERY SELECT v.outcome, v.ready, v.goal_ended, v.backlog, v.chord_full;
END $$;
