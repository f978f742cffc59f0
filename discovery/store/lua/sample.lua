-- Draws workers with a free slot at random, and what a lease request needs beside them. Keys as in register.lua.
-- ARGV: class, how many, account, or "" for none. Returns {now ms, balance, workers alive, slots alive, worker, its fields, ...}.
local P = '{ec}:'
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local class = redis.call('HMGET', P .. 'class:' .. ARGV[1], 'workers', 'slots')
local answer = {now, tonumber(redis.call('HGET', P .. 'balances', 'account:' .. ARGV[3]) or '0'),
  tonumber(class[1] or '0'), tonumber(class[2] or '0')}
for _, id in ipairs(redis.call('SRANDMEMBER', P .. 'pool:' .. ARGV[1], ARGV[2])) do
  if tonumber(redis.call('ZSCORE', P .. 'alive', id) or '0') > now then
    answer[#answer + 1] = id
    answer[#answer + 1] = redis.call('HMGET', P .. 'worker:' .. id, 'account', 'address', 'port', 'slots', 'epoch', 'used', 'capacity')
  end
end
return answer
