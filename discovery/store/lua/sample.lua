-- Draws workers with a free slot at random, and what a lease request needs beside them. Keys as in register.lua.
-- Those who ask for less are drawn first; at most 100 pools are looked at, however many workers there are.
-- An account whose gift is bound gets no workers of its own neighbourhood (theirs, or their accounts') before it has spent as
-- much as it was given. What is in escrow is not spent yet: it may come back.
-- ARGV: class, how many, account, or "" for none, a random number, most that a worker may ask, name of a pool, ...
-- Returns, as one MessagePack (which Python reads in a tenth of the time that it takes for so many replies), an array: now
-- in ms, balance, workers alive, slots alive, and of each worker its id and its fields (false: it has none). All of them are
-- in all the pools that were named.
local P = '{ec}:'
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local wanted, offer, alive, slots, drawn = tonumber(ARGV[2]), tonumber(ARGV[5]), 0, 0, {}
local classes = {ARGV[1]}
if offer > 1 then
  local asks = {}
  for _, ask in ipairs(redis.call('HKEYS', P .. 'asks:' .. ARGV[1])) do
    if tonumber(ask) <= offer then asks[#asks + 1] = tonumber(ask) end
  end
  table.sort(asks)
  for _, ask in ipairs(asks) do classes[#classes + 1] = ARGV[1] .. '$' .. ask end
end
math.randomseed(tonumber(ARGV[4]))
for _, class in ipairs(classes) do
  local left = wanted - #drawn
  if #ARGV <= 6 then
    local group = ARGV[6] and class .. '+' .. ARGV[6] or class
    local counts = redis.call('HMGET', P .. 'class:' .. group, 'workers', 'slots')
    alive, slots = alive + tonumber(counts[1] or '0'), slots + tonumber(counts[2] or '0')
    if left > 0 then
      for _, id in ipairs(redis.call('SRANDMEMBER', P .. 'pool:' .. group, left)) do drawn[#drawn + 1] = id end
    end
  else
    -- No table has every combination: those who have the rarest are looked at. At most 17 keys, so unpack takes them.
    local have, pools, here = {#ARGV - 5}, {}, 0
    for n = 6, #ARGV do
      have[n - 4] = P .. 'have:' .. class .. '+' .. ARGV[n]
      pools[n - 5] = P .. 'pool:' .. class .. '+' .. ARGV[n]
    end
    for _, word in ipairs({'AGGREGATE', 'MAX', 'WITHSCORES'}) do have[#have + 1] = word end
    local fit = redis.call('ZINTER', unpack(have))
    for n = 2, #fit, 2 do
      here, slots = here + 1, slots + tonumber(fit[n])
    end
    alive = alive + here
    if here > 0 and left > 0 then
      local free = redis.call('SINTER', unpack(pools))
      for n = 1, math.min(left, #free) do
        local other = math.random(n, #free)
        free[n], free[other] = free[other], free[n]
        drawn[#drawn + 1] = free[n]
      end
    end
  end
end
local account = redis.call('HMGET', P .. 'account:' .. ARGV[3], 'bound', 'granted', 'spent', 'network')
local bound = account[1] and tonumber(account[2]) > tonumber(account[3] or '0')
local function neighbour(id)
  local worker = redis.call('HMGET', P .. 'worker:' .. id, 'near', 'account')
  return worker[1] == account[4] or redis.call('HGET', P .. 'account:' .. worker[2], 'network') == account[4]
end
local answer = {now, tonumber(redis.call('HGET', P .. 'balances', 'account:' .. ARGV[3]) or '0'), alive, slots}
for _, id in ipairs(drawn) do
  if tonumber(redis.call('ZSCORE', P .. 'alive', id) or '0') > now and not (bound and neighbour(id)) then
    answer[#answer + 1] = id
    answer[#answer + 1] = redis.call('HMGET', P .. 'worker:' .. id, 'account', 'address', 'port', 'slots', 'epoch', 'used',
      'capacity', 'verified', 'doubts', 'words', 'accusers', 'share', 'ask', 'platform', 'banned', 'auditor', 'terms')
  end
end
return cmsgpack.pack(answer)
