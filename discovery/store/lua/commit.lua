-- Commits what was decided about tasks, or nothing: one atomic step for records, credits, slots, tallies and the ledger.
--
-- Keys (all under the hash tag {ec}, so that a cluster keeps them together):
--   {ec}:task:<id>            string: 8 digits of version, then the record
--   {ec}:due                  sorted set: task id by the time in ms at which it next needs attention, if it does
--   {ec}:balances             hash: account:<id>, mint (negative) and burn -> credits
--   {ec}:escrow               hash: task id -> credits in escrow for it
--   {ec}:ledger               stream: entry m = what one commit moved (see archive/entry.py)
--   {ec}:account:<id>         hash: counters escrow, earned, spent; unvested (part of the balance that may not be spent yet)
--   {ec}:vesting              sorted set: times (s, tens) at which pay vests; {ec}:vesting:<time>  hash: account -> credits
--   {ec}:worker:<id>          hash: used, capacity, epoch, class, capabilities, counters (and what register.lua wrote);
--                             share (it is given one in so many of its capacity); away (it wants no leases now);
--                             denied (parties of foremen of whose leases it says that they were not pushed, each with a
--                             space behind it; since an answer of it was accepted);
--                             verified, doubts, words, accusers: what all foremen share of their tallies (see learn)
--   {ec}:worker:<id>:leases   set: leases that take its slots
--   {ec}:trust:<party>        hash: <worker>:v, :d, :w -> one foreman's own tally of a worker
--   {ec}:suspects             hash: worker -> how often its doubts changed since it was judged
--   {ec}:open                 sorted set: <account>:<job> by the time in ms until which it is kept without a word
--   {ec}:job:<account>:<job>  hash: answers (that were compared), noisy; and beside it
--     :compared, :differed    hashes: worker -> answers that were compared, and those that differed
--     :doubts                 hash: <worker>:d, <worker>:w -> what tallies gained in this job
--     :effort                 hash: account -> effort fees with a cap that it had
--     :undelivered            hash: worker -> results that the foreman says did not arrive
--     :held                   hash: account -> hold fees for leases that its workers deny
--     :back                   hash: worker -> pay of it that went back after its conviction
--     :tasks, :recompute      sets: accepted tasks that are remembered, and those of them that are to be computed again
--   {ec}:pool:<class>         set: workers alive that have a slot free
--   {ec}:pool:<class>+<capability>  set: those of them that have the capability
--   {ec}:alive                sorted set: worker id by the time in ms at which its registration lapses
--   {ec}:idempotency:<account>:<key>  string: the tasks a lease request got, gone after a while
--
-- ARGV[1]: MessagePack of what follows; ARGV[2]: the ledger's entry, or ""; ARGV[3]: version .. record of all tasks, one after
-- the other (Redis' MessagePack takes no bytes, and many arguments cost both sides more than one).
--   tasks:    [[id, ...], [expected version or "", ...], [due ms or -1, ...], [bytes in ARGV[3], 0 to delete it, ...]]
--   accounts: [place, delta, ...]; escrows: [[task id, ...], [delta, ...]]
--   takes:    [[worker id, epoch, [lease id, ...]], ...]
--   frees:    [[worker id, [lease id, ...], 1 when its share is to be whole again, -1 to be halved, or 0], ...]
--   counts:   [[key, [field, delta, ...]], ...]; needs: [[place, least balance that may be spent], ...]
--   lessons:  [[worker id, party, verified, doubts, words], ...]
--   jobs:     [[account:job, answers, compared, differed, doubts, effort, undelivered, accepted, recompute, held, back], ...]:
--             hashes as [field, delta, ...], sets as [id, ...]
--   vesting:  [[time, [account, delta, ...]], ...]; idempotency: [account:key, value, ttl s] or []
--   caps:     [verified and doubts that a foreman's tally shares, doubts that accuse, verified from which it is halved]
--   denied:   [[worker id, party, ...], ...]; hold: [most that :held may come to, parties from which a share is halved]
--   hush: account:job whose doubts are taken back, which happens once, or ""
--   tell:     [account, job, most tasks to be computed again] or []
--   now, kept (ms until which jobs are kept), most_share
-- Returns {"ok"}, with `tell` {"ok", balance, [task to be computed again, ...]}; or {what stood in the way, which, ...}: then
-- nothing was changed.

local c = cmsgpack.unpack(ARGV[1])
local P = '{ec}:'

-- The class, and the class with each capability.
local function groups(class, caps)
  local all = {class}
  for cap in string.gmatch(caps or '', '%S+') do all[#all + 1] = class .. '+' .. cap end
  return all
end

-- Lua's unpack takes some thousand values at most. An even number at a time: pairs stay together.
local function in_pieces(command, key, items)
  local done = 0
  for start = 1, #items, 1000 do
    local answer
    if key then
      answer = redis.call(command, key, unpack(items, start, math.min(start + 999, #items)))
    else
      answer = redis.call(command, unpack(items, start, math.min(start + 999, #items)))
    end
    if type(answer) == 'number' then done = done + answer end
  end
  return done
end

local function room(capacity, share)
  return math.max(1, math.floor(tonumber(capacity) / tonumber(share or '1')))
end

local stale = {}
local fresh = {}
local ids, versions, dues, sizes = c.tasks[1], c.tasks[2], c.tasks[3], c.tasks[4]
local keys = {}
for n = 1, #ids do
  local key = P .. 'task:' .. ids[n]
  keys[n] = key
  if versions[n] == '' then
    fresh[#fresh + 1] = key
  elseif redis.call('GETRANGE', key, 0, 7) ~= versions[n] then
    stale[#stale + 1] = ids[n]
  end
end
if in_pieces('EXISTS', nil, fresh) > 0 then stale[#stale + 1] = ids[1] end
if #stale > 0 then return {'stale', unpack(stale, 1, math.min(#stale, 1000))} end
if #c.idempotency > 0 and redis.call('EXISTS', P .. 'idempotency:' .. c.idempotency[1]) == 1 then return {'repeated'} end
if c.hush ~= '' and redis.call('HEXISTS', P .. 'job:' .. c.hush, 'noisy') == 1 then return {'hushed'} end
for _, n in ipairs(c.needs) do
  local unvested = tonumber(redis.call('HGET', P .. n[1], 'unvested') or '0')
  if tonumber(redis.call('HGET', P .. 'balances', n[1]) or '0') - unvested < n[2] then return {'credits', n[1]} end
end
for _, v in ipairs(c.vesting) do
  local payees = v[2]
  for at = 1, #payees, 2 do
    if payees[at + 1] < 0 and tonumber(redis.call('HGET', P .. 'vesting:' .. v[1], payees[at]) or '0') < -payees[at + 1] then
      return {'vesting', payees[at]}
    end
  end
end
for _, j in ipairs(c.jobs) do
  for at = 1, #j[10], 2 do
    local held = tonumber(redis.call('HGET', P .. 'job:' .. j[1] .. ':held', j[10][at]) or '0')
    if held + j[10][at + 1] > c.hold[1] then return {'held', j[1]} end
  end
end
local taken = {}
for n, t in ipairs(c.takes) do
  local w = redis.call('HMGET', P .. 'worker:' .. t[1], 'epoch', 'used', 'capacity', 'share', 'class', 'capabilities', 'away')
  taken[n] = w
  local expires = redis.call('ZSCORE', P .. 'alive', t[1])
  if not expires or tonumber(expires) <= c.now or tonumber(w[1]) ~= t[2] or w[7]
      or tonumber(w[2]) + #t[3] > room(w[3], w[4]) then
    return {'worker', t[1]}
  end
end

local gone, written, due, idle, at = {}, {}, {}, {}, 1
for n = 1, #ids do
  if sizes[n] == 0 then
    gone[#gone + 1] = keys[n]
  else
    written[#written + 1] = keys[n]
    written[#written + 1] = string.sub(ARGV[3], at, at + sizes[n] - 1)
    at = at + sizes[n]
  end
  if dues[n] < 0 then
    idle[#idle + 1] = ids[n]
  else
    due[#due + 1] = dues[n]
    due[#due + 1] = ids[n]
  end
end
in_pieces('DEL', nil, gone)
in_pieces('MSET', nil, written)
in_pieces('ZREM', P .. 'due', idle)
in_pieces('ZADD', P .. 'due', due)

-- Adds to fields of a hash; with `tidy`, those that come to nothing are gone. Read, added up and written for all together:
-- each command that changes something is a record of the append-only file, and costs as much as ten fields of one.
local function add(key, fields, gains, tidy)
  local left, empty = {}, {}
  for start = 1, #fields, 1000 do
    local found = redis.call('HMGET', key, unpack(fields, start, math.min(start + 999, #fields)))
    for n = 1, #found do
      local at = start + n - 1
      local sum = tonumber(found[n] or '0') + gains[at]
      if sum == 0 and tidy then
        empty[#empty + 1] = fields[at]
      else
        left[#left + 1] = fields[at]
        left[#left + 1] = sum
      end
    end
  end
  in_pieces('HSET', key, left)
  in_pieces('HDEL', key, empty)
end
-- The same, of field, gain, field, gain.
local function add_pairs(key, pairs_, tidy)
  if #pairs_ == 2 and not tidy then
    redis.call('HINCRBY', key, pairs_[1], pairs_[2])
    return
  end
  local fields, gains = {}, {}
  for at = 1, #pairs_, 2 do
    fields[#fields + 1] = pairs_[at]
    gains[#gains + 1] = pairs_[at + 1]
  end
  add(key, fields, gains, tidy)
end
add_pairs(P .. 'balances', c.accounts)
add(P .. 'escrow', c.escrows[1], c.escrows[2], true)
if ARGV[2] ~= '' then redis.call('XADD', P .. 'ledger', '*', 'm', ARGV[2]) end
for _, n in ipairs(c.counts) do add_pairs(P .. n[1], n[2]) end
for _, v in ipairs(c.vesting) do
  add_pairs(P .. 'vesting:' .. v[1], v[2], true)
  redis.call('ZADD', P .. 'vesting', v[1] * 10, v[1])
end

-- One foreman's tally changes; what all others believe changes by what it shares of that, so that the order of increments
-- makes no difference to sums.
local function learn(id, party, gained)
  local trust, key = P .. 'trust:' .. party, P .. 'worker:' .. id
  local fields = {id .. ':v', id .. ':d', id .. ':w'}
  local own, now = redis.call('HMGET', trust, unpack(fields)), {}
  for n = 1, 3 do
    own[n] = tonumber(own[n] or '0')
    now[n] = own[n] + gained[n]
  end
  if now[1] >= c.caps[4] then now[1], now[2] = math.floor(now[1] / 2), math.floor(now[2] / 2) end
  local function shared(t)
    local verified, doubts, words = math.max(t[1], 0), math.max(t[2], 0), math.max(t[3], 0)
    local counted = verified > c.caps[1] and math.floor(doubts * c.caps[1] / verified) or doubts
    counted = math.min(math.max(counted, math.min(doubts, words * c.caps[2])), c.caps[2] * (1 + words))
    return {math.min(verified, c.caps[1]), counted, words, counted >= c.caps[3] and 1 or 0}
  end
  local before, after = shared(own), shared(now)
  redis.call('HSET', trust, fields[1], now[1], fields[2], now[2], fields[3], now[3])
  for n, name in ipairs({'verified', 'doubts', 'words', 'accusers'}) do
    if after[n] ~= before[n] then redis.call('HINCRBY', key, name, after[n] - before[n]) end
  end
  if gained[2] ~= 0 or gained[3] ~= 0 then redis.call('HINCRBY', P .. 'suspects', id, 1) end
end
for _, l in ipairs(c.lessons) do learn(l[1], l[2], {l[3], l[4], l[5]}) end

if c.hush ~= '' then redis.call('HSET', P .. 'job:' .. c.hush, 'noisy', 1) end
local counted = {[3] = ':compared', [4] = ':differed', [5] = ':doubts', [6] = ':effort', [7] = ':undelivered', [10] = ':held', [11] = ':back'}
for _, j in ipairs(c.jobs) do
  local key = P .. 'job:' .. j[1]
  if j[2] ~= 0 then redis.call('HINCRBY', key, 'answers', j[2]) end
  for n, name in pairs(counted) do
    local pairs_ = j[n]
    for at = 1, #pairs_, 2 do
      if redis.call('HINCRBY', key .. name, pairs_[at], pairs_[at + 1]) <= 0 then
        redis.call('HDEL', key .. name, pairs_[at])
      end
    end
  end
  in_pieces('SADD', key .. ':tasks', j[8])
  in_pieces('SADD', key .. ':recompute', j[9])
  redis.call('ZADD', P .. 'open', c.kept, j[1])
end

-- Of some parties a worker may deny leases for good reason; more are not noted than it takes to have the least share.
for _, d in ipairs(c.denied) do
  local key, halve = P .. 'worker:' .. d[1], false
  local known = redis.call('HGET', key, 'denied') or ''
  for n = 2, #d do
    local _, many = string.gsub(known, ' ', '')
    if many < c.hold[2] + 5 and not string.find(' ' .. known, ' ' .. d[n] .. ' ', 1, true) then
      known = known .. d[n] .. ' '
      halve = halve or many + 1 >= c.hold[2]
    end
  end
  redis.call('HSET', key, 'denied', known)
  for _, f in ipairs(c.frees) do
    if halve and f[1] == d[1] and f[3] == 0 then f[3] = -1 end
  end
end
-- A worker that is alive and not away is in its pools as long as it has room.
local shares = {}
for _, f in ipairs(c.frees) do
  local key = P .. 'worker:' .. f[1]
  local freed = in_pieces('SREM', key .. ':leases', f[2])
  local w = redis.call('HMGET', key, 'capacity', 'class', 'capabilities', 'share', 'used', 'denied', 'away')
  local share = w[4]
  if f[3] > 0 and (share or w[6]) then
    redis.call('HDEL', key, 'share', 'denied')
    share = nil
  elseif f[3] < 0 and w[1] then
    share = math.min(tonumber(share or '1') * 2, c.most_share)
    redis.call('HSET', key, 'share', share)
  end
  shares[f[1]] = share or '1'
  if freed > 0 or share ~= w[4] then
    local had, used = tonumber(w[5]) < room(w[1], w[4]), redis.call('HINCRBY', key, 'used', -freed)
    local has = used < room(w[1], share)
    if had and not has then
      for _, group in ipairs(groups(w[2], w[3])) do redis.call('SREM', P .. 'pool:' .. group, f[1]) end
    elseif has and not had and not w[7] and redis.call('ZSCORE', P .. 'alive', f[1]) then
      for _, group in ipairs(groups(w[2], w[3])) do redis.call('SADD', P .. 'pool:' .. group, f[1]) end
    end
  end
end
for n, t in ipairs(c.takes) do
  local key, w = P .. 'worker:' .. t[1], taken[n]
  in_pieces('SADD', key .. ':leases', t[3])
  if redis.call('HINCRBY', key, 'used', #t[3]) >= room(w[3], shares[t[1]] or w[4]) then
    for _, group in ipairs(groups(w[5], w[6])) do redis.call('SREM', P .. 'pool:' .. group, t[1]) end
  end
end
if #c.idempotency > 0 then
  redis.call('SET', P .. 'idempotency:' .. c.idempotency[1], c.idempotency[2], 'EX', c.idempotency[3])
end
if #c.tell == 0 then return {'ok'} end
return {'ok', redis.call('HGET', P .. 'balances', 'account:' .. c.tell[1]),
  redis.call('SRANDMEMBER', P .. 'job:' .. c.tell[1] .. ':' .. c.tell[2] .. ':recompute', c.tell[3])}
