-- The packed window: the hot part of the script. No function is created per request, since each costs Redis 0.1 us.

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

-- Drop what has left the window. What lies in the future counts as charged now, and is written so, since a refusal would not
-- write it; what lies more than a window ahead is dropped. False if the value contradicts itself.
local function forget(key, state, window, resolution)
    local newest = state[1]
    if newest >= now + resolution then
        local present = now - now % resolution + resolution - 1
        if newest > present + window then
            state[1], state[2], state[3], state[4], state[5], state[6] = 0, 0, 0, 0, '', HEADER + 1
            return true
        end
        local instant, at, oldest, past, ahead = state[2], state[6], nil, '', state[4]
        while instant < newest do
            local count, distance, after = read_entry(state[5], at)
            if not after then
                return false
            end
            if instant <= now - window then
                state[3] = state[3] - count
            elseif instant >= present then
                ahead = ahead + count
            else
                local gap = instant + distance < present and distance or present - instant
                past, oldest = past .. write_entry(count, gap), oldest or instant
            end
            instant, at = instant + distance, after
        end
        state[1], state[2], state[4] = present, oldest or present, ahead
        write(key, present, state[2], state[3], ahead, past)
        expiry[key] = present + window - px_from
        state[5], state[6] = packed[key], HEADER + 1
        return true
    end
    if newest <= now - window then
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
