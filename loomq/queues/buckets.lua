-- The buckets of rates and token budgets, by GCRA (the generic cell rate algorithm): a bucket is one time, `tat`, at which
-- it will be full again. All that a task needs is taken in one call or nothing is, on this server's clock.
--
-- KEYS      one a bucket: a hash with tat (µs), until (µs; nobody goes before), n (units given), unit (usual cost)
-- ARGV[1]   take · look · settle
-- ARGV[2]   the time in µs, or '' for this server's
-- then for each bucket: µs a unit, units that it holds, units asked for (for settle: used beyond what was taken)
--
-- take      {1, now} or {0, µs to wait, which bucket}
-- look      for each bucket: how often its usual cost can be taken now, µs until it can be once, units in use, n
-- settle    {1}
local op, now = ARGV[1], tonumber(ARGV[2])
if not now then
    local time = redis.call('TIME')
    now = time[1] * 1000000 + time[2]
end

local function read(i)
    local b = {key = KEYS[i], unit_us = tonumber(ARGV[3 * i]), size = tonumber(ARGV[3 * i + 1]), cost = tonumber(ARGV[3 * i + 2])}
    local found = redis.call('HMGET', b.key, 'tat', 'until', 'unit')
    b.full_us = b.size * b.unit_us
    -- No bucket of this size can be in debt for so long: the clock has been set back, or the rate was another one. Budgets
    -- may owe what calls used unforeseen.
    local most = now + b.full_us * (string.sub(b.key, -7) == ':tokens' and 60 or 1)
    b.tat, b.held = tonumber(found[1]) or 0, tonumber(found[2]) or 0
    if b.tat > most then
        b.tat = most
        redis.call('HSET', b.key, 'tat', string.format('%.3f', most))
    end
    if b.held > most then
        b.held = 0
        redis.call('HDEL', b.key, 'until')
    end
    b.tat = math.max(b.tat, now)
    b.unit = tonumber(found[3]) or 1
    return b
end

-- What must pass until so many units can be taken; a task that asks for more than there can ever be goes when the bucket
-- is full, and the debt is paid afterwards.
local function wait(b, units)
    return math.max(b.tat + math.min(units, b.size) * b.unit_us - now - b.full_us, b.held - now)
end

local function write(b, units)
    b.tat = b.tat + units * b.unit_us
    redis.call('HSET', b.key, 'tat', string.format('%.3f', b.tat))
    redis.call('HINCRBYFLOAT', b.key, 'n', units)
    redis.call('PEXPIRE', b.key, math.ceil(math.max(b.tat - now, 0) / 1000) + 120000)
end

if op == 'settle' then
    write(read(1), tonumber(ARGV[5]))
    return {1}
end

local found = {}
for i = 1, #KEYS do found[i] = read(i) end

if op == 'look' then
    local told = {}
    for _, b in ipairs(found) do
        local free = math.floor((b.full_us - (b.tat - now)) / (b.unit * b.unit_us) + 0.000001)
        local pause = wait(b, b.unit)
        if pause > 0 then free = 0 elseif free < 1 then free = 1 end
        table.insert(told, free)
        table.insert(told, math.max(0, math.ceil(pause)))
        table.insert(told, math.floor((b.tat - now) / b.unit_us + 0.5))
        table.insert(told, math.floor((tonumber(redis.call('HGET', b.key, 'n')) or 0) + 0.5))
    end
    return told
end

local longest, which = 0, 0
for i, b in ipairs(found) do
    local pause = wait(b, b.cost)
    if pause > longest then longest, which = pause, i end
end
if longest > 0 then
    local b = found[which]
    if b.cost > 1 then
        -- Who asks for little must not overtake, again and again, who asks for much.
        redis.call('HSET', b.key, 'until', string.format('%.0f', now + longest))
        redis.call('PEXPIRE', b.key, math.ceil(math.max(b.tat - now, longest) / 1000) + 120000)
    end
    return {0, math.ceil(longest), which}
end
for _, b in ipairs(found) do
    if b.cost > 1 then
        redis.call('HSET', b.key, 'unit', string.format('%.3f', b.unit == 1 and b.cost or 0.8 * b.unit + 0.2 * b.cost))
    end
    write(b, b.cost)
end
return {1, now}
