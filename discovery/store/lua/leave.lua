-- Takes workers out of the pool: those named (ARGV: "leave", worker, account), or up to ARGV[2] whose time is over ("lapse").
-- What they hold stays theirs until it is settled or due. Keys as in register.lua. Returns how many left, -1: not registered.
local P = '{ec}:'
local gone
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
else
  local time = redis.call('TIME')
  gone = redis.call('ZRANGEBYSCORE', P .. 'alive', '-inf', time[1] * 1000 + math.floor(time[2] / 1000), 'LIMIT', 0, ARGV[2])
end
for _, id in ipairs(gone) do
  local known = redis.call('HMGET', P .. 'worker:' .. id, 'class', 'slots', 'capabilities')
  redis.call('ZREM', P .. 'alive', id)
  for number, group in ipairs(groups(known[1], known[3])) do
    redis.call('SREM', P .. 'pool:' .. group, id)
    if number > 1 then redis.call('ZREM', P .. 'have:' .. group, id) end
    redis.call('HINCRBY', P .. 'class:' .. group, 'slots', -known[2])
    if redis.call('HINCRBY', P .. 'class:' .. group, 'workers', -1) == 0 then redis.call('DEL', P .. 'class:' .. group) end
  end
end
return #gone
