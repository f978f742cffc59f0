-- Takes workers out of the pool: those named (ARGV: "leave", worker, account), or up to ARGV[2] whose time is over ("lapse").
-- What they hold stays theirs until it is settled or due. Keys as in register.lua. Returns how many left, -1: not registered.
local P = '{ec}:'
local gone
if ARGV[1] == 'leave' then
  if redis.call('HGET', P .. 'worker:' .. ARGV[2], 'account') ~= ARGV[3] or not redis.call('ZSCORE', P .. 'alive', ARGV[2]) then
    return -1
  end
  gone = {ARGV[2]}
else
  local time = redis.call('TIME')
  gone = redis.call('ZRANGEBYSCORE', P .. 'alive', '-inf', time[1] * 1000 + math.floor(time[2] / 1000), 'LIMIT', 0, ARGV[2])
end
for _, id in ipairs(gone) do
  local known = redis.call('HMGET', P .. 'worker:' .. id, 'class', 'slots', 'account')
  redis.call('ZREM', P .. 'alive', id)
  redis.call('SREM', P .. 'pool:' .. known[1], id)
  redis.call('HINCRBY', P .. 'class:' .. known[1], 'workers', -1)
  redis.call('HINCRBY', P .. 'class:' .. known[1], 'slots', -known[2])
end
return #gone
