-- The program: parse the forms, judge each request in order, write each changed key once, reply.
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
        judge = judge or mixed(reply)
        n, k = judge(form, n, k)
    else
        local hits = #form / 5
        local verdict = 1
        local withheld = {} -- shadow rules that would have refused
        for h = 1, hits do
            local f = h * 5 - 4
            local limit, window, resolution, cost, shadow = form[f], form[f + 1], form[f + 2], form[f + 3], form[f + 4]
            local state, retry, fits = read(KEYS[k + h]), 0, true
            if state and state[3] ~= 0 and not forget(KEYS[k + h], state, window, resolution) then
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
