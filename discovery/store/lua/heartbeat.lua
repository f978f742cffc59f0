-- A worker says it is alive. Creates nothing: whoever is not registered, started anew, or is elsewhere now, is told to
-- register: a worker that moved has to be tried where it is now, and counted there. Of one that serves the relay alone only
-- the neighbourhood matters. Who wants no leases now ("away") leaves the groups of its class, and keeps what it holds. Keys
-- as in register.lua.
-- ARGV: worker, account, boot, ttl ms, "1" for away or "", address or "" (any), neighbourhood or "" (any).
-- Returns {"ok", now ms, epoch, earned, balance, whether somebody wants it at the relay, open lease, ...} or {"unknown"}.
local P = '{ec}:'
local id, key = ARGV[1], P .. 'worker:' .. ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local known = redis.call('HMGET', key, 'account', 'boot', 'epoch', 'earned', 'address', 'away', 'relay', 'near', 'called')
local expires = redis.call('ZSCORE', P .. 'alive', id)
if known[1] ~= ARGV[2] or known[2] ~= ARGV[3] or not expires or tonumber(expires) <= now then return {'unknown'} end
local at, was = ARGV[6], known[5]
if known[7] == 'must' then at, was = ARGV[7], known[8] end
if at ~= '' and at ~= was then return {'unknown'} end
redis.call('ZADD', P .. 'alive', now + ARGV[4], id)
if (known[6] or '') ~= ARGV[5] then
  local away = ARGV[5] == '1'
  local w = redis.call('HMGET', key, 'class', 'capabilities', 'slots', 'used', 'capacity', 'share')
  if away then redis.call('HSET', key, 'away', '1') else redis.call('HDEL', key, 'away') end
  local groups = {w[1]}
  for cap in string.gmatch(w[2] or '', '%S+') do groups[#groups + 1] = w[1] .. '+' .. cap end
  local one, slots = away and -1 or 1, tonumber(w[3])
  local base, ask = string.match(w[1], '^(.*)%$(%d+)$')
  if base and redis.call('HINCRBY', P .. 'asks:' .. base, ask, one) == 0 then redis.call('HDEL', P .. 'asks:' .. base, ask) end
  local free = tonumber(w[4]) < math.max(1, math.floor(tonumber(w[5]) / tonumber(w[6] or '1')))
  for number, group in ipairs(groups) do
    redis.call('HINCRBY', P .. 'class:' .. group, 'slots', one * slots)
    if redis.call('HINCRBY', P .. 'class:' .. group, 'workers', one) == 0 then redis.call('DEL', P .. 'class:' .. group) end
    if away then
      redis.call('SREM', P .. 'pool:' .. group, id)
      if number > 1 then redis.call('ZREM', P .. 'have:' .. group, id) end
    else
      if free then redis.call('SADD', P .. 'pool:' .. group, id) end
      if number > 1 then redis.call('ZADD', P .. 'have:' .. group, slots, id) end
    end
  end
end
local answer = {'ok', now, tonumber(known[3]), tonumber(known[4] or '0'),
  tonumber(redis.call('HGET', P .. 'balances', 'account:' .. ARGV[2]) or '0'),
  known[7] == 'may' and now - tonumber(known[9] or '0') < 60000 and 1 or 0}
for _, lease in ipairs(redis.call('SMEMBERS', key .. ':leases')) do answer[#answer + 1] = lease end
return answer
