-- Looks at the locks of a code and changes nothing.
--
-- KEYS     1, 2 as in permits.lua; 3: the tombstone of this user's lock_id
-- ARGV     user_id, lock_id ('' for none)
-- Returns  {others, others_end_in_ms, own_lock_id, gone}: the live locks of others, the lock_id of
--          the user's own ('' without one), and 1 when lock_id was released, used or replaced

local user = 'u' .. ARGV[1]
local own_id = lock_of(user)
local replaced = ARGV[2] ~= '' and own_id and own_id ~= ARGV[2]
local gone = (replaced or redis.call('EXISTS', KEYS[3]) == 1) and 1 or 0
return {locks_of_others(own_id), others_end_in(user), own_id or '', gone}
