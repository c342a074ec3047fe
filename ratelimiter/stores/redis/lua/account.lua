-- Calendar periods, slots and balances, which keep an account: core/algorithms/account.py.
local ACCOUNT_VERSION = 0xF3
local BALANCE_TTL = 10 * 366 * 86400000

-- Return when the period of `now` began and ends, and when the next one ends. If the clocks are so far apart that it is none
-- of those in the form, every period is taken to be as long as the last one.
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

-- {spent, start, until, leases, leased units}; a lease is {name, units, until}
local function read_account(key, form, f)
    local numbers = read_numbers(key, ACCOUNT_VERSION)
    if not numbers or (#numbers > 0 and #numbers % 3 ~= 2) then
        return nil
    end
    local kind, last, leases, leased, ahead = form[f], now + form[f + 6], {}, 0, false
    for n = 3, #numbers, 3 do
        local lapses = numbers[n + 2]
        if now < lapses and lapses <= last + form[f + 6] then
            if lapses > last then
                lapses, ahead = last, true
            end
            leases[#leases + 1] = {numbers[n], numbers[n + 1], lapses}
            leased = leased + numbers[n + 1]
        end
    end
    local state = {numbers[1] or 0, numbers[2] or 0, 0, leases, leased}
    if kind == PERIOD then
        local from, to, next_to = period(form, f)
        ahead = ahead or (to <= state[2] and state[2] < next_to)
        if state[2] < from or state[2] >= next_to then
            state[1] = 0
        end
        state[2], state[3] = from, to
    end
    if ahead then -- from the future: counts from now, which is written here, since a refusal writes nothing
        write_account(key, state, kind)
    end
    return state
end
read_kind[PERIOD], read_kind[SLOTS], read_kind[BALANCE] = read_account, read_account, read_account

local function wait_account(state, form, f)
    local kind, limit, cost = form[f], form[f + 1], form[f + 2]
    if cost <= 0 then
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
wait_kind[PERIOD], wait_kind[SLOTS], wait_kind[BALANCE] = wait_account, wait_account, wait_account

local function used_account(state)
    return state[1] + state[5]
end
used_kind[PERIOD], used_kind[SLOTS], used_kind[BALANCE] = used_account, used_account, used_account

local function reset_account(state, form, f)
    local kind = form[f]
    if kind == PERIOD then
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
reset_kind[PERIOD], reset_kind[SLOTS], reset_kind[BALANCE] = reset_account, reset_account, reset_account

local function add_account(key, state, form, f)
    local kind, cost, lease = form[f], form[f + 2], form[f + 4]
    if lease ~= 0 or kind == SLOTS then
        insert(state[4], {lease, cost, now + form[f + 6]})
        state[5] = state[5] + cost
    else
        state[1] = state[1] + cost
    end
    write_account(key, state, kind)
end
add_kind[PERIOD], add_kind[SLOTS], add_kind[BALANCE] = add_account, add_account, add_account

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
