-- Claim one stage that nothing limits, for whoever goes on with it: as loomq_claim_5, and as JSON; null if it is not there
-- to claim. p_rates is what limit_overrides says.
CREATE FUNCTION loomq_claim_6(p_goal uuid, p_name text, p_item integer, p_token uuid, p_node uuid, p_pid integer,
                              p_message text, p_lease_s double precision, p_rates jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    v stages%ROWTYPE;
    g goals%ROWTYPE;
BEGIN
    UPDATE stages s SET
        state = 'claimed', token = p_token, node = p_node, pid = p_pid, message_id = p_message,
        lease_until = clock_timestamp() + make_interval(secs => p_lease_s),
        deliveries = s.deliveries + (s.state <> 'claimed')::integer,
        started_at = clock_timestamp(), ended_at = NULL, not_before = NULL, reason = NULL, limit_key = NULL,
        wants_key = false
    WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = p_item
      AND (s.state IN ('ready', 'published') AND (s.not_before IS NULL OR s.not_before <= clock_timestamp())
           OR s.state = 'claimed' AND s.token = p_token)
    RETURNING s.* INTO v;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    SELECT x.* INTO g FROM goals x WHERE x.id = p_goal;
    IF (g.paused_at IS NOT NULL OR g.state <> 'open' OR p_item >= 0 AND NOT EXISTS (
            SELECT 1 FROM stages s
            WHERE s.goal_id = p_goal AND s.name = p_name AND s.item = -1 AND s.state = 'claimed' AND s.node IS NULL))
       AND loomq_hold_back(v)
    THEN
        RETURN NULL;
    END IF;
    PERFORM loomq_tell(p_goal, 'stage_started', p_name, p_item,
                       jsonb_build_object('attempt', v.attempt, 'delivery', v.deliveries));
    RETURN loomq_claimed(v, g, p_rates);
END $$;

-- Count down at the children of a stage that has just ended, all of which the process may go on with, and claim up to
-- p_most of those that become ready: as loomq_pass_on, but the caller tells of it. Gives {ready: [{name, state, bulk}],
-- claims: […], watched}.
CREATE FUNCTION loomq_pass_on_2(p_goal uuid, p_children text[], p_next jsonb, p_most integer, p_node uuid, p_pid integer,
                                p_message text, p_lease_s double precision, p_rates jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    g goals%ROWTYPE;
    c stages%ROWTYPE;
    v_name text;
    v_token uuid;
    v_rows stages[] := '{}';
    v_ready jsonb := '[]';
    v_claims jsonb := '[]';
BEGIN
    -- In one order: two parents that end at once must not wait for each other.
    IF cardinality(p_children) > 1 THEN
        p_children := ARRAY(SELECT x.name FROM unnest(p_children) AS x (name) ORDER BY 1);
    END IF;
    FOREACH v_name IN ARRAY p_children LOOP
        v_token := CASE WHEN p_most > 0 THEN (p_next ->> v_name)::uuid END;
        -- One statement, whose conditions are looked at again if another parent had the row in hand.
        UPDATE stages s SET
            waits_for = s.waits_for - 1,
            state = CASE WHEN s.waits_for > 1 OR s.state <> 'waiting' THEN s.state
                         WHEN v_token IS NULL THEN 'ready' ELSE 'claimed' END,
            ready_at = CASE WHEN s.waits_for = 1 AND s.state = 'waiting' THEN clock_timestamp() ELSE s.ready_at END,
            published_at = CASE WHEN s.waits_for = 1 AND s.state = 'waiting' THEN NULL ELSE s.published_at END,
            bulk = s.bulk AND NOT (s.waits_for = 1 AND s.state = 'waiting'),
            token = CASE WHEN v_token IS NOT NULL AND s.waits_for = 1 AND s.state = 'waiting' THEN v_token ELSE s.token END,
            node = CASE WHEN v_token IS NOT NULL AND s.waits_for = 1 AND s.state = 'waiting' THEN p_node ELSE s.node END,
            pid = CASE WHEN v_token IS NOT NULL AND s.waits_for = 1 AND s.state = 'waiting' THEN p_pid ELSE s.pid END,
            message_id = CASE WHEN v_token IS NOT NULL AND s.waits_for = 1 AND s.state = 'waiting' THEN p_message ELSE s.message_id END,
            lease_until = CASE WHEN v_token IS NOT NULL AND s.waits_for = 1 AND s.state = 'waiting'
                               THEN clock_timestamp() + make_interval(secs => p_lease_s) ELSE s.lease_until END,
            deliveries = s.deliveries + (v_token IS NOT NULL AND s.waits_for = 1 AND s.state = 'waiting')::integer,
            started_at = CASE WHEN v_token IS NOT NULL AND s.waits_for = 1 AND s.state = 'waiting' THEN clock_timestamp() ELSE s.started_at END,
            ended_at = CASE WHEN v_token IS NOT NULL AND s.waits_for = 1 AND s.state = 'waiting' THEN NULL ELSE s.ended_at END
        WHERE s.goal_id = p_goal AND s.name = v_name AND s.item = -1 AND s.state IN ('waiting', 'cancelled')
          AND s.waits_for > 0
        RETURNING s.* INTO c;
        CONTINUE WHEN NOT FOUND;
        IF c.state = 'claimed' THEN
            p_most := p_most - 1;
            v_rows := v_rows || c;
        ELSIF c.state = 'ready' THEN
            v_ready := v_ready || jsonb_build_object('name', c.name, 'state', c.state, 'bulk', false);
        END IF;
    END LOOP;
    SELECT x.* INTO g FROM goals x WHERE x.id = p_goal;
    FOREACH c IN ARRAY v_rows LOOP
        CONTINUE WHEN (g.paused_at IS NOT NULL OR g.state <> 'open') AND loomq_hold_back(c);
        v_claims := v_claims || loomq_claimed(c, g, p_rates);
    END LOOP;
    RETURN jsonb_build_object('ready', v_ready, 'claims', v_claims, 'watched', g.watched_until > clock_timestamp());
END $$;

-- As loomq_turn, and claim what the process has taken from its queues by itself.
-- p_done: [{goal, name, item, token, output, model, tokens, ms, room, carried, chord, position, notes, updates,
--           next: {name: token}, most}]: of the children named in next that have become ready, up to `most` are claimed.
-- p_pulled: [{goal, name, item, token}]: stages whose messages it took.
-- p_backlog: {workers, tiers, free, limit, age, share, tokens}: take what waits for these routes, as loomq_take_ready_2.
-- A call that is made again because its answer was lost finds its own claims by their tokens.
-- Gives {done: [[outcome, ready, goal_ended, backlog, chord_full]], claims: […], due: […], lives}; without `lives` the node
-- is leaving, and nothing was claimed.
CREATE FUNCTION loomq_turn_2(p_done jsonb, p_pulled jsonb, p_backlog jsonb, p_node uuid, p_pid integer,
                             p_message text, p_lease_s double precision)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    v_lives boolean;
    v_rates jsonb;
    v_done jsonb := '[]';
    v_claims jsonb := '[]';
    v_due jsonb := '[]';
    v_most integer;
    v_tokens uuid[];
    v_at integer := 1;
    v_outcome text;
    v_ready jsonb;
    v_ended boolean;
    v_backlog boolean;
    v_full boolean;
    v_passed jsonb;
    v_claim jsonb;
    v_worker text;
    v_tier text;
    v_had_backlog boolean := false;
    d record;
    v stages%ROWTYPE;
    n record;
    k record;
BEGIN
    -- A node that is leaving, or not known yet, takes no more.
    SELECT EXISTS (SELECT 1 FROM nodes x WHERE x.id = p_node) INTO v_lives;
    IF v_lives THEN
        SELECT coalesce(jsonb_object_agg(o.name, o.rate), '{}') INTO v_rates FROM limit_overrides o;
    END IF;
    FOR d IN SELECT x.* FROM jsonb_to_recordset(p_done) AS x (
        goal uuid, name text, item integer, token uuid, output jsonb, model text, tokens jsonb, ms integer, room jsonb,
        carried text[], chord text, position integer, notes jsonb, updates jsonb, next jsonb, most integer)
    LOOP
        v_most := coalesce(d.most, 0);
        v_outcome := 'accepted'; v_ready := '[]'; v_ended := false; v_backlog := false; v_full := false;
        UPDATE stages s SET
            state = 'done', output = d.output, model_used = d.model, token_usage = d.tokens, processing_time_ms = d.ms,
            reason = NULL, ended_at = clock_timestamp(), lease_until = NULL, error = NULL,
            notes = coalesce(d.notes, s.notes)
        WHERE s.goal_id = d.goal AND s.name = d.name AND s.item = d.item AND s.state = 'claimed' AND s.token = d.token
        RETURNING s.* INTO v;
        IF NOT FOUND THEN  -- it was taken back, or the same call was committed before
            SELECT c.* INTO k FROM loomq_complete_3(d.goal, d.name, d.item, d.token, 'done', d.output, d.model, d.tokens,
                d.ms, NULL, d.room, d.carried, d.chord, d.position, d.notes, d.updates) AS c;
            v_outcome := k.outcome; v_ready := k.ready; v_ended := k.goal_ended;
        ELSE
            IF d.item < 0 AND v_lives AND v.children <> '{}' AND d.next ?& v.children THEN
                v_passed := loomq_pass_on_2(d.goal, v.children, d.next, v_most, p_node, p_pid, p_message, p_lease_s,
                                            v_rates);
                v_ready := v_passed -> 'ready';
                v_claims := v_claims || (v_passed -> 'claims');
                v_most := 0;
                INSERT INTO events (goal_id, kind, stage, item, detail)
                SELECT d.goal, e.kind, e.stage, -1, e.detail FROM (
                    SELECT 'stage_completed' AS kind, d.name AS stage, NULL::jsonb AS detail
                    UNION ALL
                    SELECT 'stage_started', c.value ->> 'name', jsonb_build_object(
                        'attempt', c.value -> 'attempt', 'delivery', c.value -> 'deliveries')
                    FROM jsonb_array_elements(v_passed -> 'claims') AS c) AS e;
                IF (v_passed ->> 'watched')::boolean THEN
                    PERFORM pg_notify('loomq_ended', d.goal::text || ' event');
                END IF;
            ELSE
                PERFORM loomq_tell(d.goal, 'stage_completed', d.name, d.item, NULL);
                SELECT a.ready, a.goal_ended INTO v_ready, v_ended FROM loomq_after(v, d.room, d.carried) AS a;
            END IF;
            IF d.updates IS NOT NULL THEN
                INSERT INTO silo_updates (goal_id, stage, item, nth, folder, host, silo, asked, state, reason, ended_at)
                SELECT d.goal, d.name, d.item, u.nth, u.value ->> 'folder', u.value ->> 'host', u.value -> 'silo',
                       u.value -> 'asked',
                       CASE WHEN u.value ->> 'reason' IS NULL THEN 'pending' ELSE 'refused' END, u.value ->> 'reason',
                       CASE WHEN u.value ->> 'reason' IS NOT NULL THEN clock_timestamp() END
                FROM jsonb_array_elements(d.updates) WITH ORDINALITY AS u (value, nth) ON CONFLICT DO NOTHING;
            END IF;
            IF v.limit_key IS NOT NULL THEN
                PERFORM loomq_wake(v.limit_key);
            END IF;
            IF d.chord IS NOT NULL THEN
                v_full := loomq_chord_part(d.chord, (SELECT g.task_id FROM goals g WHERE g.id = d.goal), d.position,
                                           'SUCCESS', d.output);
            END IF;
        END IF;
        -- Of a call that is made again, those that it claimed the first time are found by their tokens.
        IF v_outcome <> 'fenced' AND v_lives AND v_most > 0 THEN
            FOR n IN SELECT x.key AS name, x.value::uuid AS token FROM jsonb_each_text(d.next) AS x ORDER BY 1 LOOP
                EXIT WHEN v_most <= 0;
                CONTINUE WHEN v_outcome = 'accepted' AND NOT v_ready @> jsonb_build_array(jsonb_build_object('name', n.name));
                v_claim := loomq_claim_6(d.goal, n.name, -1, n.token, p_node, p_pid, p_message, p_lease_s, v_rates);
                CONTINUE WHEN v_claim IS NULL;
                v_most := v_most - 1;
                v_claims := v_claims || v_claim;
                v_ready := (SELECT coalesce(jsonb_agg(r.value), '[]') FROM jsonb_array_elements(v_ready) AS r
                            WHERE r.value ->> 'name' <> n.name);
            END LOOP;
        END IF;
        IF v_outcome = 'accepted' THEN
            -- A batch is of one route, mostly; what there was of it a moment ago is still there.
            v_backlog := v_had_backlog AND v.worker = v_worker AND v.tier = v_tier OR loomq_has_backlog(v.worker, v.tier);
            v_worker := v.worker; v_tier := v.tier; v_had_backlog := v_backlog;
        END IF;
        v_done := v_done || jsonb_build_array(jsonb_build_array(v_outcome, v_ready, v_ended, v_backlog, v_full));
    END LOOP;
    IF v_lives THEN
        FOR n IN SELECT x.* FROM jsonb_to_recordset(p_pulled) AS x (goal uuid, name text, item integer, token uuid)
                 ORDER BY x.goal, x.name, x.item
        LOOP
            v_claim := loomq_claim_6(n.goal, n.name, n.item, n.token, p_node, p_pid, p_message, p_lease_s, v_rates);
            CONTINUE WHEN v_claim IS NULL;
            v_claims := v_claims || v_claim;
        END LOOP;
    END IF;
    IF p_backlog IS NOT NULL AND v_lives THEN
        SELECT array_agg(x.value::uuid ORDER BY x.nr) INTO v_tokens
        FROM jsonb_array_elements_text(p_backlog -> 'tokens') WITH ORDINALITY AS x (value, nr);
        FOR n IN
            SELECT s.goal_id, s.name, s.item, s.token FROM stages s
            WHERE s.state = 'claimed' AND s.node = p_node AND s.pid = p_pid AND s.token = ANY (v_tokens)
        LOOP
            v_claim := loomq_claim_6(n.goal_id, n.name, n.item, n.token, p_node, p_pid, p_message, p_lease_s, v_rates);
            CONTINUE WHEN v_claim IS NULL;
            v_claims := v_claims || v_claim;
            v_at := 0;
        END LOOP;
        IF v_at > 0 THEN
            FOR n IN
                SELECT t.* FROM loomq_take_ready_2(
                    ARRAY(SELECT jsonb_array_elements_text(p_backlog -> 'workers')),
                    ARRAY(SELECT jsonb_array_elements_text(p_backlog -> 'tiers')),
                    ARRAY(SELECT jsonb_array_elements_text(p_backlog -> 'free')::integer),
                    (p_backlog ->> 'limit')::integer, (p_backlog ->> 'age')::double precision,
                    (p_backlog ->> 'share')::double precision) AS t
            LOOP
                IF n.task_id IS NOT NULL THEN  -- a raw call: Celery's own message has to bring it
                    v_due := v_due || jsonb_build_array(jsonb_build_array(
                        n.goal_id, n.name, n.item, n.worker, n.tier, n.priority, n.bulk, n.task_id, n.canvas));
                    CONTINUE;
                END IF;
                v_claim := loomq_claim_6(n.goal_id, n.name, n.item, v_tokens[v_at], p_node, p_pid, p_message, p_lease_s,
                                         v_rates);
                CONTINUE WHEN v_claim IS NULL;
                v_claims := v_claims || v_claim;
                v_at := v_at + 1;
            END LOOP;
        END IF;
    END IF;
    -- A claim that is lost with the server is fenced by its token, so it need not wait for the disk. An end waits, in
    -- whosever company it comes.
    IF v_done = '[]' THEN
        PERFORM set_config('synchronous_commit', 'off', true);
    END IF;
    RETURN jsonb_build_object('done', v_done, 'claims', v_claims, 'due', v_due, 'lives', v_lives);
END $$;
