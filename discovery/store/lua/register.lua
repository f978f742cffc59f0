-- A worker enters the pool, or returns to it. Keys as in commit.lua, and:
--   {ec}:worker:<id>          hash: account, address, port, slots, capacity, used, epoch, boot, layers, ask, platform, near,
--                             class (its pool's: with "$" and what it asks, where that is more than 1), capabilities (names
--                             of its pools, with spaces between: see records.pools_of), banned and auditor (its account's),
--                             terms (whom it serves: records.WorkerRecord), away: 1 while it wants no leases. Then it is in
--                             none of the groups of its class, and counted in none. relay (never, may, must: see
--                             messages.AssignedWorker), called (ms, when somebody wanted it at the relay; in no file)
--   {ec}:class:<class>        hash: workers and slots alive; there is none while nobody is
--   {ec}:class:<class>+<capability>  hash: the same of those that have the capability
--   {ec}:have:<class>+<capability>   sorted set: workers alive that have it, by their slots
--   {ec}:asks:<class>         hash: what workers alive ask for, where it is more than 1 -> how many of them
--   {ec}:account:<id>:workers set: all ids of workers that the account ever had
--   {ec}:account:<id>:alive   set: those that are registered now
--   {ec}:near:<neighbourhood> set: workers registered now that are in it
-- ARGV: worker, account, address, port, slots, capacity, boot, class, ttl ms, layers, capabilities, ask, platform,
-- neighbourhood, the most (0: any number) workers of an account, ids of an account, workers of a neighbourhood; terms, "1"
-- for away or "", and relay.
-- Returns {"ok", epoch, now ms, leases it no longer knows of, ...}, or {"forbidden"} (the id is another account's),
-- {"banned"}, or {"account"}, {"ids"}, {"neighbourhood"}: which of the three has as many as it may have.
local P = '{ec}:'
local id, account, slots, capacity, boot, near = ARGV[1], ARGV[2], ARGV[5], ARGV[6], ARGV[7], ARGV[14]
local class = ARGV[12] == '1' and ARGV[8] or ARGV[8] .. '$' .. ARGV[12]
-- The class, and the class with each capability.
local function groups(class, caps)
  local all = {class}
  for cap in string.gmatch(caps or '', '%S+') do all[#all + 1] = class .. '+' .. cap end
  return all
end
local key, owner = P .. 'worker:' .. id, P .. 'account:' .. account
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local known = redis.call('HMGET', key, 'account', 'boot', 'epoch', 'class', 'slots', 'capabilities', 'near', 'share', 'away')
if known[1] and known[1] ~= account then return {'forbidden'} end
local marks = redis.call('HMGET', owner, 'banned', 'auditor')
if marks[1] then return {'banned'} end
-- Whether this worker would be one too many in a set.
local function full(set, most)
  return tonumber(most) > 0 and redis.call('SISMEMBER', set, id) == 0 and redis.call('SCARD', set) >= tonumber(most)
end
if full(owner .. ':alive', ARGV[15]) then return {'account'} end
if full(owner .. ':workers', ARGV[16]) then return {'ids'} end
if full(P .. 'near:' .. near, ARGV[17]) then return {'neighbourhood'} end
local epoch, lost = tonumber(known[3] or '0'), {}
if known[2] ~= boot then
  epoch = epoch + 1
  lost = redis.call('SMEMBERS', key .. ':leases')
  redis.call('DEL', key .. ':leases')
end
if redis.call('ZSCORE', P .. 'alive', id) then
  if not known[9] then
    for number, group in ipairs(groups(known[4], known[6])) do
      redis.call('SREM', P .. 'pool:' .. group, id)
      if number > 1 then redis.call('ZREM', P .. 'have:' .. group, id) end
      redis.call('HINCRBY', P .. 'class:' .. group, 'slots', -known[5])
      if redis.call('HINCRBY', P .. 'class:' .. group, 'workers', -1) == 0 then redis.call('DEL', P .. 'class:' .. group) end
    end
    local base, ask = string.match(known[4], '^(.*)%$(%d+)$')
    if base and redis.call('HINCRBY', P .. 'asks:' .. base, ask, -1) == 0 then redis.call('HDEL', P .. 'asks:' .. base, ask) end
  end
  if known[7] then redis.call('SREM', P .. 'near:' .. known[7], id) end
end
local used = redis.call('SCARD', key .. ':leases')
redis.call('HSET', key, 'account', account, 'address', ARGV[3], 'port', ARGV[4], 'slots', slots, 'capacity', capacity,
  'boot', boot, 'epoch', epoch, 'class', class, 'used', used, 'layers', ARGV[10], 'capabilities', ARGV[11],
  'ask', ARGV[12], 'platform', ARGV[13], 'near', near, 'terms', ARGV[18], 'relay', ARGV[20])
if marks[2] then redis.call('HSET', key, 'auditor', '1') end
redis.call('SADD', owner .. ':workers', id)
redis.call('SADD', owner .. ':alive', id)
redis.call('SADD', P .. 'near:' .. near, id)
redis.call('ZADD', P .. 'alive', now + ARGV[9], id)
if ARGV[19] == '1' then
  redis.call('HSET', key, 'away', '1')
else
  redis.call('HDEL', key, 'away')
  if class ~= ARGV[8] then redis.call('HINCRBY', P .. 'asks:' .. ARGV[8], ARGV[12], 1) end
  for number, group in ipairs(groups(class, ARGV[11])) do
    redis.call('HINCRBY', P .. 'class:' .. group, 'workers', 1)
    redis.call('HINCRBY', P .. 'class:' .. group, 'slots', slots)
    if number > 1 then redis.call('ZADD', P .. 'have:' .. group, slots, id) end
    if used < math.max(1, math.floor(capacity / (known[8] or 1))) then redis.call('SADD', P .. 'pool:' .. group, id) end
  end
end
local answer = {'ok', epoch, now}
for _, lease in ipairs(lost) do answer[#answer + 1] = lease end
return answer
