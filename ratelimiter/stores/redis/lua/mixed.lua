-- Judge a request of several kinds, or settlements. Returns a function: (form, place in the reply, place in KEYS) to the places
-- after it.
local SETTLE = 115
local WIDTH = {8, 9, 12, 7, 7} -- numbers of a hit in a form, by kind

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
            reply[n + 1], reply[n + 2], reply[n + 3] = used_kind[kind](state), reset_kind[kind](state, form, f), 0
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
        local retry = state and wait_kind[form[f]](state, form, f)
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
                add_kind[form[at]](KEYS[k + h], state, form, at)
            end
            reply[n + 1], reply[n + 2] = used_kind[form[at]](state), reset_kind[form[at]](state, form, at)
            reply[n + 3] = waits[h]
        end
        n = n + 3
    end
    return n, k + hits
end
