-- Charge a batch of requests. Per request: look at every hit, then charge all of them or none. A later request of the batch
-- sees the charges of the earlier ones. The semantics are those of the core, step for step: core/algorithms/. Runs on Lua 5.1
-- and 5.4 alike. This file, window.lua, the kinds and charge.lua are joined to one script: see stores/redis/script.py.
--
-- KEYS     one per hit, in order, those of the first request first; a key may occur several times. Type STRING:
--          the state of one key (below), with a TTL that ends when nothing of it counts any more.
-- ARGV[1]  nonce, any string; the reply begins with it
-- ARGV[2]  now, Unix ms; or "" to ask the server, once for the whole batch
-- ARGV[3]  one byte per request: the number of its form, from 1, among the forms that follow
-- ARGV[4+] the forms, numbers with spaces between. For a request with windows only, five numbers per hit:
--          limit (units), window (ms), resolution (ms), cost (units), shadow (0 enforced; else the rule's number).
--          For any other request the letter m, then per hit:
--          kind, limit (units), cost (units), shadow, lease (its name; 0 none), 0, and what the kind needs:
--              1 window   window (ms), resolution (ms)
--              2 bucket   weight (of a unit), drain (weight per ms), the largest debt (weight)
--              3 period   TTL of a lease (ms), starts of five consecutive periods (Unix ms), the nearest that the client knows
--              4 slots    TTL of a lease (ms)
--              5 balance  TTL of a lease (ms)
--          For settlements the letter s, then for each the same numbers, with the charged units in place of the cost, the
--          units due (-1 renews the lease) in place of shadow, and the moment of the charge (Unix ms) after the lease
-- returns  {nonce, now_ms, per request: verdict, then per hit: used (units), reset (ms), retry (ms)}; integers only
--          verdict  1 admitted and charged, 0 refused, -1 not judged: a key holds a foreign value, or one that a newer
--                   version wrote. Then nothing is charged or overwritten, and that hit's `reset` is -1
--          retry is -1 when no wait is known to help. Settlements are judged one by one, and their retry is 0
--
-- A packed window: instants ascend, counts are at least 1, numbers are big-endian
--     1       VERSION, to tell our values from foreign ones
--     2-7     newest   Unix ms of the newest entry
--     8-13    oldest   Unix ms of the oldest entry
--    14-17    used     units of all entries together
--    18-21    count    units of the newest entry
--    22-      the other entries, oldest first: 2 * (ms to the next entry) + (1 if it has more than one unit), and in that
--             case its units; both in base 128, lowest digit first, 128 added to each digit that is not the last
--
-- A bucket: 0xF2, then in decimals: debt (weight), since when (Unix ms), weight of a unit
-- An account (a period, slots or a balance): 0xF3, then in decimals: units spent, start of the period (Unix ms; 0 where there
-- is none), and for each lease, in the order of creation: name, units, until when (Unix ms)
local VERSION, HEADER = 0xF1, 21
local byte, char, sub, floor = string.byte, string.char, string.sub, math.floor

-- The state of the batch by key: each key is read once, and written once, at the end.
local packed = {}
local expiry = {}
local written = {}

local now = tonumber(ARGV[2])
-- With the server's clock a key expires at a moment, not after a duration: a duration would begin at the moment that the
-- server took for the script's, before TIME, and end before the newest entry has left.
local px, px_from = 'PX', now
if not now then
    local time = redis.call('TIME')
    now = tonumber(time[1]) * 1000 + floor(tonumber(time[2]) / 1000)
    px, px_from = 'PXAT', 0
end
