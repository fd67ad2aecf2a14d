-- Takes a place for one attempt to redeem without a token. Only the locks of others count: the
-- user's own never stands in its holder's way, and attempts take turns at the row in PostgreSQL.
--
-- KEYS     1, 2 as in places.lua
-- ARGV     user_id, attempt_id, ttl_ms
-- Returns  {places_taken, others_end_in_ms, lock_id, expire_ms}: the locks of others and this
--          place; lock_id and expire_ms are those of the user's own lock, '' and 0 without one

local user, attempt = 'u' .. ARGV[1], 'm' .. ARGV[2]
local own_id, own_expire = lock_of(user)
local ends = redis.call('ZSCORE', places, attempt)
if not (ends and tonumber(ends) > now) then hold(attempt, now + ARGV[3]) end
return {locks_of_others(own_id) + 1, others_end_in(user, attempt), own_id or '', own_expire or 0}
