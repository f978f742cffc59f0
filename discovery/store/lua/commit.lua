-- Commits what was decided about tasks, or nothing: one atomic step for records, credits, slots and the ledger.
--
-- Keys (all under the hash tag {ec}, so that a cluster keeps them together):
--   {ec}:task:<id>            string: 8 digits of version, then the record
--   {ec}:due                  sorted set: task id by the time in ms at which it next needs attention
--   {ec}:balances             hash: account:<id>, mint (negative) and burn -> credits
--   {ec}:escrow               hash: task id -> credits in escrow for it
--   {ec}:ledger               stream: entry m = movements of one commit, MessagePack [[from, to, amount], ...]
--   {ec}:account:<id>         hash: counters escrow, earned, spent (and what accounts.lua wrote)
--   {ec}:worker:<id>          hash: used, capacity, epoch, class, capabilities, counters (and what register.lua wrote)
--   {ec}:worker:<id>:leases   set: leases that take its slots
--   {ec}:pool:<class>         set: workers alive that have a slot free
--   {ec}:pool:<class>+<capability>  set: those of them that have the capability
--   {ec}:alive                sorted set: worker id by the time in ms at which its registration lapses
--   {ec}:idempotency:<account>:<key>  string: the tasks a lease request got, gone after a while
--
-- ARGV[1]: MessagePack {tasks, accounts, escrows, takes, frees, counts, needs, idempotency, now}; ARGV[2]: the ledger's
-- entry, or ""; ARGV[2 + n]: of the n-th task version .. record, or "" to delete it (Redis' MessagePack takes no bytes).
--   tasks:    [[id, expected version or "", due ms], ...]
--   accounts: [[place, delta], ...]; escrows: [[task id, delta], ...]
--   takes:    [[worker id, epoch, [lease id, ...]], ...]; frees: [[worker id, [lease id, ...]], ...]
--   counts:   [[key, field, delta], ...]; needs: [[place, least balance], ...]
--   idempotency: [account:key, value, ttl s] or []
-- Returns {"ok"} or {what stood in the way, which, ...}; then nothing was changed.

local c = cmsgpack.unpack(ARGV[1])
local P = '{ec}:'

-- The class, and the class with each capability.
local function groups(class, caps)
  local all = {class}
  for cap in string.gmatch(caps or '', '%S+') do all[#all + 1] = class .. '+' .. cap end
  return all
end

-- Lua's unpack takes some thousand values at most: a worker may give back more leases than that at once.
local function in_pieces(command, key, items)
  local done = 0
  for start = 1, #items, 1000 do
    done = done + redis.call(command, key, unpack(items, start, math.min(start + 999, #items)))
  end
  return done
end

local stale = {}
for _, t in ipairs(c.tasks) do
  if redis.call('GETRANGE', P .. 'task:' .. t[1], 0, 7) ~= t[2] then stale[#stale + 1] = t[1] end
end
if #stale > 0 then return {'stale', unpack(stale, 1, math.min(#stale, 1000))} end
if #c.idempotency > 0 and redis.call('EXISTS', P .. 'idempotency:' .. c.idempotency[1]) == 1 then return {'repeated'} end
for _, n in ipairs(c.needs) do
  if tonumber(redis.call('HGET', P .. 'balances', n[1]) or '0') < n[2] then return {'credits', n[1]} end
end
for _, t in ipairs(c.takes) do
  local w = redis.call('HMGET', P .. 'worker:' .. t[1], 'epoch', 'used', 'capacity')
  local expires = redis.call('ZSCORE', P .. 'alive', t[1])
  if not expires or tonumber(expires) <= c.now or tonumber(w[1]) ~= t[2]
      or tonumber(w[2]) + #t[3] > tonumber(w[3]) then
    return {'worker', t[1]}
  end
end

for i, t in ipairs(c.tasks) do
  local record = ARGV[2 + i]
  if record == '' then
    redis.call('DEL', P .. 'task:' .. t[1])
    redis.call('ZREM', P .. 'due', t[1])
  else
    redis.call('SET', P .. 'task:' .. t[1], record)
    redis.call('ZADD', P .. 'due', t[3], t[1])
  end
end
for _, a in ipairs(c.accounts) do redis.call('HINCRBY', P .. 'balances', a[1], a[2]) end
for _, e in ipairs(c.escrows) do
  if redis.call('HINCRBY', P .. 'escrow', e[1], e[2]) == 0 then redis.call('HDEL', P .. 'escrow', e[1]) end
end
if ARGV[2] ~= '' then redis.call('XADD', P .. 'ledger', '*', 'm', ARGV[2]) end
for _, n in ipairs(c.counts) do redis.call('HINCRBY', P .. n[1], n[2], n[3]) end
for _, f in ipairs(c.frees) do
  local key = P .. 'worker:' .. f[1]
  local freed = in_pieces('SREM', key .. ':leases', f[2])
  if freed > 0 then
    local used = redis.call('HINCRBY', key, 'used', -freed)
    local w = redis.call('HMGET', key, 'capacity', 'class', 'capabilities')
    if used < tonumber(w[1]) and redis.call('ZSCORE', P .. 'alive', f[1]) then
      for _, group in ipairs(groups(w[2], w[3])) do redis.call('SADD', P .. 'pool:' .. group, f[1]) end
    end
  end
end
for _, t in ipairs(c.takes) do
  local key = P .. 'worker:' .. t[1]
  in_pieces('SADD', key .. ':leases', t[3])
  local used = redis.call('HINCRBY', key, 'used', #t[3])
  local w = redis.call('HMGET', key, 'capacity', 'class', 'capabilities')
  if used >= tonumber(w[1]) then
    for _, group in ipairs(groups(w[2], w[3])) do redis.call('SREM', P .. 'pool:' .. group, t[1]) end
  end
end
if #c.idempotency > 0 then
  redis.call('SET', P .. 'idempotency:' .. c.idempotency[1], c.idempotency[2], 'EX', c.idempotency[3])
end
return {'ok'}
