-- Gives the permit of a lock to the lock of another user that takes its place and ends with it. Should Redis
-- have lost it, the permit is acquired as any other.
--
-- KEYS     1, 2 as in permits.lua; 3: the tombstone of the new lock; 4: its user's attempts to redeem
--          without a token
-- ARGV     user_id, lock_id, expire_ms, grace_ms, permits_max (as in acquire.lua), and of the lock that
--          goes over: user_id, lock_id
-- Returns  as acquire.lua; permits_taken is 0 for a permit that went over, which was counted when it was
--          acquired

local user, lock_id, from = 'u' .. ARGV[1], ARGV[2], 'u' .. ARGV[6]
local expire, grace, permits_max = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])

local function answer(outcome, id, ends, permits_taken)
  return {outcome, id, ends, permits_taken or taken, others_end_in(user, from)}
end

local held_id, held_expire, held_attempts = lock_of(user)
if held_id then
  if held_attempts ~= RETAKEN then write_lock(user, held_id, held_expire, held_attempts + 1) end
  return answer(held_id ~= lock_id and 'OTHER' or 'SAME', held_id, held_expire)
end
if expire <= now or redis.call('EXISTS', KEYS[3]) == 1 then return answer('GONE', lock_id, expire) end
local from_id, _, from_attempts = lock_of(from)
local held = from_id == ARGV[7]
local counted = held and from_attempts ~= RETAKEN
local full = not counted and permits_max >= 0 and taken - (held and 1 or 0) >= permits_max
if full or redis.call('EXISTS', KEYS[4]) == 1 then return answer('FULL', lock_id, expire) end
if held then
  redis.call('HDEL', locks, from)
  taken = taken - redis.call('ZREM', permits, from)
end
hold_lock(user, lock_id, expire, 1, grace)
return answer('TAKEN', lock_id, expire, counted and 0)
