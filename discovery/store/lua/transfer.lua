-- Sends credits from one account to another, once for each idempotency key. Keys as in commit.lua, and:
--   {ec}:account:<id>              hash: granted (credits it got as a gift), unvested (earned, but not to be sent yet)
--   {ec}:transfer:<account>:<key>  string: what was sent with this key, gone after a while
-- A gift is spent first and never sent on: of the balance as much is still gift as was granted and neither spent nor is
-- in escrow. (What of it was burnt is granted no more: see mint.lua.)
-- ARGV: from, to, amount, idempotency key, what is sent (to compare), seconds to keep that, ledger entry.
-- Returns {"ok" or "repeated", balance, what may be sent now}, {"conflict"}, {"unknown"} or {"credits", balance, what may}.
local P = '{ec}:'
local from, to, amount = ARGV[1], ARGV[2], tonumber(ARGV[3])
local kept = P .. 'transfer:' .. from .. ':' .. ARGV[4]

local a = redis.call('HMGET', P .. 'account:' .. from, 'granted', 'spent', 'escrow', 'unvested')
local balance = tonumber(redis.call('HGET', P .. 'balances', 'account:' .. from) or '0')
local gift = math.max(0, tonumber(a[1] or '0') - tonumber(a[2] or '0') - tonumber(a[3] or '0'))
local free = math.max(0, balance - gift - math.max(0, tonumber(a[4] or '0')))

local before = redis.call('GET', kept)
if before and before ~= ARGV[5] then return {'conflict'} end
if before then return {'repeated', balance, free} end
if redis.call('HEXISTS', P .. 'account:' .. to, 'secret_hash') == 0 then return {'unknown'} end
if from == to or not (amount >= 1) or amount > free then return {'credits', balance, free} end
-- By their texts: a large number of Lua would be written in a way that HINCRBY does not read.
redis.call('HINCRBY', P .. 'balances', 'account:' .. from, '-' .. ARGV[3])
redis.call('HINCRBY', P .. 'balances', 'account:' .. to, ARGV[3])
redis.call('XADD', P .. 'ledger', '*', 'm', ARGV[7])
redis.call('SET', kept, ARGV[5], 'EX', ARGV[6])
return {'ok', balance - amount, free - amount}
