-- Makes an account, if it may be made, and mints its starting credits. Keys as in commit.lua, and:
--   {ec}:account:<id>           hash: secret_hash, name, created_ms, granted (the starting credits: see transfer.lua),
--                               network (the neighbourhood it was made from), bound ("1": what it was given does not buy
--                               from workers of that neighbourhood: see sample.lua); later: banned (by whom, why), auditor,
--                               shown
--   {ec}:invitation:<id>        hash: left (how many accounts it is good for), expires_ms, note; the id is the code's hash
--   {ec}:invitations            sorted set: their ids by the time they expire
--   {ec}:made:<day>:<origin>    how many accounts an address or neighbourhood made on a day (UTC); gone two days later
-- ARGV: id, secret hash, name, credits, ledger entry, -credits, network, invitation or "", bound, then of each origin: its
-- name, most accounts a day, most accounts with credits a day (0: any number).
-- Returns {"ok", credits}, or with nothing made {"taken"} (the id), {"invitation"} (not valid), {"many"}.
local P = '{ec}:'
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local invitation = P .. 'invitation:' .. ARGV[8]
if ARGV[8] ~= '' then
  local known = redis.call('HMGET', invitation, 'left', 'expires_ms')
  if tonumber(known[1] or '0') < 1 or tonumber(known[2]) <= now then return {'invitation'} end
end
local granted, made = true, {}
for n = 10, #ARGV, 3 do
  local key = P .. 'made:' .. math.floor(time[1] / 86400) .. ':' .. ARGV[n]
  local count, most, gifts = tonumber(redis.call('GET', key) or '0'), tonumber(ARGV[n + 1]), tonumber(ARGV[n + 2])
  if most > 0 and count >= most then return {'many'} end
  if gifts > 0 and count >= gifts then granted = false end
  made[#made + 1] = key
end
local account = P .. 'account:' .. ARGV[1]
if redis.call('HSETNX', account, 'secret_hash', ARGV[2]) == 0 then return {'taken'} end
for _, key in ipairs(made) do
  redis.call('INCR', key)
  redis.call('EXPIRE', key, 172800)
end
if ARGV[8] ~= '' and redis.call('HINCRBY', invitation, 'left', -1) == 0 then
  redis.call('DEL', invitation)
  redis.call('ZREM', P .. 'invitations', ARGV[8])
end
redis.call('HSET', account, 'name', ARGV[3], 'created_ms', time[1] * 1000, 'network', ARGV[7],
  'granted', granted and ARGV[4] or '0')
if not granted then return {'ok', 0} end
if ARGV[9] ~= '' then redis.call('HSET', account, 'bound', ARGV[9]) end
-- Negated outside: a number of Lua is a double, and would be written in another way than HINCRBY reads.
redis.call('HINCRBY', P .. 'balances', 'mint', ARGV[6])
redis.call('HINCRBY', P .. 'balances', 'account:' .. ARGV[1], ARGV[4])
if ARGV[5] ~= '' then redis.call('XADD', P .. 'ledger', '*', 'm', ARGV[5]) end
return {'ok', tonumber(ARGV[4])}
