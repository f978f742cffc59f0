-- Counts a request against several limits at once: all of them have room, or none is charged. Which they are depends on
-- whether the account that the request names has the secret that it shows: in the same step, so that whoever has it pays for
-- the request, nobody else does, and a ban or another secret counts from the moment that it is written.
-- GCRA, a leaky bucket that is one number: the time at which the bucket will be empty (its "theoretical arrival time",
-- ITU-T I.371; https://brandur.org/rate-limiting). The key is gone once that is past, so idle callers cost nothing.
-- Keys: {ec}:rate:<limit>:<who>  string: that time, microseconds; {ec}:account:<id>  hash: secret_hash, banned.
-- ARGV: cost, account ("": none is named), hash of the secret that is shown, how many limits there are for whoever has it,
-- these limits, the limits for everybody else; each as <limit>:<who>, requests a second, burst.
-- Returns {1 or 0 (all have room), 1 or 0 (the secret is the account's), why it is banned or "", then for each limit that
-- counted: requests left, ms until it is whole again, ms until this cost fits (0: it does)}.
local P = '{ec}:rate:'
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local cost = tonumber(ARGV[1])
local account, proven = {false, false}, false
if ARGV[2] ~= '' then
  account = redis.call('HMGET', '{ec}:account:' .. ARGV[2], 'secret_hash', 'banned')
  -- Takes as long wherever the two differ: Lua has each text once, and compares where it is.
  proven = account[1] == ARGV[3]
end
local first, last = 5, 4 + 3 * ARGV[4]
if not proven then first, last = last + 1, #ARGV end
local good = 1
local limits = {}
for at = first, last, 3 do
  local each = 1000000 / ARGV[at + 1]
  local burst = tonumber(ARGV[at + 2])
  local was = math.max(now, tonumber(redis.call('GET', P .. ARGV[at]) or '0'))
  local after = was + math.min(cost, burst) * each
  local over = after - now - burst * each
  if over > 0.5 then good = 0 end
  limits[#limits + 1] = {P .. ARGV[at], each, burst, was, after, over}
end
local answer = {good, proven and 1 or 0, account[2] or ''}
for _, limit in ipairs(limits) do
  local key, each, burst, was, after, over = unpack(limit)
  if good == 1 then
    was = after
    redis.call('SET', key, string.format('%.0f', after), 'PX', math.max(1, math.ceil((after - now) / 1000)))
  end
  answer[#answer + 1] = math.floor(burst - (was - now) / each + 0.001)
  answer[#answer + 1] = math.ceil((was - now) / 1000)
  answer[#answer + 1] = math.max(0, math.ceil(over / 1000))
end
return answer
