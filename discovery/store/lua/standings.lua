-- What is known of workers when tasks of a job are decided, at one instant; parts/known.lua stands in front of it.
-- ARGV: account, job, "1" when accounts of one network are one party, worker, ...
-- Returns one MessagePack: {what `known` says of the job and the workers, [[verified, doubts, words, banned, auditor] of
-- each, ...]}.
local ids, shared = {}, {}
for n = 4, #ARGV do
  local w = redis.call('HMGET', P .. 'worker:' .. ARGV[n], 'verified', 'doubts', 'words', 'banned', 'auditor')
  ids[n - 3] = ARGV[n]
  shared[n - 3] = {w[1] or 0, w[2] or 0, w[3] or 0, w[4] ~= false, w[5] ~= false}
end
return cmsgpack.pack({known(ARGV[1], ARGV[2], ARGV[3], ids), shared})
