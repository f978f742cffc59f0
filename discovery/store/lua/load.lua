-- Reads tasks at one instant. Keys as in commit.lua. ARGV: task id, ... (none: only the time is wanted).
-- Returns now in ms, and one MessagePack: an array of the records in the order of the ids, nil for what there is not. Records
-- are MessagePack themselves, so that they need only be put one after the other; Python reads one reply in a fifth of the
-- time that it takes for a thousand.
local P = '{ec}:'
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local count = #ARGV
local records = {string.char(0xdd, math.floor(count / 16777216), math.floor(count / 65536) % 256,
  math.floor(count / 256) % 256, count % 256)}
local keys = {}
for n = 1, count do keys[n] = P .. 'task:' .. ARGV[n] end
-- Lua's unpack takes some thousand values at most.
for start = 1, count, 1000 do
  local found = redis.call('MGET', unpack(keys, start, math.min(start + 999, count)))
  for n = 1, #found do records[start + n] = found[n] and string.sub(found[n], 9) or '\192' end
end
return {now, table.concat(records)}
