-- Charges a batch of requests. Per request: look at every hit, then charge all or none; a later request of the batch sees
-- what the earlier ones were charged. Semantics are those of the core, step for step: core/window.py, core/bucket.py,
-- core/account.py. Lua 5.1 and 5.4 alike.
--
-- KEYS     one per hit, in order, those of the first request first; a key may come up several times. Type STRING:
--          what is kept of one key (below), gone when nothing of it counts any more.
-- ARGV[1]  nonce, any string, given back as it came
-- ARGV[2]  now, Unix ms; or "" to ask the server, once for the whole batch
-- ARGV[3]  one byte per request: which of the forms that follow is its form, from 1
-- ARGV[4+] the forms, numbers with spaces between. Of a request that meets nothing but windows five per hit:
--          limit (units), window (ms), resolution (ms), cost (units), shadow (0 enforced; else the rule's number).
--          Of any other request the letter m, then per hit:
--          kind, limit (units), cost (units), shadow, lease (its name; 0 none), 0, and what its kind wants:
--              1 window   window (ms), resolution (ms)
--              2 bucket   weight (of a unit), drain (weight per ms), the most that can be owed (weight)
--              3 period   life of a lease (ms), beginnings of five periods in a row (Unix ms), as near to now as we know
--              4 slots    life of a lease (ms)
--              5 balance  life of a lease (ms)
--          Of settlements the letter s, then for each the same numbers, but in the place of the cost what was charged, in
--          that of shadow what is due (units; -1 to renew the lease), and after the lease when it was charged (Unix ms)
-- returns  {nonce, now_ms, per request: verdict, then per hit: used (units), reset (ms), retry (ms)}; integers only
--          verdict  1 admitted and charged, 0 refused, -1 not judged: some key holds what is not ours, or what a newer
--                   version wrote. Nothing is charged then, nothing overwritten, and that hit's `reset` is -1
--          retry is -1 when no wait is known to help. Settlements are judged one by one, and retry is 0
--
-- A packed window: instants ascend, counts are at least 1, numbers are big-endian
--     1       VERSION, so that what others wrote is not taken for ours
--     2-7     newest   Unix ms of the newest entry
--     8-13    oldest   Unix ms of the oldest entry
--    14-17    used     units of all entries together
--    18-21    count    units of the newest entry
--    22-      the other entries, oldest first: 2 * (ms to the next entry) + (1 if it has more than one unit), and in that
--             case its units; both in base 128, lowest first, 128 added to each digit that is not the last
--
-- A bucket: 0xF2, then in decimals: debt (weight), since when (Unix ms), weight of a unit
-- An account, which is a period, slots or a balance: 0xF3, then in decimals: units spent, beginning of the period (Unix ms;
-- 0 where there is none), and for each lease, in the order in which they were made: name, units, until when (Unix ms)
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

-- {newest, oldest, used, count, body, at}: entries before `at` are forgotten. nil if the value is not ours. With `raw` the
-- value as it is: a string, false if there is none, anything else if it is not ours.
local function read(key, raw)
    local value = packed[key]
    if value == nil then
        value = redis.pcall('GET', key)
        packed[key] = value
    end
    if type(value) == 'table' and sub(value.err, 1, 9) ~= 'WRONGTYPE' then
        redis.call('GET', key) -- fails again, this time for the whole batch: it is not about this key
    end
    if raw then
        return value
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

-- All that a batch of windows can do without, in one piece: to make a function takes Redis a tenth of a microsecond.
-- Gives what judges a request of letter m or s: (form, place in the reply, place in KEYS) to the places behind it.
local function others(reply)
    local WINDOW, BUCKET, PERIOD, SLOTS, BALANCE = 1, 2, 3, 4, 5
    local WIDTH = {8, 9, 12, 7, 7} -- numbers of a hit, by kind
    local BUCKET_VERSION, ACCOUNT_VERSION = 0xF2, 0xF3
    local LEASES_MAX, USED_MAX, BALANCE_MAX = 1000, 4e9, 1e12
    local BALANCE_TTL = 10 * 366 * 86400000
    local SETTLE, RENEW, NEVER = 115, -1, -1
    local insert, remove, sort, concat = table.insert, table.remove, table.sort, table.concat
    local format, gmatch = string.format, string.gmatch
    local max, min = math.max, math.min

    local function ceil_of(dividend, divisor)
        local rest = dividend % divisor
        return (dividend - rest) / divisor + (rest > 0 and 1 or 0)
    end

    local function keep(key, value, ttl)
        if expiry[key] == nil then
            written[#written + 1] = key
        end
        packed[key] = value
        expiry[key] = now + max(1, ttl) - px_from
    end

    -- What is kept of a key, with what no longer counts left out; nil if that is not ours.
    local read_kind = {}

    read_kind[WINDOW] = function(key, form, f)
        local state = read(key)
        if state and state[3] ~= 0 and not forget(state, form[f + 6], form[f + 7]) then
            return nil
        end
        return state
    end

    local function read_numbers(key, version)
        local value = read(key, true)
        if not value then
            return {}
        elseif type(value) ~= 'string' or byte(value) ~= version then
            return nil
        end
        local numbers = {}
        for number in gmatch(sub(value, 2), '%-?%d+') do
            numbers[#numbers + 1] = tonumber(number)
        end
        return #numbers > 0 and numbers or nil
    end

    -- {debt, since, weight}
    read_kind[BUCKET] = function(key, form, f)
        local limit, weight, drain, debt_max = form[f + 1], form[f + 6], form[f + 7], form[f + 8]
        local state = read_numbers(key, BUCKET_VERSION)
        if not state or #state == 0 then
            return state and {0, now, weight}
        elseif #state ~= 3 or state[3] < 1 then
            return nil
        end
        if state[3] ~= weight then
            state[1], state[3] = min(ceil_of(state[1], state[3]) * weight, debt_max), weight
        end
        local elapsed = now - state[2]
        if elapsed >= ceil_of(state[1], drain) or -elapsed > ceil_of(limit * weight, drain) or state[1] == 0 then
            state[1], state[2] = 0, now
        elseif elapsed > 0 then
            state[1], state[2] = state[1] - elapsed * drain, now
        end
        return state
    end

    -- When the period of `now` began and ends, and when the next one ends. If the clocks are so far apart that it is none of
    -- those we were told of, all are taken to be as long as the last one.
    local function period(form, f)
        local first = f + 7
        local at, length = first + 1, nil
        if now >= form[first + 3] then
            at, length = first + 3, form[first + 4] - form[first + 3]
        elseif now >= form[first + 2] then
            at = first + 2
        elseif now < form[first] then
            at, length = first, form[first + 1] - form[first]
        elseif now < form[first + 1] then
            at = first
        end
        if length then
            local start = now - (now - form[at]) % length
            return start, start + length, start + 2 * length
        end
        return form[at], form[at + 1], form[at + 2]
    end

    -- {spent, start, until, leases, leased units}; a lease is {name, units, until}
    local function read_account(key, form, f)
        local numbers = read_numbers(key, ACCOUNT_VERSION)
        if not numbers or (#numbers > 0 and #numbers % 3 ~= 2) then
            return nil
        end
        local kind, far, leases, leased = form[f], now + 2 * form[f + 6], {}, 0
        for n = 3, #numbers, 3 do
            local lapses = numbers[n + 2]
            if now < lapses and lapses <= far then
                leases[#leases + 1] = {numbers[n], numbers[n + 1], lapses}
                leased = leased + numbers[n + 1]
            end
        end
        local state = {numbers[1] or 0, numbers[2] or 0, 0, leases, leased}
        if kind == PERIOD then
            local from, to, next_to = period(form, f)
            state[3] = to
            if to <= state[2] and state[2] < next_to then
                state[3] = next_to
            else
                if state[2] < from or state[2] >= to then
                    state[1] = 0
                end
                state[2] = from
            end
        end
        return state
    end
    read_kind[PERIOD], read_kind[SLOTS], read_kind[BALANCE] = read_account, read_account, read_account

    -- How long until the cost fits: 0 if it does, NEVER if no wait is known to help, nil if a value contradicts itself.
    local function look(state, form, f)
        local kind, limit, cost = form[f], form[f + 1], form[f + 2]
        if kind == WINDOW then
            local surplus = state[3] + cost - limit
            if surplus <= 0 or cost == 0 then
                return 0
            end
            return cost > limit and NEVER or wait(state, surplus, form[f + 6])
        elseif kind == BUCKET then
            local over = state[1] + (cost - limit) * state[3]
            if over <= 0 or cost == 0 then
                return 0
            end
            return cost > limit and NEVER or state[2] - now + ceil_of(over, form[f + 7])
        elseif cost <= 0 then
            return cost < 0 and state[1] + cost < -BALANCE_MAX and NEVER or 0
        end
        local leases = state[4]
        local surplus = state[1] + state[5] + cost - limit
        local room = form[f + 4] ~= 0 and LEASES_MAX - #leases or 1
        if surplus <= 0 and room > 0 then
            return 0
        end
        local ends = {}
        for i = 1, #leases do
            ends[i] = {leases[i][3], leases[i][2], 1}
        end
        if kind == PERIOD then
            insert(ends, {state[3], state[1], 0})
        end
        sort(ends, function(one, other) return one[1] < other[1] end)
        for i = 1, #ends do
            surplus = surplus - ends[i][2]
            room = room + ends[i][3]
            if surplus <= 0 and room > 0 then
                return ends[i][1] - now
            end
        end
        return NEVER
    end

    local function used(kind, state)
        if kind == WINDOW then
            return state[3]
        elseif kind == BUCKET then
            return ceil_of(state[1], state[3])
        end
        return state[1] + state[5]
    end

    local function reset(kind, state, form, f)
        if kind == WINDOW then
            return state[3] ~= 0 and state[2] + form[f + 6] - now or 0
        elseif kind == BUCKET then
            if state[1] == 0 then
                return 0
            end
            local last = (ceil_of(state[1], state[3]) - 1) * state[3]
            return state[2] - now + ceil_of(state[1] - last, form[f + 7])
        elseif kind == PERIOD then
            return (state[1] ~= 0 or #state[4] > 0) and state[3] - now or 0
        elseif kind == SLOTS and #state[4] > 0 then
            local first = state[4][1][3]
            for i = 2, #state[4] do
                first = min(first, state[4][i][3])
            end
            return first - now
        end
        return 0
    end

    local function write_bucket(key, state, form, f)
        local value = char(BUCKET_VERSION) .. format('%.0f %.0f %.0f', state[1], state[2], state[3])
        keep(key, value, state[1] ~= 0 and state[2] - now + ceil_of(state[1], form[f + 7]) or 0)
    end

    local function write_account(key, state, kind)
        local words = {format('%.0f %.0f', state[1], state[2])}
        local ttl = kind == PERIOD and state[1] ~= 0 and state[3] - now or 0
        for i = 1, #state[4] do
            local lease = state[4][i]
            words[i + 1] = format('%.0f %.0f %.0f', lease[1], lease[2], lease[3])
            ttl = max(ttl, lease[3] - now)
        end
        if kind == BALANCE and (state[1] ~= 0 or #state[4] > 0) then
            ttl = BALANCE_TTL
        end
        keep(key, char(ACCOUNT_VERSION) .. concat(words, ' '), ttl)
    end

    local function add(key, state, form, f)
        local kind, cost, lease = form[f], form[f + 2], form[f + 4]
        if kind == WINDOW then
            charge(key, state, cost, form[f + 6], form[f + 7])
        elseif kind == BUCKET then
            state[1] = state[1] + cost * state[3]
            write_bucket(key, state, form, f)
        else
            if lease ~= 0 or kind == SLOTS then
                insert(state[4], {lease, cost, now + form[f + 6]})
                state[5] = state[5] + cost
            else
                state[1] = state[1] + cost
            end
            write_account(key, state, kind)
        end
    end

    local settle_kind = {}

    settle_kind[WINDOW] = function(key, state, form, f)
        local charged, due, at = form[f + 2], form[f + 3], form[f + 5]
        local window, resolution = form[f + 6], form[f + 7]
        if due > charged then
            local units = min(due - charged, USED_MAX - state[3])
            if units > 0 then
                charge(key, state, units, window, resolution)
            end
        elseif due ~= RENEW and due < charged and state[3] ~= 0 then
            give_back(key, state, charged - due, at - at % resolution + resolution - 1, window)
        end
    end

    settle_kind[BUCKET] = function(key, state, form, f)
        local charged, due, at = form[f + 2], form[f + 3], form[f + 5]
        local drain, debt_max, debt = form[f + 7], form[f + 8], state[1]
        if due == RENEW then
            return
        elseif due >= charged then
            local units = min(due - charged, (debt_max - debt_max % state[3]) / state[3])
            state[1] = max(debt, min(debt + units * state[3], debt_max))
        elseif at <= state[2] then
            local elapsed, weight = max(0, now - at), (charged - due) * state[3]
            if elapsed < ceil_of(weight, drain) then
                state[1] = max(0, debt - weight + elapsed * drain)
            end
        end
        if state[1] ~= debt then
            write_bucket(key, state, form, f)
        end
    end

    local function settle_account(key, state, form, f)
        local kind, limit, charged, due, name, at = form[f], form[f + 1], form[f + 2], form[f + 3], form[f + 4], form[f + 5]
        local leases, there, place = state[4], max(0, limit - state[1] - state[5]), nil
        for i = 1, name ~= 0 and #leases or 0 do
            if leases[i][1] == name then
                place = i
                break
            end
        end
        if due == RENEW then
            local units = min(charged, there)
            if place then
                leases[place][3] = now + form[f + 6]
            elseif name ~= 0 and units > 0 and #leases < LEASES_MAX then
                insert(leases, {name, units, now + form[f + 6]})
                state[5] = state[5] + units
            else
                return
            end
            write_account(key, state, kind)
            return
        end
        local spent = state[1]
        if place then
            local units = remove(leases, place)[2]
            there = there + units
            state[5] = state[5] - units
        end
        if kind ~= SLOTS then
            if name ~= 0 then
                state[1] = spent + min(due, there)
            elseif due >= charged then
                state[1] = spent + min(due - charged, there)
            elseif at >= state[2] and (spent >= charged - due or kind == BALANCE) then
                state[1] = spent - charged + due
            end
        end
        if place or state[1] ~= spent then
            write_account(key, state, kind)
        end
    end
    settle_kind[PERIOD], settle_kind[SLOTS], settle_kind[BALANCE] = settle_account, settle_account, settle_account

    local function settle(form, n, k)
        local f, verdict = 1, n + 1
        reply[verdict] = 1
        n = verdict
        while form[f] do
            local kind = form[f]
            k = k + 1
            local state = read_kind[kind](KEYS[k], form, f)
            if state then
                settle_kind[kind](KEYS[k], state, form, f)
                reply[n + 1], reply[n + 2], reply[n + 3] = used(kind, state), reset(kind, state, form, f), 0
            else
                reply[verdict] = -1
                reply[n + 1], reply[n + 2], reply[n + 3] = 0, -1, 0
            end
            n = n + 3
            f = f + WIDTH[kind]
        end
        return n, k
    end

    return function(form, n, k)
        if form.letter == SETTLE then
            return settle(form, n, k)
        end
        local places, states, waits, withheld = {}, {}, {}, {}
        local verdict, f, hits = 1, 1, 0
        while form[f] do
            hits = hits + 1
            local state = read_kind[form[f]](KEYS[k + hits], form, f)
            local retry = state and look(state, form, f)
            places[hits], states[hits], waits[hits] = f, retry and state, retry
            if not retry then
                verdict = -1
            elseif retry ~= 0 then
                if form[f + 3] ~= 0 then
                    withheld[form[f + 3]] = true
                elseif verdict == 1 then
                    verdict = 0
                end
            end
            f = f + WIDTH[form[f]]
        end
        n = n + 1
        reply[n] = verdict
        for h = 1, hits do
            local at, state = places[h], states[h]
            if not state then
                reply[n + 1], reply[n + 2], reply[n + 3] = 0, -1, 0
            else
                if verdict == 1 and form[at + 2] ~= 0 and not withheld[form[at + 3]] then
                    add(KEYS[k + h], state, form, at)
                end
                reply[n + 1], reply[n + 2] = used(form[at], state), reset(form[at], state, form, at)
                reply[n + 3] = waits[h]
            end
            n = n + 3
        end
        return n, k + hits
    end
end

local forms = {}
for i = 4, #ARGV do
    local form = {}
    for number in string.gmatch(ARGV[i], '%-?%d+') do
        form[#form + 1] = tonumber(number)
    end
    form.letter = byte(ARGV[i]) > 57 and byte(ARGV[i])
    forms[i - 3] = form
end

local reply = {ARGV[1], now}
local n = 2 -- elements of the reply so far
local k = 0 -- keys of the requests so far
local states = {}
local judge = nil
for r = 1, #ARGV[3] do
    local form = forms[byte(ARGV[3], r)]
    if form.letter then
        judge = judge or others(reply)
        n, k = judge(form, n, k)
    else
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
            if verdict == 1 and cost ~= 0 and not withheld[form[f + 4]] then
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
end

for i = 1, #written do
    local key = written[i]
    redis.call('SET', key, packed[key], px, expiry[key])
end
return reply
