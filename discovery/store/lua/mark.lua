-- Marks an account and all its workers as an auditor's, or takes a mark off them. Keys as in register.lua, and:
--   {ec}:auditors  set: accounts that are marked so
-- ARGV: account, "auditor" or "banned", "1" or "" (off), the set of those that have the mark, and how the mark has to
-- begin that is taken off ("": in any way). Returns 1, or 0 when there was nothing to change, -1: no such account.
local P = '{ec}:'
local account = P .. 'account:' .. ARGV[1]
local known = redis.call('HMGET', account, 'secret_hash', ARGV[2])
if not known[1] then return -1 end
local on = ARGV[3] ~= ''
if on == (known[2] and true or false) or (known[2] and string.sub(known[2], 1, #ARGV[5]) ~= ARGV[5]) then return 0 end
local keys = {account}
for _, id in ipairs(redis.call('SMEMBERS', account .. ':workers')) do keys[#keys + 1] = P .. 'worker:' .. id end
for _, key in ipairs(keys) do
  if on then redis.call('HSET', key, ARGV[2], ARGV[3]) else redis.call('HDEL', key, ARGV[2]) end
end
redis.call(on and 'SADD' or 'SREM', P .. ARGV[4], ARGV[1])
return 1
