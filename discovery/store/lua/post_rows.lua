-- Adds rows of some blocks to the statements of accounts. Keys:
--   {ec}:ledger:head             see acknowledge_block.lua; posted says how far this came, so that no row is added twice
--   {ec}:account:<id>:statement  hash: what/day/, or what/entry id/other account
--                                  -> "serial received paid movements first_ms last_ms"
-- ARGV: archive, posted before, posted and posted_last now, serial of the first row if it is new, most rows of an
--   account, MessagePack [[name, [account:<id>, received, paid, movements, first ms, last ms, ...]], ...]
-- Of more than the most rows an eighth is forgotten, those begun first. Returns "ok", or "head": posted is another.
local P = '{ec}:'
local head = redis.call('HMGET', P .. 'ledger:head', 'archive', 'posted')
if head[1] ~= ARGV[1] or head[2] ~= ARGV[2] then return 'head' end
local serial, most = tonumber(ARGV[5]), tonumber(ARGV[6])

local function drop_oldest(key, count)
  local all, serials = redis.call('HGETALL', key), {}
  for n = 1, #all, 2 do serials[#serials + 1] = {tonumber(string.match(all[n + 1], '^%d+')), all[n]} end
  table.sort(serials, function(one, other) return one[1] < other[1] end)
  for n = 1, math.min(count, #serials) do redis.call('HDEL', key, serials[n][2]) end
end

-- What the store takes also where it has no memory left; after it, it takes the rest: the ledger has to get out of it.
redis.call('HDEL', P .. 'ledger:head', 'nothing')
redis.call('HSET', P .. 'ledger:head', 'posted', ARGV[3], 'posted_last', ARGV[4])
for _, group in ipairs(cmsgpack.unpack(ARGV[7])) do
  local name, rows = group[1], group[2]
  for n = 1, #rows, 6 do
    local key = P .. rows[n] .. ':statement'
    local old = redis.call('HGET', key, name)
    if old then
      local own, received, paid, movements, first = string.match(old, '^(%d+) (%d+) (%d+) (%d+) (%d+)')
      redis.call('HSET', key, name, string.format('%s %d %d %d %s %d', own, received + rows[n + 1],
        paid + rows[n + 2], movements + rows[n + 3], first, rows[n + 5]))
    else
      redis.call('HSET', key, name, string.format('%d %d %d %d %d %d', serial, rows[n + 1], rows[n + 2], rows[n + 3],
        rows[n + 4], rows[n + 5]))
      local over = redis.call('HLEN', key) - most
      if over > 0 then drop_oldest(key, over + math.floor(most / 8)) end
    end
    serial = serial + 1
  end
end
return 'ok'
