-- The token bucket: core/algorithms/token_bucket.py.
local BUCKET_VERSION = 0xF2

local function write_bucket(key, state, form, f)
    local value = char(BUCKET_VERSION) .. format('%.0f %.0f %.0f', state[1], state[2], state[3])
    keep(key, value, state[1] ~= 0 and state[2] - now + ceil_of(state[1], form[f + 7]) or 0)
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
    elseif elapsed < 0 then -- from the future: drains from now, which is written here, since a refusal writes nothing
        state[2] = now
        write_bucket(key, state, form, f)
    end
    return state
end

wait_kind[BUCKET] = function(state, form, f)
    local limit, cost = form[f + 1], form[f + 2]
    local over = state[1] + (cost - limit) * state[3]
    if over <= 0 or cost == 0 then
        return 0
    end
    return cost > limit and NEVER or state[2] - now + ceil_of(over, form[f + 7])
end

used_kind[BUCKET] = function(state)
    return ceil_of(state[1], state[3])
end

reset_kind[BUCKET] = function(state, form, f)
    if state[1] == 0 then
        return 0
    end
    local last = (ceil_of(state[1], state[3]) - 1) * state[3]
    return state[2] - now + ceil_of(state[1] - last, form[f + 7])
end

add_kind[BUCKET] = function(key, state, form, f)
    state[1] = state[1] + form[f + 2] * state[3]
    write_bucket(key, state, form, f)
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
