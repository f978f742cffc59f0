-- What sample.lua, standings.lua and workers.lua say alike: it stands in front of each (see scripts.py).
-- Keys as in commit.lua and register.lua.
local P = '{ec}:'
-- A worker as records.WorkerRecord has it, in that order; nil: nobody knows it. Numbers may be text: Python reads both.
local function worker(id)
  local w = {id, unpack(redis.call('HMGET', P .. 'worker:' .. id, 'account', 'address', 'port', 'slots', 'epoch', 'used',
    'capacity', 'verified', 'doubts', 'words', 'accusers', 'share', 'ask', 'platform', 'banned', 'auditor', 'terms',
    'relay'))}
  if not w[2] then return nil end
  for n = 9, 12 do w[n] = w[n] or 0 end
  w[13], w[14], w[15], w[18], w[19] = w[13] or 1, w[14] or 1, w[15] or '', w[18] or '', w[19] or 'never'
  w[16], w[17] = w[16] ~= false, w[17] ~= false
  return w
end
-- What is known of a job, and what its foreman alone knows of some workers, at one instant: {party, unvested, answers,
-- workers compared, workers that differed, whether it is noisy, [account, effort, ...], [worker whose results did not
-- arrive, ...], [account, hold fees, ...], own [verified, doubts, words, verified, ...] of the workers}.
-- `networks`: "1" when accounts of one network are one party.
local function known(account_id, job_id, networks, ids)
  local account = redis.call('HMGET', P .. 'account:' .. account_id, 'network', 'unvested')
  local party = networks == '1' and account[1] and account[1] ~= '' and account[1] or account_id
  local key = P .. 'job:' .. account_id .. ':' .. job_id
  local job = redis.call('HMGET', key, 'answers', 'noisy')
  local fields, own = {}, {}
  for _, id in ipairs(ids) do
    fields[#fields + 1] = id .. ':v'
    fields[#fields + 1] = id .. ':d'
    fields[#fields + 1] = id .. ':w'
  end
  -- Lua's unpack takes some thousand values at most.
  for start = 1, #fields, 999 do
    local found = redis.call('HMGET', P .. 'trust:' .. party, unpack(fields, start, math.min(start + 998, #fields)))
    for n = 1, #found do own[#own + 1] = found[n] or 0 end
  end
  return {party, account[2] or 0, job[1] or 0, redis.call('HLEN', key .. ':compared'),
    redis.call('HLEN', key .. ':differed'), job[2] ~= false, redis.call('HGETALL', key .. ':effort'),
    redis.call('HKEYS', key .. ':undelivered'), redis.call('HGETALL', key .. ':held'), own}
end
