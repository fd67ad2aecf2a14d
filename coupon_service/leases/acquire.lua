-- Acquires a permit for the lock of a user, once: a user has at most one lock on a code. For a new lock
-- with a ttl_ms; for one that has a token, which Redis may have lost, with the expire_ms of the token.
--
-- KEYS     1, 2 as in permits.lua; 3: the tombstone of this user's lock_id; 4: the user's attempts to
--          redeem without a token
-- ARGV     user_id, lock_id, expire_ms (0: now + ttl_ms), ttl_ms, grace_ms,
--          permits_max (refuse, and add nothing, when so many are taken; -1: no such limit),
--          follows ('' or the user's lock that is over, whose permit this one gets)
-- Returns  {outcome, lock_id, expire_ms, permits_taken, others_end_in_ms}; outcome is
--          TAKEN  the permit was free and is this lock's now
--          SAME   this lock had it already
--          AGAIN  so it had, but taken again after a loss
--          OTHER  the user holds another lock (lock_id and expire_ms are that one's)
--          GONE   this lock was released or used, or its time is over
--          FULL   permits_max; or the user redeems without a token at this moment, which could not
--                 use up a lock that came after it

local user, lock_id, grace = 'u' .. ARGV[1], ARGV[2], tonumber(ARGV[5])
local expire, permits_max = tonumber(ARGV[3]), tonumber(ARGV[6])

local function answer(outcome, id, ends)
  return {outcome, id, ends, taken, others_end_in(user)}
end

local attempts = expire == 0 and 1 or RETAKEN
if expire == 0 then expire = now + ARGV[4] end

local held_id, held_expire, held_attempts = lock_of(user)
local follows = held_id ~= nil and held_id == ARGV[7]
if held_id and not follows then
  if attempts == 1 and held_attempts ~= RETAKEN then
    write_lock(user, held_id, held_expire, held_attempts + 1)
  end
  local outcome = held_id ~= lock_id and 'OTHER' or held_attempts == RETAKEN and 'AGAIN' or 'SAME'
  return answer(outcome, held_id, held_expire)
end
local buried_or_redeeming = redis.call('EXISTS', KEYS[3], KEYS[4]) > 0
if expire + grace <= now or buried_or_redeeming and redis.call('EXISTS', KEYS[3]) == 1 then
  return answer('GONE', lock_id, expire)
end
local others = taken - (follows and 1 or 0)
if permits_max >= 0 and others >= permits_max or attempts == 1 and buried_or_redeeming then
  return answer('FULL', lock_id, expire)
end
hold_lock(user, lock_id, expire, attempts, grace)
return answer('TAKEN', lock_id, expire)
