-- Takes workers out of the pool: those named (ARGV: "leave", worker, account), up to ARGV[2] whose time is over ("lapse"), or
-- all of an account that is banned with it ("ban", account, by whom, why).
-- What they hold stays theirs until it is settled or due; what those of a banned account hold is to end:
--   {ec}:ending  set: leases that the next sweep ends
--   {ec}:banned  set: accounts that are banned
--   {ec}:backtrack  set: <account>:<job>, open jobs whose results may rest on them: the next sweep looks through these
-- Keys as in register.lua. Returns how many left, -1: not registered (leave), or banned already or unknown (ban).
local P = '{ec}:'
local gone = {}
-- The class, and the class with each capability.
local function groups(class, caps)
  local all = {class}
  for cap in string.gmatch(caps or '', '%S+') do all[#all + 1] = class .. '+' .. cap end
  return all
end
if ARGV[1] == 'leave' then
  if redis.call('HGET', P .. 'worker:' .. ARGV[2], 'account') ~= ARGV[3] or not redis.call('ZSCORE', P .. 'alive', ARGV[2]) then
    return -1
  end
  gone = {ARGV[2]}
elseif ARGV[1] == 'lapse' then
  local time = redis.call('TIME')
  gone = redis.call('ZRANGEBYSCORE', P .. 'alive', '-inf', time[1] * 1000 + math.floor(time[2] / 1000), 'LIMIT', 0, ARGV[2])
else
  local account = P .. 'account:' .. ARGV[2]
  local known = redis.call('HMGET', account, 'secret_hash', 'banned')
  -- What an operator said stays until an operator says otherwise.
  if not known[1] or (known[2] and (ARGV[3] ~= 'operator' or known[2] == ARGV[3] .. ': ' .. ARGV[4])) then return -1 end
  redis.call('HSET', account, 'banned', ARGV[3] .. ': ' .. ARGV[4])
  redis.call('SADD', P .. 'banned', ARGV[2])
  for _, id in ipairs(redis.call('SMEMBERS', account .. ':workers')) do
    redis.call('HSET', P .. 'worker:' .. id, 'banned', '1')
    for _, lease in ipairs(redis.call('SMEMBERS', P .. 'worker:' .. id .. ':leases')) do
      redis.call('SADD', P .. 'ending', lease)
    end
    if redis.call('ZSCORE', P .. 'alive', id) then gone[#gone + 1] = id end
  end
  for _, job in ipairs(redis.call('ZRANGE', P .. 'open', 0, -1)) do redis.call('SADD', P .. 'backtrack', job) end
end
for _, id in ipairs(gone) do
  local known = redis.call('HMGET', P .. 'worker:' .. id, 'class', 'slots', 'capabilities', 'account', 'near', 'away')
  redis.call('ZREM', P .. 'alive', id)
  redis.call('SREM', P .. 'account:' .. known[4] .. ':alive', id)
  if known[5] then redis.call('SREM', P .. 'near:' .. known[5], id) end
  if not known[6] then  -- else it is in none of these
    local base, ask = string.match(known[1], '^(.*)%$(%d+)$')
    if base and redis.call('HINCRBY', P .. 'asks:' .. base, ask, -1) == 0 then redis.call('HDEL', P .. 'asks:' .. base, ask) end
    for number, group in ipairs(groups(known[1], known[3])) do
      redis.call('SREM', P .. 'pool:' .. group, id)
      if number > 1 then redis.call('ZREM', P .. 'have:' .. group, id) end
      redis.call('HINCRBY', P .. 'class:' .. group, 'slots', -known[2])
      if redis.call('HINCRBY', P .. 'class:' .. group, 'workers', -1) == 0 then redis.call('DEL', P .. 'class:' .. group) end
    end
  end
end
return #gone
