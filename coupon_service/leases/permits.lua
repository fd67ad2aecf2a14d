-- The permits of one code. This file is put in front of every script that works on them.
--
-- KEYS[1]  zset: who holds a permit, scored with the end of the hold (ms since 1970).
--          Members: 'u<user_id>' for the lock of a user, 'm<attempt_id>' for a transient permit.
-- KEYS[2]  hash: 'u<user_id>' -> '<expire_ms>:<attempts>:<lock_id>'. expire_ms is what the token
--          says; the score in KEYS[1] lies a grace later. attempts: how many asked for the lock and
--          did not give it back; RETAKEN when Redis had lost it and took it again from its token, so
--          that nobody knows whether it fits.
--
-- Only Redis's own clock decides what has ended.

local RETAKEN = 0
local permits, locks = KEYS[1], KEYS[2]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

-- The permits that end first, each with its end; three are enough to see one of someone else's beside
-- the two that a user can have.
local function first_permits()
  return redis.call('ZRANGE', permits, 0, 2, 'WITHSCORES')
end

-- What has ended goes, in portions that fit on Lua's stack.
local first = first_permits()
while #first > 0 and tonumber(first[2]) <= now do
  local ended = redis.call('ZRANGEBYSCORE', permits, '-inf', now, 'LIMIT', 0, 1000)
  redis.call('ZREM', permits, unpack(ended))
  redis.call('HDEL', locks, unpack(ended))
  first = first_permits()
end
local taken = #first < 6 and #first / 2 or redis.call('ZCARD', permits)

-- The live lock of a user as lock_id, expire_ms, attempts; nil without one.
local function lock_of(user)
  if taken == 0 then return nil end
  local entry = redis.call('HGET', locks, user)
  if not entry or not redis.call('ZSCORE', permits, user) then return nil end
  local expire, attempts, id = string.match(entry, '^(%d+):(%d+):(.*)$')
  return id, tonumber(expire), tonumber(attempts)
end

-- Live locks, not counting the user's own; transient permits are none.
local function locks_of_others(own_id)
  return redis.call('HLEN', locks) - (own_id and 1 or 0)
end

-- Gives a member a permit until `ends`. The keys live as long as the last permit.
local function hold(member, ends)
  taken = taken + redis.call('ZADD', permits, ends, member)
  local last = taken == 1 and ends or redis.call('ZRANGE', permits, -1, -1, 'WITHSCORES')[2]
  redis.call('PEXPIREAT', permits, last)
  redis.call('PEXPIREAT', locks, last)
end

local function write_lock(user, lock_id, expire, attempts)
  redis.call('HSET', locks, user, string.format('%.0f:%d:%s', expire, attempts, lock_id))
end

local function hold_lock(user, lock_id, expire, attempts, grace)
  write_lock(user, lock_id, expire, attempts)
  hold(user, expire + grace)
end

-- Milliseconds until the first permit of someone else becomes free; -1 when no one else has one.
local function others_end_in(own, own_transient)
  for i = 1, #first, 2 do
    if first[i] ~= own and first[i] ~= own_transient then return first[i + 1] - now end
  end
  return -1
end

