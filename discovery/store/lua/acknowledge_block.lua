-- Says that the ledger's oldest entries are on disk, and lets them go. Keys:
--   {ec}:ledger       stream: the entries that are not on disk yet (see commit.lua)
--   {ec}:ledger:head  hash: archive (its id), number, hash (hex) and last (entry id) of the block written last,
--                     where (the archive's directory, for people and programs on that machine),
--                     posted (blocks up to the first are in the statements, those up to the second are being added,
--                     and so many of their rows are there), posted_last (entry id of the first): see post_rows.lua
-- ARGV: archive, number and hash before, number and hash now, first and last entry of the block, the id after the last.
-- Returns "ok", "head" (another block is the last one) or "entries" (the oldest entries are others); then nothing changed.
local P = '{ec}:'
local head = redis.call('HMGET', P .. 'ledger:head', 'archive', 'number', 'hash')
if head[1] ~= ARGV[1] or head[2] ~= ARGV[2] or head[3] ~= ARGV[3] then return 'head' end
local oldest = redis.call('XRANGE', P .. 'ledger', '-', '+', 'COUNT', 1)
if not oldest[1] or oldest[1][1] ~= ARGV[6] then return 'entries' end
if #redis.call('XRANGE', P .. 'ledger', ARGV[7], ARGV[7]) == 0 then return 'entries' end
-- First what frees memory: a script that has begun to write is let finish where the store has no more of it.
redis.call('XTRIM', P .. 'ledger', 'MINID', '=', ARGV[8])
redis.call('HSET', P .. 'ledger:head', 'number', ARGV[4], 'hash', ARGV[5], 'last', ARGV[7])
return 'ok'
