-- Reads workers, alive or not; parts/known.lua stands in front of it. ARGV: worker, ...
-- Returns one MessagePack: those that there are, each as `worker` has it.
local found = {}
for _, id in ipairs(ARGV) do found[#found + 1] = worker(id) end
return cmsgpack.pack(found)
