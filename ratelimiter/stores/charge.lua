-- Charges a batch of requests. Per request: look at every hit, then charge all or none; a later request of the batch sees
-- what the earlier ones were charged. Semantics are those of core/window.py, step for step. Lua 5.1 and 5.4 alike.
--
-- KEYS     one per hit, in order, those of the first request first; a key may come up several times. Type STRING:
--          one packed window (below), gone when its newest entry has left the window.
-- ARGV[1]  nonce, any string, given back as it came
-- ARGV[2]  now, Unix ms; or "" to ask the server, once for the whole batch
-- ARGV[3]  one byte per request: which of the forms that follow is its form, from 1
-- ARGV[4+] the forms: five numbers per hit, spaces between:
--          limit (units), window (ms), resolution (ms), cost (units), shadow (0 enforced; else the rule's number).
--          A cost below 0 gives units back: instead of the limit comes the instant of the entry that they were added to,
--          and if that is gone, or was never written, nothing happens. A request gives back with all its hits or none
-- returns  {nonce, now_ms, per request: verdict, then per hit: used (units), reset (ms), retry (ms)}; integers only
--          verdict  1 admitted and charged, 0 refused, -1 not judged: some key holds what is not ours, or what a newer
--                   version wrote. Nothing is charged then, nothing overwritten, and that hit's `used` is -1
--
-- A packed window: instants ascend, counts are at least 1, numbers are big-endian
--     1       VERSION, so that what others wrote is not taken for ours
--     2-7     newest   Unix ms of the newest entry
--     8-13    oldest   Unix ms of the oldest entry
--    14-17    used     units of all entries together
--    18-21    count    units of the newest entry
--    22-      the other entries, oldest first: 2 * (ms to the next entry) + (1 if it has more than one unit), and in that
--             case its units; both in base 128, lowest first, 128 added to each digit that is not the last
local VERSION, HEADER = 0xF1, 21
local byte, char, sub, floor = string.byte, string.char, string.sub, math.floor

-- What the batch has read and written so far, by key: each is read once, and written once, at the end.
local packed = {}
local expiry = {}
local written = {}

local now = tonumber(ARGV[2])
-- With the server's own clock a key goes at a moment, not after a while: a while would begin at the moment that the
-- server took for the script's, before TIME, and end before the newest entry has left.
local px, px_from = 'PX', now
if not now then
    local time = redis.call('TIME')
    now = tonumber(time[1]) * 1000 + floor(tonumber(time[2]) / 1000)
    px, px_from = 'PXAT', 0
end

-- A number in base 128 at `at`, and where the next one begins; nil if it is cut off.
local function read_number(body, at)
    local number, unit = 0, 1
    while true do
        local digit = byte(body, at)
        if not digit then
            return nil
        end
        at = at + 1
        if digit < 128 then
            return number + digit * unit, at
        end
        number = number + (digit - 128) * unit
        unit = unit * 128
    end
end

local function write_number(number)
    local digits = ''
    while number >= 128 do
        local digit = number % 128
        digits = digits .. char(digit + 128)
        number = (number - digit) / 128
    end
    return digits .. char(number)
end

-- Of the entry at `at`: its units, the ms to the entry after it, and where that one begins.
local function read_entry(body, at)
    local number, count = byte(body, at), 1
    if number and number < 128 then
        at = at + 1
    else
        number, at = read_number(body, at)
        if not number then
            return nil
        end
    end
    if number % 2 == 1 then
        count, at = read_number(body, at)
        number = number - 1
    end
    return count, number / 2, at
end

local function write_entry(count, distance)
    if count == 1 then
        return write_number(distance * 2)
    end
    return write_number(distance * 2 + 1) .. write_number(count)
end

-- {newest, oldest, used, count, body, at}: entries before `at` are forgotten. nil if the value is not ours.
local function read(key)
    local value = packed[key]
    if value == nil then
        value = redis.pcall('GET', key)
        packed[key] = value
    end
    if type(value) == 'table' and sub(value.err, 1, 9) ~= 'WRONGTYPE' then
        redis.call('GET', key) -- fails again, this time for the whole batch: it is not about this key
    end
    if not value then
        return {0, 0, 0, 0, '', HEADER + 1}
    end
    if type(value) ~= 'string' or #value < HEADER then
        return nil
    end
    local version, n1, n2, n3, n4, n5, n6, o1, o2, o3, o4, o5, o6, u1, u2, u3, u4, c1, c2, c3, c4 = byte(value, 1, HEADER)
    local newest = ((((n1 * 256 + n2) * 256 + n3) * 256 + n4) * 256 + n5) * 256 + n6
    local oldest = ((((o1 * 256 + o2) * 256 + o3) * 256 + o4) * 256 + o5) * 256 + o6
    if version ~= VERSION or (newest > oldest) ~= (#value > HEADER) then
        return nil
    end
    local used = ((u1 * 256 + u2) * 256 + u3) * 256 + u4
    local count = ((c1 * 256 + c2) * 256 + c3) * 256 + c4
    return {newest, oldest, used, count, value, HEADER + 1}
end

local function write(key, newest, oldest, used, count, body)
    local n6 = newest % 256
    newest = (newest - n6) / 256
    local n5 = newest % 256
    newest = (newest - n5) / 256
    local n4 = newest % 256
    newest = (newest - n4) / 256
    local n3 = newest % 256
    newest = (newest - n3) / 256
    local n2 = newest % 256
    local o6 = oldest % 256
    oldest = (oldest - o6) / 256
    local o5 = oldest % 256
    oldest = (oldest - o5) / 256
    local o4 = oldest % 256
    oldest = (oldest - o4) / 256
    local o3 = oldest % 256
    oldest = (oldest - o3) / 256
    local o2 = oldest % 256
    local u4 = used % 256
    used = (used - u4) / 256
    local u3 = used % 256
    used = (used - u3) / 256
    local u2 = used % 256
    local c4 = count % 256
    count = (count - c4) / 256
    local c3 = count % 256
    count = (count - c3) / 256
    local c2 = count % 256
    if expiry[key] == nil then
        written[#written + 1] = key
    end
    packed[key] = char(VERSION, (newest - n2) / 256, n2, n3, n4, n5, n6, (oldest - o2) / 256, o2, o3, o4, o5, o6,
        (used - u2) / 256, u2, u3, u4, (count - c2) / 256, c2, c3, c4) .. body
end

-- Leave out what has left the window, or everything if it comes from a clock that was far ahead.
local function forget(state, window, resolution)
    local newest = state[1]
    if newest > now - now % resolution + resolution - 1 + window or newest <= now - window then
        state[1], state[2], state[3], state[4], state[5], state[6] = 0, 0, 0, 0, '', HEADER + 1
        return true
    end
    local left = now - window
    while state[2] <= left do
        local count, distance, at = read_entry(state[5], state[6])
        if not at then
            return false
        end
        state[2] = state[2] + distance
        state[3] = state[3] - count
        state[6] = at
    end
    return true
end

-- How long until `surplus` units have left; nil if the value contradicts itself.
local function wait(state, surplus, window)
    local instant, at = state[2], state[6]
    while instant < state[1] do
        local count, distance, after = read_entry(state[5], at)
        if not after then
            return nil
        end
        surplus = surplus - count
        if surplus <= 0 then
            return instant + window - now
        end
        instant, at = instant + distance, after
    end
    return instant + window - now
end

local function charge(key, state, cost, window, resolution)
    local newest, oldest, count, body = state[1], state[2], state[4], ''
    local instant = now - now % resolution + resolution - 1
    if state[3] == 0 then
        newest, oldest, count = instant, instant, cost
    else
        body = sub(state[5], state[6])
        if newest >= instant then
            count = count + cost
        else
            body = body .. write_entry(count, instant - newest)
            newest, count = instant, cost
        end
    end
    state[2], state[3] = oldest, state[3] + cost
    write(key, newest, oldest, state[3], count, body)
    expiry[key] = newest + window - px_from
end

-- Take units from the entry that they were added to. Never from another: what leaves too early lets too many in.
local function give_back(key, state, units, instant, window)
    local instants, counts, found = {}, {}, nil
    local moment, at = state[2], state[6]
    while moment <= state[1] do
        local count, distance, after = state[4], 1, at
        if moment < state[1] then
            count, distance, after = read_entry(state[5], at)
            if not after then
                return
            end
        end
        if moment == instant and count >= units then
            found = true
            count = count - units
        end
        if count > 0 then
            instants[#instants + 1], counts[#counts + 1] = moment, count
        end
        moment, at = moment + distance, after
    end
    if not found then
        return
    end
    local last, body = #instants, ''
    for i = 1, last - 1 do
        body = body .. write_entry(counts[i], instants[i + 1] - instants[i])
    end
    state[2], state[3] = instants[1] or instant, state[3] - units
    write(key, instants[last] or instant, state[2], state[3], counts[last] or 0, body)
    expiry[key] = (instants[last] or instant) + window - px_from
end

local forms = {}
for i = 4, #ARGV do
    local form = {}
    for number in string.gmatch(ARGV[i], '%-?%d+') do
        form[#form + 1] = tonumber(number)
    end
    forms[i - 3] = form
end

local reply = {ARGV[1], now}
local n = 2 -- elements of the reply so far
local k = 0 -- keys of the requests so far
local states = {}
for r = 1, #ARGV[3] do
    local form = forms[byte(ARGV[3], r)]
    local hits = #form / 5
    local verdict = 1
    local withheld = {} -- shadow rules that would have refused
    for h = 1, hits do
        local f = h * 5 - 4
        local limit, window, resolution, cost, shadow = form[f], form[f + 1], form[f + 2], form[f + 3], form[f + 4]
        local state, retry, fits = read(KEYS[k + h]), 0, true
        if state and state[3] ~= 0 and not forget(state, window, resolution) then
            state = nil
        end
        if state then
            local surplus = state[3] + cost - limit
            if cost > limit then
                fits, retry = false, -1
            elseif surplus > 0 and cost > 0 then -- a lowered limit leaves no room, but a look needs none
                fits, retry = false, wait(state, surplus, window)
            end
        end
        states[h] = state
        reply[n + h * 3 + 1] = retry
        if not state or not retry then
            verdict = -1
            states[h] = false
        elseif not fits then
            if shadow ~= 0 then
                withheld[shadow] = true
            elseif verdict == 1 then
                verdict = 0
            end
        end
    end
    reply[n + 1] = verdict
    for h = 1, hits do
        local f = h * 5 - 4
        local state, cost, window = states[h], form[f + 3], form[f + 1]
        if verdict == 1 and cost < 0 then
            if state[3] ~= 0 then
                give_back(KEYS[k + h], state, -cost, form[f], window)
            end
        elseif verdict == 1 and cost ~= 0 and not withheld[form[f + 4]] then
            charge(KEYS[k + h], state, cost, window, form[f + 2])
        end
        if not state then
            reply[n + h * 3 - 1], reply[n + h * 3], reply[n + h * 3 + 1] = 0, -1, 0
        else
            reply[n + h * 3 - 1] = state[3]
            reply[n + h * 3] = state[3] ~= 0 and state[2] + window - now or 0
        end
    end
    n = n + 1 + hits * 3
    k = k + hits
end

for i = 1, #written do
    local key = written[i]
    redis.call('SET', key, packed[key], px, expiry[key])
end
return reply
