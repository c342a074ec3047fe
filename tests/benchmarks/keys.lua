-- wrk: a thousand clients, one API key each, in turn; then one line that redis_apps.py reads.
local requests, n = {}, 0

init = function()
    for principal = 1, 1000 do
        wrk.headers['X-API-Key'] = string.format('key-%04d', principal)
        requests[principal] = wrk.format('GET', '/')
    end
end

request = function()
    n = n % 1000 + 1
    return requests[n]
end

done = function(summary, latency)
    local errors = summary.errors
    local lost = errors.connect + errors.read + errors.write + errors.timeout
    -- requests, microseconds that they took, answers of 400 and above, no answer at all, p99 and longest in microseconds
    io.write(string.format('SEEN %d %d %d %d %d %d\n', summary.requests, summary.duration, errors.status, lost,
        latency:percentile(99), latency.max))
end
