-- Acquires a permit for one attempt to redeem without a token. The user's own lock does not count: it
-- never stands in its holder's way.
--
-- Attempts do not count each other, since they take turns at the row in PostgreSQL, unless someone
-- else holds a lock. That lock may have left room for an earlier attempt, which does not know of it:
-- a later attempt that counted locks alone would take this room as well.
--
-- KEYS     1, 2 as in permits.lua; 3: a set, the user's attempts, which keeps new locks of theirs away
-- ARGV     user_id, attempt_id, ttl_ms
-- Returns  {permits_taken, others_end_in_ms, lock_id, expire_ms}: the permits that count, this one
--          included; lock_id and expire_ms are those of the user's own lock, '' and 0 without one

local user, attempt = 'u' .. ARGV[1], 'm' .. ARGV[2]
local own_id, own_expire = lock_of(user)
if not redis.call('ZSCORE', permits, attempt) then
  hold(attempt, now + ARGV[3])
  redis.call('SADD', KEYS[3], ARGV[2])
  redis.call('PEXPIRE', KEYS[3], ARGV[3])
end
local counted = 1
if locks_of_others(own_id) > 0 then counted = taken - (own_id and 1 or 0) end
return {counted, others_end_in(user, attempt), own_id or '', own_expire or 0}
