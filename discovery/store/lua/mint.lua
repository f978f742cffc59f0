-- The operator makes credits for an account, or takes them away, a gift first. Keys as in commit.lua and transfer.lua.
-- ARGV: "mint" or "burn", account, amount, ledger entry, most credits that may ever be minted.
-- Returns {"ok", balance}, {"unknown"}, {"credits", what may be burnt} (less than that) or {"most", minted}.
local P = '{ec}:'
local place, amount = 'account:' .. ARGV[2], tonumber(ARGV[3])
if redis.call('HEXISTS', P .. place, 'secret_hash') == 0 then return {'unknown'} end
local balance = tonumber(redis.call('HGET', P .. 'balances', place) or '0')
local from, to = 'mint', place
if ARGV[1] == 'burn' then
  from, to = place, 'burn'
  -- What has not vested may be taken back by a dispute: it has to be there.
  local free = balance - tonumber(redis.call('HGET', P .. place, 'unvested') or '0')
  if amount > free then return {'credits', free} end
  local a = redis.call('HMGET', P .. place, 'granted', 'spent', 'escrow')
  local gift = tonumber(a[1] or '0') - tonumber(a[2] or '0') - tonumber(a[3] or '0')
  -- By its text, for HINCRBY does not read a large number as Lua would write it.
  if gift > 0 then
    redis.call('HINCRBY', P .. place, 'granted', gift < amount and string.format('-%.0f', gift) or '-' .. ARGV[3])
  end
else
  local minted = -tonumber(redis.call('HGET', P .. 'balances', 'mint') or '0')
  if minted + amount > tonumber(ARGV[5]) then return {'most', minted} end
end
redis.call('HINCRBY', P .. 'balances', from, '-' .. ARGV[3])
redis.call('HINCRBY', P .. 'balances', to, ARGV[3])
redis.call('XADD', P .. 'ledger', '*', 'm', ARGV[4])
return {'ok', tonumber(redis.call('HGET', P .. 'balances', place))}
