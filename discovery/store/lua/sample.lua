-- Draws workers with a free slot at random, and what a lease request needs beside them. Keys as in register.lua.
-- ARGV: class, how many, account, or "" for none, a random number, capability, ...
-- Returns {now ms, balance, workers alive, slots alive, worker, its fields, ...}: all of them have all the capabilities.
local P = '{ec}:'
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local alive, slots, drawn = 0, 0, nil
if #ARGV <= 5 then
  local group = ARGV[5] and ARGV[1] .. '+' .. ARGV[5] or ARGV[1]
  local class = redis.call('HMGET', P .. 'class:' .. group, 'workers', 'slots')
  alive, slots = tonumber(class[1] or '0'), tonumber(class[2] or '0')
  drawn = redis.call('SRANDMEMBER', P .. 'pool:' .. group, ARGV[2])
else
  -- No table has every combination: those who have the rarest are looked at. At most 16 keys, so unpack takes them.
  local have, pools = {#ARGV - 4}, {}
  for n = 5, #ARGV do
    have[n - 3] = P .. 'have:' .. ARGV[1] .. '+' .. ARGV[n]
    pools[n - 4] = P .. 'pool:' .. ARGV[1] .. '+' .. ARGV[n]
  end
  for _, word in ipairs({'AGGREGATE', 'MAX', 'WITHSCORES'}) do have[#have + 1] = word end
  local fit = redis.call('ZINTER', unpack(have))
  for n = 2, #fit, 2 do
    alive, slots = alive + 1, slots + tonumber(fit[n])
  end
  drawn = {}
  if alive > 0 then
    local free = redis.call('SINTER', unpack(pools))
    math.randomseed(tonumber(ARGV[4]))
    for n = 1, math.min(tonumber(ARGV[2]), #free) do
      local other = math.random(n, #free)
      free[n], free[other] = free[other], free[n]
      drawn[n] = free[n]
    end
  end
end
local answer = {now, tonumber(redis.call('HGET', P .. 'balances', 'account:' .. ARGV[3]) or '0'), alive, slots}
for _, id in ipairs(drawn) do
  if tonumber(redis.call('ZSCORE', P .. 'alive', id) or '0') > now then
    answer[#answer + 1] = id
    answer[#answer + 1] = redis.call('HMGET', P .. 'worker:' .. id, 'account', 'address', 'port', 'slots', 'epoch', 'used', 'capacity')
  end
end
return answer
