-- Keeps the last report of a job. Keys:
--   {ec}:account:<id>:jobs  hash: job id -> "<ended 0 or 1> <first report ms> <last report ms> <kept until ms> <report>"
--   {ec}:jobs               sorted set: account:job by the time in ms until which it is kept
--   {ec}:running            sorted set: those of them that have not ended
-- A job is its account's: the same id of another account is another job.
-- ARGV: account, job, ended, ms to keep, most jobs of an account, report.
local P = '{ec}:'
local key, kept = P .. 'account:' .. ARGV[1] .. ':jobs', P .. 'jobs'
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local started = now
local before = redis.call('HGET', key, ARGV[2])
if before then
  local first, till = string.match(before, '^%d (%d+) %d+ (%d+) ')
  if tonumber(till) > now then started = tonumber(first) end
else
  -- A full account forgets the job that was silent longest, of those that ended if there is any.
  while redis.call('HLEN', key) >= tonumber(ARGV[5]) do
    local all, worst, rank = redis.call('HGETALL', key), nil, nil
    for n = 1, #all, 2 do
      local ended, last = string.match(all[n + 1], '^(%d) %d+ (%d+) ')
      local this = tonumber(last) - tonumber(ended) * 1e15
      if not rank or this < rank then worst, rank = all[n], this end
    end
    redis.call('HDEL', key, worst)
    redis.call('ZREM', kept, ARGV[1] .. ':' .. worst)
    redis.call('ZREM', P .. 'running', ARGV[1] .. ':' .. worst)
  end
end
local till = now + ARGV[4]
redis.call('HSET', key, ARGV[2], string.format('%s %.0f %.0f %.0f ', ARGV[3], started, now, till) .. ARGV[6])
redis.call('ZADD', kept, till, ARGV[1] .. ':' .. ARGV[2])
if ARGV[3] == '1' then
  redis.call('ZREM', P .. 'running', ARGV[1] .. ':' .. ARGV[2])
else
  redis.call('ZADD', P .. 'running', till, ARGV[1] .. ':' .. ARGV[2])
end
return 1
