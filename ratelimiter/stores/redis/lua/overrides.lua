-- Writes one order of an operator and what is told of it, together or not at all.
--
-- KEYS[1]  HASH of the orders of one policy. Field `version`: another text after each write. Every other field is an order:
--          when it ends (Unix ms; 0 never), a space, JSON. Gone when the last order has ended, or after ARGV[8]
-- KEYS[2]  LIST of what operators did, JSON, the latest first
-- ARGV[1]  now, Unix ms; or "" to ask the server
-- ARGV[2]  field of the order; or "" to write nothing but a version and what is told
-- ARGV[3]  its value; or "" to remove it
-- ARGV[4]  what is told: a JSON object that is not closed, so that what was there before can be added
-- ARGV[5]  the new version
-- ARGV[6]  how many orders there may be
-- ARGV[7]  how many tellings are kept
-- ARGV[8]  ms: how long an order without an end is kept, and a telling
-- returns  {1 written or 0 refused, as there would be too many; the value that was there before, or ""}
local now = tonumber(ARGV[1])
if not now then
    local time = redis.call('TIME')
    now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
local field, value = ARGV[2], ARGV[3]
local count, latest, before = 0, now + 86400000, ''

local function last(ends)
    if ends == 0 then
        ends = now + tonumber(ARGV[8])
    end
    if ends > latest then
        latest = ends
    end
end

local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
    local ends = tonumber(string.match(all[i + 1], '^%d+') or 0)
    if all[i] ~= 'version' then
        if ends ~= 0 and ends <= now then
            redis.call('HDEL', KEYS[1], all[i])
        elseif all[i] == field then
            before = all[i + 1]
        else
            count = count + 1
            last(ends)
        end
    end
end

if value ~= '' and count >= tonumber(ARGV[6]) then
    return {0, ''}
end
if field ~= '' then
    if value ~= '' then
        redis.call('HSET', KEYS[1], field, value)
        last(tonumber(string.match(value, '^%d+')))
    else
        redis.call('HDEL', KEYS[1], field)
    end
end
redis.call('HSET', KEYS[1], 'version', ARGV[5])
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', latest - now))
local old = string.match(before, '^%d+ (.*)$') or 'null'
redis.call('LPUSH', KEYS[2], ARGV[4] .. ',"old":' .. old .. ',"at_ms":' .. string.format('%.0f', now) .. '}')
redis.call('LTRIM', KEYS[2], 0, tonumber(ARGV[7]) - 1)
redis.call('PEXPIRE', KEYS[2], ARGV[8])
return {1, before}
