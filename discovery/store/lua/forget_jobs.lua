-- Forgets up to ARGV[1] jobs of which nothing was heard for too long. Keys as in report_job.lua. Returns how many.
local P = '{ec}:'
local time = redis.call('TIME')
local gone = redis.call('ZRANGEBYSCORE', P .. 'jobs', '-inf', time[1] * 1000 + math.floor(time[2] / 1000), 'LIMIT', 0, ARGV[1])
for _, each in ipairs(gone) do
  local account, job = string.match(each, '^(.*):(.*)$')
  redis.call('HDEL', P .. 'account:' .. account .. ':jobs', job)
  redis.call('ZREM', P .. 'jobs', each)
end
return #gone
