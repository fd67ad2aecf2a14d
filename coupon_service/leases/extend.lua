-- Lets a lock end later; never earlier than it would anyway. How often is not counted here: the ledger
-- knows, and a call that is sent twice is one extension.
--
-- KEYS     1, 2 as in permits.lua
-- ARGV     user_id, lock_id, expire_ms, grace_ms
-- Returns  the end of the lock now, 0 when it is not held

local user, expire = 'u' .. ARGV[1], tonumber(ARGV[3])
local held_id, held_expire, attempts = lock_of(user)

if held_id ~= ARGV[2] then return 0 end
if expire <= held_expire then return held_expire end
hold_lock(user, held_id, expire, attempts, ARGV[4])
return expire
