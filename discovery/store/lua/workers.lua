-- Reads workers, alive or not. Keys as in register.lua. ARGV: worker, ...
-- Returns one MessagePack: for each worker its fields as sample.lua names them, of which all are false where it is unknown.
local answer = {}
for n, id in ipairs(ARGV) do
  answer[n] = redis.call('HMGET', '{ec}:worker:' .. id, 'account', 'address', 'port', 'slots', 'epoch', 'used', 'capacity',
    'verified', 'doubts', 'words', 'accusers', 'share', 'ask', 'platform', 'banned', 'auditor', 'terms',
    'relay')
end
return cmsgpack.pack(answer)
