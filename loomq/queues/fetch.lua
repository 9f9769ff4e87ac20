-- Take messages from the first list that holds any, for a slot that is done with its own.
--
-- KEYS      the lists, the most urgent first; the caller shuffles those of one urgency
-- ARGV      for each list how many may be taken of it; 0 for one that only Celery may take from
--
-- {stopped, which list, item, item, …}. What comes next is left to Celery (stopped = 1) if it lies on such a list or is no
-- stage's own message: a raw call, or something that has to be kept as malformed.
local LARGEST = 65536

local function is_ours(item)
    if #item > LARGEST then return false end
    local read, message = pcall(cjson.decode, item)
    local headers = read and type(message) == 'table' and message.headers
    local mark = type(headers) == 'table' and headers.loomq
    return type(mark) == 'table' and not mark.call and type(headers.id) == 'string'
end

for i, key in ipairs(KEYS) do
    local item = redis.call('LINDEX', key, -1)
    if item then
        local found = {0, i - 1}
        while item and #found - 2 < tonumber(ARGV[i]) do
            if not is_ours(item) then break end
            found[#found + 1] = redis.call('RPOP', key)
            item = redis.call('LINDEX', key, -1)
        end
        if #found == 2 then return {1} end
        return found
    end
end
return {0}
