-- The frame of every kind of limit but the plain window: constants, helpers, and one table per step, by kind. This file and
-- those of the kinds are the body of one function, `mixed(reply)`, which runs only in a batch that needs it.
local WINDOW, BUCKET, PERIOD, SLOTS, BALANCE = 1, 2, 3, 4, 5
local LEASES_MAX, USED_MAX, BALANCE_MAX = 1000, 4e9, 1e12
local RENEW, NEVER = -1, -1
local insert, remove, sort, concat = table.insert, table.remove, table.sort, table.concat
local format, gmatch = string.format, string.gmatch
local max, min = math.max, math.min

-- Each function takes the state of a key, the form of the request, and the place of the hit in it.
local read_kind = {} -- (key, form, f): the state of the key without what no longer counts; nil if the value is foreign
local wait_kind = {} -- ms until the cost fits: 0 now, NEVER if no wait is known to help, nil if the value contradicts itself
local used_kind = {} -- units that count
local reset_kind = {} -- ms until less counts
local add_kind = {} -- (key, state, form, f): charge the cost
local settle_kind = {} -- (key, state, form, f): replace the charge by what is due

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
