-- Asks `ratelimiter serve` about each request: `http-request lua.ratelimiter HOST:PORT`.
-- Refusals are answered with status, headers and body of the service. Sets txn.rl_status to its status, or to "error" if
-- it gives none, and txn.rl_limit, txn.rl_remaining and txn.rl_reset to its figures.

local TIMEOUT_MS = 250
local OURS = {["x-forwarded-method"] = true, ["x-forwarded-uri"] = true, ["x-original-method"] = true,
              ["x-original-uri"] = true, ["x-forwarded-for"] = true, ["x-real-ip"] = true,
              ["content-length"] = true, ["transfer-encoding"] = true, ["connection"] = true, ["expect"] = true}
local OF_HAPROXY = {["content-length"] = true, ["transfer-encoding"] = true, ["connection"] = true}

local function values(headers)
    local listed = {}
    for index = 0, #headers do
        if headers[index] ~= nil then listed[#listed + 1] = headers[index] end
    end
    return listed
end

core.register_action("ratelimiter", {"http-req"}, function(txn, service)
    local headers = {}
    for name, found in pairs(txn.http:req_get_headers()) do
        if not OURS[name] then headers[name] = values(found) end
    end
    headers["x-forwarded-method"] = {txn.sf:method()}
    headers["x-forwarded-uri"] = {txn.sf:pathq()}
    headers["x-forwarded-for"] = {txn.sf:src()}
    local answer = core.httpclient():get{url = "http://" .. service .. "/check", headers = headers, timeout = TIMEOUT_MS}
    if not answer or not answer.status or answer.status == 0 then
        txn:set_var("txn.rl_status", "error")
        return
    end
    txn:set_var("txn.rl_status", tostring(answer.status))
    local said = answer.headers or {}
    for _, name in ipairs({"limit", "remaining", "reset"}) do
        local found = said["x-ratelimit-" .. name]
        if found then txn:set_var("txn.rl_" .. name, values(found)[1]) end
    end
    if answer.status == 200 then return end
    local reply = txn:reply{status = answer.status, body = answer.body or ""}
    for name, found in pairs(said) do
        if not OF_HAPROXY[name] and name:sub(1, 12) ~= "x-ratelimit-" then
            for _, value in ipairs(values(found)) do reply:add_header(name, value) end
        end
    end
    txn:done(reply)
end, 1)
