-- Draws workers with a free slot at random, and what a foreman's request needs beside them. Keys as in register.lua;
-- parts/known.lua stands in front of it.
-- Those who ask for less are drawn first; at most 100 pools are looked at, however many workers there are.
-- An account whose gift is bound gets no workers of its own neighbourhood (theirs, or their accounts') before it has spent
-- as much as it was given. What is in escrow is not spent yet: it may come back.
-- ARGV: class, how many, account, or "" for none, a random number, most that a worker may ask, job, "1" when accounts of one
-- network are one party, key of a lease request, or "" for none, how many workers are named, worker, ..., name of a pool, ...
-- Returns, as one MessagePack (which Python reads in a tenth of the time that it takes for so many replies): {now in ms,
-- balance, workers alive, slots alive, the tasks that a request with this key got (false: none was made, or long ago), the
-- workers that were drawn, those of the named that there are, what `known` says of the job and of both}. Workers are as
-- `worker` has them; all that were drawn are in all the pools that were named.
local named, needs = tonumber(ARGV[9]), {}
for n = 10 + named, #ARGV do needs[#needs + 1] = ARGV[n] end
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
-- No table has every combination of names. Of the smallest set some are drawn and looked for in the others: all where they
-- are no more than MOST, else FEW, and MOST if FEW were not enough. So it costs as little where there are many workers. What
-- is counted by that is an estimate then.
local FEW, MOST, budget = 128, 512, 2048
-- Puts the key of the smallest set first; returns how many it has.
local function smallest(command, keys)
  local least = math.huge
  for n, key in ipairs(keys) do
    local size = redis.call(command, key)
    if size < least then
      least, keys[1], keys[n] = size, key, keys[1]
    end
  end
  return least
end
-- How many of a set of some size are looked at now.
local function look(size, most)
  local looked = math.min(size <= MOST and size or most, budget)
  budget = budget - looked
  return looked
end
-- Those of some members that are in all sets but the first as well.
local function in_all(command, keys, members)
  for n = 2, #keys do
    if #members == 0 then break end
    local found, both = redis.call(command, keys[n], unpack(members)), {}
    for m, member in ipairs(members) do
      if found[m] and found[m] ~= 0 then both[#both + 1] = member end
    end
    members = both
  end
  return members
end
for _, class in ipairs(classes) do
  local left = wanted - #drawn
  if #needs <= 1 then
    local group = needs[1] and class .. '+' .. needs[1] or class
    local counts = redis.call('HMGET', P .. 'class:' .. group, 'workers', 'slots')
    alive, slots = alive + tonumber(counts[1] or '0'), slots + tonumber(counts[2] or '0')
    if left > 0 then
      for _, id in ipairs(redis.call('SRANDMEMBER', P .. 'pool:' .. group, left)) do drawn[#drawn + 1] = id end
    end
  elseif budget > 0 then
    local have, pools = {}, {}
    for n, name in ipairs(needs) do
      have[n] = P .. 'have:' .. class .. '+' .. name
      pools[n] = P .. 'pool:' .. class .. '+' .. name
    end
    local least = smallest('ZCARD', have)
    if least > 0 then
      local looked = look(least, FEW)
      local some, ids, offered = redis.call('ZRANDMEMBER', have[1], looked, 'WITHSCORES'), {}, {}
      for n = 1, #some, 2 do
        ids[#ids + 1] = some[n]
        offered[some[n]] = tonumber(some[n + 1])
      end
      local fit, sum = in_all('ZMSCORE', have, ids), 0
      for _, id in ipairs(fit) do sum = sum + offered[id] end
      alive = alive + math.floor(#fit * least / looked + 0.5)
      slots = slots + math.floor(sum * least / looked + 0.5)
      if left > 0 then
        local size, free = smallest('SCARD', pools), {}
        for _, most in ipairs({FEW, MOST}) do
          if #free < left and size > 0 and budget > 0 and (most == FEW or size > MOST) then
            free = in_all('SMISMEMBER', pools, redis.call('SRANDMEMBER', pools[1], look(size, most)))
          end
        end
        for n = 1, math.min(left, #free) do
          local other = math.random(n, #free)
          free[n], free[other] = free[other], free[n]
          drawn[#drawn + 1] = free[n]
        end
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
local ids, fresh, past = {}, {}, {}
local lapses = #drawn > 0 and redis.call('ZMSCORE', P .. 'alive', unpack(drawn)) or {}
for n, id in ipairs(drawn) do
  if tonumber(lapses[n] or '0') > now and not (bound and neighbour(id)) then
    fresh[#fresh + 1] = worker(id)
    ids[#ids + 1] = id
  end
end
for n = 10, 9 + named do
  local had = worker(ARGV[n])
  if had then
    past[#past + 1] = had
    ids[#ids + 1] = ARGV[n]
  end
end
return cmsgpack.pack({now, redis.call('HGET', P .. 'balances', 'account:' .. ARGV[3]) or 0, alive, slots,
  ARGV[8] ~= '' and redis.call('GET', P .. 'idempotency:' .. ARGV[3] .. ':' .. ARGV[8]), fresh, past,
  known(ARGV[3], ARGV[6], ARGV[7], ids)})
