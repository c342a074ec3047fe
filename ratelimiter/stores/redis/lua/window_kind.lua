-- The window as one kind among others: in a request that also meets another kind, and in settlements.

read_kind[WINDOW] = function(key, form, f)
    local state = read(key)
    if state and state[3] ~= 0 and not forget(key, state, form[f + 6], form[f + 7]) then
        return nil
    end
    return state
end

wait_kind[WINDOW] = function(state, form, f)
    local limit, cost = form[f + 1], form[f + 2]
    local surplus = state[3] + cost - limit
    if surplus <= 0 or cost == 0 then
        return 0
    end
    return cost > limit and NEVER or wait(state, surplus, form[f + 6])
end

used_kind[WINDOW] = function(state)
    return state[3]
end

reset_kind[WINDOW] = function(state, form, f)
    return state[3] ~= 0 and state[2] + form[f + 6] - now or 0
end

add_kind[WINDOW] = function(key, state, form, f)
    charge(key, state, form[f + 2], form[f + 6], form[f + 7])
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
