-- Gives back the place of a lock. Whoever names another lock_id changes nothing of it.
--
-- KEYS     1, 2 as in places.lua; 3: the tombstone of this user's lock_id
-- ARGV     user_id, lock_id, tombstone_until_ms (0: none): until then the lock cannot be taken again
-- Returns  1 when the lock was held, else 0

local user, tombstone_ms = 'u' .. ARGV[1], ARGV[3] - now
if tombstone_ms > 0 then redis.call('SET', KEYS[3], '', 'PX', tombstone_ms) end
if lock_of(user) ~= ARGV[2] then return 0 end
redis.call('HDEL', locks, user)
return redis.call('ZREM', places, user)
