-- Replaces the hash of an account's secret, if it still is what the caller proved to know. Keys as in create_account.lua.
-- ARGV: account, old hash, new hash. Returns 1, or 0 when another call was first.
local key = '{ec}:account:' .. ARGV[1]
if redis.call('HGET', key, 'secret_hash') ~= ARGV[2] then return 0 end
redis.call('HSET', key, 'secret_hash', ARGV[3])
return 1
