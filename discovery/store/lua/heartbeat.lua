-- A worker says it is alive. Creates nothing: whoever is not registered, or started anew, is told so. Keys as in register.lua.
-- ARGV: worker, account, boot, ttl ms. Returns {"ok", now ms, epoch, earned, balance, open lease, ...} or {"unknown"}.
local P = '{ec}:'
local key = P .. 'worker:' .. ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local known = redis.call('HMGET', key, 'account', 'boot', 'epoch', 'earned')
local expires = redis.call('ZSCORE', P .. 'alive', ARGV[1])
if known[1] ~= ARGV[2] or known[2] ~= ARGV[3] or not expires or tonumber(expires) <= now then return {'unknown'} end
redis.call('ZADD', P .. 'alive', now + ARGV[4], ARGV[1])
local answer = {'ok', now, tonumber(known[3]), tonumber(known[4] or '0'),
  tonumber(redis.call('HGET', P .. 'balances', 'account:' .. ARGV[2]) or '0')}
for _, lease in ipairs(redis.call('SMEMBERS', key .. ':leases')) do answer[#answer + 1] = lease end
return answer
