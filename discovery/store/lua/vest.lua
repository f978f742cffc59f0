-- Lets pay be spent whose time has come. Keys as in commit.lua. ARGV: most lots.
-- Returns how many lots there were.
local P = '{ec}:'
local now = tonumber(redis.call('TIME')[1])
local lots = redis.call('ZRANGEBYSCORE', P .. 'vesting', '-inf', now, 'LIMIT', 0, ARGV[1])
for _, lot in ipairs(lots) do
  local all = redis.call('HGETALL', P .. 'vesting:' .. lot)
  for n = 1, #all, 2 do
    -- By its text, for a large number of Lua would be written in a way that HINCRBY does not read; it is never negative.
    redis.call('HINCRBY', P .. 'account:' .. all[n], 'unvested', '-' .. all[n + 1])
  end
  redis.call('DEL', P .. 'vesting:' .. lot)
  redis.call('ZREM', P .. 'vesting', lot)
end
return #lots
