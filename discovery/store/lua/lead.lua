-- One process of a service leads: it sweeps. Who leads says so again and again; who is silent for too long leads no more.
-- Keys: {ec}:leader  string: the process that leads; it expires.
-- ARGV: process, ms it leads without a word; 0: it leads no more. Returns 1: it leads, 0: another one does, or none.
local key = '{ec}:leader'
local leader = redis.call('GET', key)
if leader and leader ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then
  redis.call('DEL', key)
  return 0
end
redis.call('SET', key, ARGV[1], 'PX', ARGV[2])
return 1
