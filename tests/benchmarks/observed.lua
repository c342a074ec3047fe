-- wrk: paths and keys in turn, at a steady pace; then one line that observed.py reads.
-- arguments: name of the first key, how many keys, milliseconds between two requests of a connection, seconds to ask for
local paths = { '/items', '/items/7', '/search/all', '/exports', '/payments', '/health' }
local threads = {}

setup = function(thread)
    table.insert(threads, thread)
end

init = function(arguments)
    first, keys = arguments[1], tonumber(arguments[2])
    pause_ms, last_s = tonumber(arguments[3]), os.time() + tonumber(arguments[4])
    turn, statuses = 0, {}
end

-- wrk drops what is under way when its time is up, and who was asked has counted it. So it stops asking before that.
delay = function()
    return os.time() < last_s and pause_ms or 3600000
end

request = function()
    turn = turn + 1
    -- Else whichever worker has taken a connection first would keep it, and often all of them.
    wrk.headers['Connection'] = turn % 50 == 0 and 'close' or 'keep-alive'
    wrk.headers['X-API-Key'] = string.format('%s-%d', first, turn % keys)
    return wrk.format('GET', paths[turn % #paths + 1])
end

response = function(status)
    local name = tostring(status)
    statuses[name] = (statuses[name] or 0) + 1
end

done = function(summary)
    local errors = summary.errors
    io.write(string.format('SEEN lost=%d', errors.connect + errors.read + errors.write + errors.timeout))
    for _, thread in ipairs(threads) do
        for status, number in pairs(thread:get('statuses')) do
            io.write(string.format(' %s=%d', status, number))
        end
    end
    io.write('\n')
end
