-- Takes a place for the lock of a user, once: a user has at most one lock on a code.
--
-- KEYS     1, 2 as in places.lua; 3: the tombstone of this user's lock_id
-- ARGV     user_id, lock_id, expire_ms (0: now + ttl_ms), ttl_ms, grace_ms,
--          places_max (refuse, and add nothing, when so many are taken; -1: no such limit)
-- Returns  {outcome, lock_id, expire_ms, places_taken, others_end_in_ms}; outcome is
--          TAKEN  the place was free and is this lock's now
--          SAME   this lock had it already
--          OTHER  the user holds another lock (lock_id and expire_ms are that one's)
--          GONE   this lock was given up for good, or its time is over
--          FULL   places_max

local user, lock_id, grace = 'u' .. ARGV[1], ARGV[2], tonumber(ARGV[5])
local expire, places_max = tonumber(ARGV[3]), tonumber(ARGV[6])
if expire == 0 then expire = now + ARGV[4] end

local function answer(outcome, id, ends)
  return {outcome, id, ends, live_places(), others_end_in(user)}
end

local held_id, held_expire = lock_of(user)
if held_id then return answer(held_id == lock_id and 'SAME' or 'OTHER', held_id, held_expire) end
if expire + grace <= now or redis.call('EXISTS', KEYS[3]) == 1 then
  return answer('GONE', lock_id, expire)
end
if places_max >= 0 and live_places() >= places_max then return answer('FULL', lock_id, expire) end
hold_lock(user, lock_id, expire, 0, grace)
return answer('TAKEN', lock_id, expire)
