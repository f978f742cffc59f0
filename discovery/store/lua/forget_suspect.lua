-- Forgets a worker of which nothing came since it was judged. Keys as in commit.lua. ARGV: worker.
if tonumber(redis.call('HGET', '{ec}:suspects', ARGV[1]) or '1') <= 0 then
  return redis.call('HDEL', '{ec}:suspects', ARGV[1])
end
return 0
