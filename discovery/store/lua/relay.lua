-- The relay's notes: which calls of foremen wait for a worker, and which service processes hold a poll of it. The calls
-- themselves stay with the process that took them. Nothing of this is written to the append-only file, nor does it reach
-- a replica: what is lost in a crash of the store is asked for again.
--   {ec}:relay:<worker>:queue    list: calls nobody has taken, the oldest first
--   {ec}:relay:<worker>:open     hash: call -> "<until ms> <bytes> <account>" of calls without a reply
--   {ec}:relay:<worker>:waiting  hash: process -> until when (ms) a poll of the worker waits there
--   {ec}:relay:<worker>:seen     ms when the worker was last heard of at the relay
-- A process listens on the channel {ec}:relay:<process>; a MessagePack ["wake", worker] tells it to look here.
-- ARGV of an offer: "offer", worker, call, process, account, bytes, ms that it waits, pass until ms, the most of calls and
-- of bytes, and the least silence in ms that counts as absence. Returns {"ok"}; {"absent", address, port, boot}: it does
-- not wait here, and is to be called; {"gone"}: not heard of for too long; {"full"}, {"late"} (the pass), {"unknown"}
-- (not registered, or serves no relay). "again", worker, call: it was taken and did not arrive.
-- "take", worker, account, boot, process, ms that it waits, "1" if the answer to a poll got lost or "": then all calls
-- without a reply wait again. Returns {"call", id, how many more}, {"none"}, {"unknown"}.
-- "end", worker, call: nobody waits for it any more.
if redis.replicate_commands then redis.replicate_commands() end
redis.set_repl(redis.REPL_NONE)
local P = '{ec}:'
local id = ARGV[2]
local R = P .. 'relay:' .. id
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local KEEP_MS = 120000

local function wake()
  local all = redis.call('HGETALL', R .. ':waiting')
  for n = 1, #all, 2 do
    if tonumber(all[n + 1]) < now then
      redis.call('HDEL', R .. ':waiting', all[n])
    else
      redis.call('PUBLISH', P .. 'relay:' .. all[n], cmsgpack.pack({'wake', id}))
    end
  end
end

if ARGV[1] == 'offer' then
  local call, process, account, bytes, till = ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6]), now + ARGV[7]
  if tonumber(ARGV[8]) < now then return {'late'} end
  local known = redis.call('HMGET', P .. 'worker:' .. id, 'relay', 'address', 'port', 'boot')
  local alive = tonumber(redis.call('ZSCORE', P .. 'alive', id) or '0') > now
  local seen = tonumber(redis.call('GET', R .. ':seen') or (known[1] == 'must' and alive and now) or '0')
  local here = now - seen < tonumber(ARGV[11])
  if not known[1] or known[1] == 'never' or (not alive and not here) then return {'unknown'} end
  if not here then
    if known[1] == 'must' then return {'gone'} end
    redis.call('HSET', P .. 'worker:' .. id, 'called', now)
    return {'absent', known[2], tonumber(known[3]), known[4]}
  end
  local calls, total, mine, my_bytes = 0, 0, 0, 0
  local all = redis.call('HGETALL', R .. ':open')
  for n = 1, #all, 2 do
    local until_ms, size, whose = string.match(all[n + 1], '^(%d+) (%d+) (.*)$')
    if tonumber(until_ms) < now then
      redis.call('HDEL', R .. ':open', all[n])
    else
      calls, total = calls + 1, total + tonumber(size)
      if whose == account then mine, my_bytes = mine + 1, my_bytes + tonumber(size) end
    end
  end
  -- An account has no more than is free (dynamic thresholds; Choudhury and Hahne, IEEE/ACM ToN 6(2), 1998): half if it
  -- is alone, and however many there are, they leave room for one more.
  if mine >= ARGV[9] - calls or my_bytes + bytes > ARGV[10] - total then
    return {'full'}
  end
  redis.call('HSET', R .. ':open', call, string.format('%d %d %s', till, bytes, account))
  redis.call('RPUSH', R .. ':queue', call)
  redis.call('PEXPIRE', R .. ':open', KEEP_MS)
  redis.call('PEXPIRE', R .. ':queue', KEEP_MS)
  wake()
  return {'ok'}
elseif ARGV[1] == 'again' then
  if redis.call('HEXISTS', R .. ':open', ARGV[3]) == 0 then return {'none'} end
  redis.call('LREM', R .. ':queue', 0, ARGV[3])
  redis.call('LPUSH', R .. ':queue', ARGV[3])
  redis.call('PEXPIRE', R .. ':queue', KEEP_MS)
  wake()
  return {'ok'}
elseif ARGV[1] == 'take' then
  local known = redis.call('HMGET', P .. 'worker:' .. id, 'account', 'boot')
  if known[1] ~= ARGV[3] or known[2] ~= ARGV[4] then return {'unknown'} end
  redis.call('SET', R .. ':seen', now, 'PX', KEEP_MS)
  if ARGV[7] == '1' then
    for _, call in ipairs(redis.call('HKEYS', R .. ':open')) do
      redis.call('LREM', R .. ':queue', 0, call)
      redis.call('LPUSH', R .. ':queue', call)
    end
    redis.call('PEXPIRE', R .. ':queue', KEEP_MS)
  end
  while true do
    local call = redis.call('LPOP', R .. ':queue')
    if not call then break end
    local entry = redis.call('HGET', R .. ':open', call)
    if entry and tonumber(string.match(entry, '^%d+')) >= now then
      return {'call', call, redis.call('LLEN', R .. ':queue')}
    end
  end
  redis.call('HSET', R .. ':waiting', ARGV[5], now + ARGV[6])
  redis.call('PEXPIRE', R .. ':waiting', KEEP_MS)
  return {'none'}
else
  redis.call('HDEL', R .. ':open', ARGV[3])
  redis.call('LREM', R .. ':queue', 0, ARGV[3])
  return {'ok'}
end
