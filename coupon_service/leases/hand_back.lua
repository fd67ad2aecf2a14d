-- Undoes take_over.lua for a lock that did not come to be recorded: the lock that it took the place of gets
-- its permit again, unless that is over by now. An attempt leaves the permit to others that were answered
-- with it.
--
-- KEYS     1, 2 as in permits.lua; 3: the tombstone of the lock that went over
-- ARGV     user_id, lock_id, grace_ms, and of the lock that went over: user_id, lock_id
-- Returns  1 when the lock has given its permit up, else 0

local user, from = 'u' .. ARGV[1], 'u' .. ARGV[4]
local held_id, expire, attempts = lock_of(user)
if held_id ~= ARGV[2] then return 0 end
if attempts ~= 1 then
  if attempts ~= RETAKEN then write_lock(user, held_id, expire, attempts - 1) end
  return 0
end
redis.call('HDEL', locks, user)
taken = taken - redis.call('ZREM', permits, user)
if not lock_of(from) and redis.call('EXISTS', KEYS[3]) == 0 then
  hold_lock(from, ARGV[5], expire, RETAKEN, ARGV[3])
end
return 1
