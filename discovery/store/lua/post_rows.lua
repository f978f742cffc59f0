-- Adds a block's rows to the statements of accounts, once: a block that was posted before changes nothing. Keys:
--   {ec}:account:<id>:statement  hash: m ("<block posted last> <serial of the newest row>"), and the rows:
--                                what/day/, or what/entry id/other account
--                                  -> "serial received paid movements first_ms last_ms"
-- ARGV: block number, most rows of an account, MessagePack
--   [[account, [name, ...], [[received, paid, movements, first ms, last ms], ...]], ...]
-- Of more than the most rows an eighth is forgotten, those begun first. Returns 1.
local P = '{ec}:'
local number, most = tonumber(ARGV[1]), tonumber(ARGV[2])

local function drop_oldest(key, count)
  local all, serials = redis.call('HGETALL', key), {}
  for n = 1, #all, 2 do
    if all[n] ~= 'm' then serials[#serials + 1] = {tonumber(string.match(all[n + 1], '^%d+')), all[n]} end
  end
  table.sort(serials, function(one, other) return one[1] < other[1] end)
  for n = 1, math.min(count, #serials) do redis.call('HDEL', key, serials[n][2]) end
end

for _, account in ipairs(cmsgpack.unpack(ARGV[3])) do
  local key, names, rows = P .. 'account:' .. account[1] .. ':statement', account[2], account[3]
  local posted, serial = string.match(redis.call('HGET', key, 'm') or '0 0', '^(%d+) (%d+)$')
  serial = tonumber(serial)
  local before = serial
  if tonumber(posted) < number then
    -- Lua's unpack takes some thousand values at most.
    for start = 1, #names, 1000 do
      local last = math.min(start + 999, #names)
      local old, new = redis.call('HMGET', key, unpack(names, start, last)), {}
      for n = start, last do
        local row, own, received, paid, movements, first = rows[n], nil, 0, 0, 0, nil
        if old[n - start + 1] then
          own, received, paid, movements, first =
            string.match(old[n - start + 1], '^(%d+) (%d+) (%d+) (%d+) (%d+) ')
        else
          serial = serial + 1
          own, first = serial, row[4]
        end
        new[#new + 1] = names[n]
        new[#new + 1] = string.format('%.0f %.0f %.0f %.0f %.0f %.0f', tonumber(own), tonumber(received) + row[1],
          tonumber(paid) + row[2], tonumber(movements) + row[3], tonumber(first), row[5])
      end
      new[#new + 1] = 'm'
      new[#new + 1] = string.format('%s %.0f', ARGV[1], serial)
      redis.call('HSET', key, unpack(new))
    end
    if serial > before then
      local over = redis.call('HLEN', key) - 1 - most
      if over > 0 then drop_oldest(key, over + math.floor(most / 8)) end
    end
  end
end
return 1
