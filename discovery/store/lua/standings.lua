-- What is known of workers when tasks of a job are decided, at one instant. Keys as in commit.lua.
-- ARGV: account, job, "1" when accounts of one network are one party, how many of the workers to look up (of the others only
-- the foreman's own tallies are wanted), worker, ...
-- Returns, as one MessagePack, {party, unvested, answers, workers compared, workers that differed, noisy 0 or 1,
--   [account, effort, ...], [worker whose results did not arrive, ...], [account, hold fees, ...],
--   worker's [verified, doubts, words, banned, auditor], ..., own [v, d, w, v, d, w, ...] of all workers}.
local P = '{ec}:'
local account = redis.call('HMGET', P .. 'account:' .. ARGV[1], 'network', 'unvested')
local party = ARGV[3] == '1' and account[1] and account[1] ~= '' and account[1] or ARGV[1]
local key = P .. 'job:' .. ARGV[1] .. ':' .. ARGV[2]
local job = redis.call('HMGET', key, 'answers', 'noisy')
local answer = {party, tonumber(account[2] or '0'), tonumber(job[1] or '0'), redis.call('HLEN', key .. ':compared'),
  redis.call('HLEN', key .. ':differed'), job[2] and 1 or 0, redis.call('HGETALL', key .. ':effort'),
  redis.call('HKEYS', key .. ':undelivered'), redis.call('HGETALL', key .. ':held')}
local fields = {}
for n = 5, #ARGV do
  local id = ARGV[n]
  if n - 4 <= tonumber(ARGV[4]) then
    answer[#answer + 1] = redis.call('HMGET', P .. 'worker:' .. id, 'verified', 'doubts', 'words', 'banned', 'auditor')
  end
  fields[#fields + 1] = id .. ':v'
  fields[#fields + 1] = id .. ':d'
  fields[#fields + 1] = id .. ':w'
end
local own = {}
-- Lua's unpack takes some thousand values at most.
for start = 1, #fields, 999 do
  local found = redis.call('HMGET', P .. 'trust:' .. party, unpack(fields, start, math.min(start + 998, #fields)))
  for n = 1, #found do own[#own + 1] = found[n] end
end
answer[#answer + 1] = own
return cmsgpack.pack(answer)
