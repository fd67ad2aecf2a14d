-- Gives back the permit of a lock. Whoever names another lock_id changes nothing of it. An attempt that
-- did not come to record the lock leaves it to the others that were answered with it, and may have.
--
-- KEYS     1, 2 as in permits.lua; 3: the tombstone of this user's lock_id
-- ARGV     user_id, lock_id, tombstone_until_ms (0: none): until then the lock cannot be taken again;
--          1 when an attempt abandons it, else 0
-- Returns  1 when the lock was held, else 0

local user, tombstone_ms = 'u' .. ARGV[1], ARGV[3] - now
if tombstone_ms > 0 then redis.call('SET', KEYS[3], '', 'PX', tombstone_ms) end
local held_id, expire, attempts = lock_of(user)
if held_id ~= ARGV[2] then return 0 end
if ARGV[4] == '1' and attempts ~= 1 then
  if attempts ~= RETAKEN then write_lock(user, held_id, expire, attempts - 1) end
  return 0
end
redis.call('HDEL', locks, user)
return redis.call('ZREM', permits, user)
