-- Lets a lock end later. An end that is no later than the present one (the same call again) changes
-- and counts nothing.
--
-- KEYS     1, 2 as in places.lua
-- ARGV     user_id, lock_id, expire_ms, grace_ms, extensions_max
-- Returns  {outcome, expire_ms, extensions}; outcome is EXTENDED, LIMIT or GONE (not held)

local user, expire = 'u' .. ARGV[1], tonumber(ARGV[3])
local held_id, held_expire, extensions, retaken = lock_of(user)

if held_id ~= ARGV[2] then return {'GONE', 0, 0} end
if expire <= held_expire then return {'EXTENDED', held_expire, extensions} end
if extensions >= tonumber(ARGV[5]) then return {'LIMIT', held_expire, extensions} end
hold_lock(user, held_id, expire, extensions + 1, retaken, ARGV[4])
return {'EXTENDED', expire, extensions + 1}
