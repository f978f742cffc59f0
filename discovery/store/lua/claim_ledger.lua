-- Says which archive holds the ledger: the first one that asks. Keys as in acknowledge_block.lua.
-- ARGV: archive, hash before the first block, directory. Returns the archive that holds it.
local key = '{ec}:ledger:head'
if redis.call('HSETNX', key, 'archive', ARGV[1]) == 1 then
  redis.call('HSET', key, 'number', 0, 'hash', ARGV[2], 'last', '0-0', 'posted', '0 0 0', 'posted_last', '0-0')
end
local holds = redis.call('HGET', key, 'archive')
if holds == ARGV[1] then redis.call('HSET', key, 'where', ARGV[3]) end
return holds
