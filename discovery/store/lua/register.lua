-- A worker enters the pool, or returns to it. Keys as in commit.lua, and:
--   {ec}:worker:<id>          hash: account, address, port, slots, capacity, used, epoch, boot, class, layers
--   {ec}:class:<class>        hash: workers and slots alive
--   {ec}:account:<id>:workers set: the account's workers
-- ARGV: worker, account, address, port, slots, capacity, boot, class, ttl ms, layers.
-- Returns {"ok", epoch, now ms, leases it no longer knows of, ...} or {"forbidden"}.
local P = '{ec}:'
local id, account, slots, capacity, boot, class = ARGV[1], ARGV[2], ARGV[5], ARGV[6], ARGV[7], ARGV[8]
local key = P .. 'worker:' .. id
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local known = redis.call('HMGET', key, 'account', 'boot', 'epoch', 'class', 'slots')
if known[1] and known[1] ~= account then return {'forbidden'} end
local epoch, lost = tonumber(known[3] or '0'), {}
if known[2] ~= boot then
  epoch = epoch + 1
  lost = redis.call('SMEMBERS', key .. ':leases')
  redis.call('DEL', key .. ':leases')
end
if redis.call('ZSCORE', P .. 'alive', id) then
  redis.call('HINCRBY', P .. 'class:' .. known[4], 'workers', -1)
  redis.call('HINCRBY', P .. 'class:' .. known[4], 'slots', -known[5])
  redis.call('SREM', P .. 'pool:' .. known[4], id)
end
local used = redis.call('SCARD', key .. ':leases')
redis.call('HSET', key, 'account', account, 'address', ARGV[3], 'port', ARGV[4], 'slots', slots, 'capacity', capacity,
  'boot', boot, 'epoch', epoch, 'class', class, 'used', used, 'layers', ARGV[10])
redis.call('SADD', P .. 'account:' .. account .. ':workers', id)
redis.call('ZADD', P .. 'alive', now + ARGV[9], id)
redis.call('HINCRBY', P .. 'class:' .. class, 'workers', 1)
redis.call('HINCRBY', P .. 'class:' .. class, 'slots', slots)
if used < tonumber(capacity) then redis.call('SADD', P .. 'pool:' .. class, id) end
local answer = {'ok', epoch, now}
for _, lease in ipairs(lost) do answer[#answer + 1] = lease end
return answer
