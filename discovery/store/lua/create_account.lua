-- Makes an account and mints its starting credits. Keys as in commit.lua, and:
--   {ec}:account:<id>  hash: secret_hash, name, created_ms
-- ARGV: id, secret hash, name, credits, ledger entry, -credits. Returns 1, or 0 when the id is taken.
local P = '{ec}:'
local time = redis.call('TIME')
if redis.call('HSETNX', P .. 'account:' .. ARGV[1], 'secret_hash', ARGV[2]) == 0 then return 0 end
redis.call('HSET', P .. 'account:' .. ARGV[1], 'name', ARGV[3], 'created_ms', time[1] * 1000)
-- Negated outside: a number of Lua is a double, and would be written in another way than HINCRBY reads.
redis.call('HINCRBY', P .. 'balances', 'mint', ARGV[6])
redis.call('HINCRBY', P .. 'balances', 'account:' .. ARGV[1], ARGV[4])
if ARGV[5] ~= '' then redis.call('XADD', P .. 'ledger', '*', 'm', ARGV[5]) end
return 1
