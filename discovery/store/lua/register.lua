-- A worker enters the pool, or returns to it. Keys as in commit.lua, and:
--   {ec}:worker:<id>          hash: account, address, port, slots, capacity, used, epoch, boot, class, layers,
--                             capabilities (with spaces between)
--   {ec}:class:<class>        hash: workers and slots alive; there is none while nobody is
--   {ec}:class:<class>+<capability>  hash: the same of those that have the capability
--   {ec}:have:<class>+<capability>   sorted set: workers alive that have it, by their slots
--   {ec}:account:<id>:workers set: the account's workers
-- ARGV: worker, account, address, port, slots, capacity, boot, class, ttl ms, layers, capabilities.
-- Returns {"ok", epoch, now ms, leases it no longer knows of, ...} or {"forbidden"}.
local P = '{ec}:'
local id, account, slots, capacity, boot, class = ARGV[1], ARGV[2], ARGV[5], ARGV[6], ARGV[7], ARGV[8]
-- The class, and the class with each capability.
local function groups(class, caps)
  local all = {class}
  for cap in string.gmatch(caps or '', '%S+') do all[#all + 1] = class .. '+' .. cap end
  return all
end
local key = P .. 'worker:' .. id
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local known = redis.call('HMGET', key, 'account', 'boot', 'epoch', 'class', 'slots', 'capabilities')
if known[1] and known[1] ~= account then return {'forbidden'} end
local epoch, lost = tonumber(known[3] or '0'), {}
if known[2] ~= boot then
  epoch = epoch + 1
  lost = redis.call('SMEMBERS', key .. ':leases')
  redis.call('DEL', key .. ':leases')
end
if redis.call('ZSCORE', P .. 'alive', id) then
  for number, group in ipairs(groups(known[4], known[6])) do
    redis.call('SREM', P .. 'pool:' .. group, id)
    if number > 1 then redis.call('ZREM', P .. 'have:' .. group, id) end
    redis.call('HINCRBY', P .. 'class:' .. group, 'slots', -known[5])
    if redis.call('HINCRBY', P .. 'class:' .. group, 'workers', -1) == 0 then redis.call('DEL', P .. 'class:' .. group) end
  end
end
local used = redis.call('SCARD', key .. ':leases')
redis.call('HSET', key, 'account', account, 'address', ARGV[3], 'port', ARGV[4], 'slots', slots, 'capacity', capacity,
  'boot', boot, 'epoch', epoch, 'class', class, 'used', used, 'layers', ARGV[10], 'capabilities', ARGV[11])
redis.call('SADD', P .. 'account:' .. account .. ':workers', id)
redis.call('ZADD', P .. 'alive', now + ARGV[9], id)
for number, group in ipairs(groups(class, ARGV[11])) do
  redis.call('HINCRBY', P .. 'class:' .. group, 'workers', 1)
  redis.call('HINCRBY', P .. 'class:' .. group, 'slots', slots)
  if number > 1 then redis.call('ZADD', P .. 'have:' .. group, slots, id) end
  if used < tonumber(capacity) then redis.call('SADD', P .. 'pool:' .. group, id) end
end
local answer = {'ok', epoch, now}
for _, lease in ipairs(lost) do answer[#answer + 1] = lease end
return answer
