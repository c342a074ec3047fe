-- Write one runtime override (or block, or the kill switch) and its audit line, together or not at all. The cost of a write does
-- not grow with the number of overrides.
--
-- KEYS[1]  HASH of the overrides of one policy. Field `version`: another text after each write. Field `sweep`: the cursor at which
--          ended overrides are looked for next. Field `latest`: when the last override with an end ends (Unix ms). Field `endless`:
--          how many have no end. Every other field is an override: when it ends (Unix ms; 0 never), a space, JSON. Expires when the
--          last override has ended, or after ARGV[8]
-- KEYS[2]  LIST of audit lines, JSON, the latest first
-- ARGV[1]  now, Unix ms; or "" to ask the server
-- ARGV[2]  field of the override; or "" to write nothing but a version and an audit line
-- ARGV[3]  its value; or "" to remove it
-- ARGV[4]  audit line: a JSON object that is not closed, so that the old value can be added
-- ARGV[5]  the new version
-- ARGV[6]  the largest number of overrides
-- ARGV[7]  the number of audit lines that are kept
-- ARGV[8]  ms: TTL of an override without an end, and of an audit line
-- returns  {1 written or 0 refused, as there would be too many; the old value, or ""}
local SWEPT = 100 -- fields looked at in one write
local META = {version = true, sweep = true, latest = true, endless = true}
local overrides, audit = KEYS[1], KEYS[2]
local now = tonumber(ARGV[1])
if not now then
    local time = redis.call('TIME')
    now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
local field, value = ARGV[2], ARGV[3]

-- Remove ended overrides among the next fields; return the cursor after them.
local function sweep(cursor)
    local page = redis.call('HSCAN', overrides, cursor, 'COUNT', SWEPT)
    local fields = page[2]
    for i = 1, #fields, 2 do
        local ends = not META[fields[i]] and tonumber(string.match(fields[i + 1], '^%d+') or 0)
        if ends and ends ~= 0 and ends <= now then
            redis.call('HDEL', overrides, fields[i])
        end
    end
    return page[1]
end

local function count()
    local number = redis.call('HLEN', overrides)
    for name in pairs(META) do
        number = number - redis.call('HEXISTS', overrides, name)
    end
    return number
end

local cursor = sweep(redis.call('HGET', overrides, 'sweep') or '0')
local before = field ~= '' and redis.call('HGET', overrides, field) or ''
if value ~= '' and before == '' and count() >= tonumber(ARGV[6]) then
    cursor = '0'
    repeat
        cursor = sweep(cursor)
    until cursor == '0'
    if count() >= tonumber(ARGV[6]) then
        return {0, ''}
    end
end

local latest = math.max(now + 86400000, tonumber(redis.call('HGET', overrides, 'latest') or 0))
local endless = tonumber(redis.call('HGET', overrides, 'endless') or 0)
if field ~= '' then
    if before and string.match(before, '^0 ') then
        endless = endless - 1
    end
    if value ~= '' then
        redis.call('HSET', overrides, field, value)
        local ends = tonumber(string.match(value, '^%d+'))
        if ends == 0 then
            endless = endless + 1
        end
        latest = math.max(latest, ends)
    else
        redis.call('HDEL', overrides, field)
    end
end
local moments = {version = ARGV[5], sweep = cursor, latest = string.format('%.0f', latest), endless = string.format('%.0f', endless)}
for name, text in pairs(moments) do
    redis.call('HSET', overrides, name, text)
end
redis.call('PEXPIRE', overrides, endless > 0 and ARGV[8] or string.format('%.0f', latest - now))
local old = string.match(before, '^%d+ (.*)$') or 'null'
redis.call('LPUSH', audit, ARGV[4] .. ',"old":' .. old .. ',"at_ms":' .. string.format('%.0f', now) .. '}')
redis.call('LTRIM', audit, 0, tonumber(ARGV[7]) - 1)
redis.call('PEXPIRE', audit, ARGV[8])
return {1, before}
