-- Puts locks into an index: the locks of a user or of a book, scored with their expiry.
--
-- KEYS     1: the index, a zset
-- ARGV     expire_ms (0: now + ttl_ms), ttl_ms, keep_ms (how long an ended entry stays),
--          entries_max (0: no limit), member, member, ...
-- Returns  the expiry, or 0 when the index is full; one of several attempts at a code still has room
--          beside the others, since at most one of them becomes a lock

local index, expire = KEYS[1], tonumber(ARGV[1])
local keep, entries_max = tonumber(ARGV[3]), tonumber(ARGV[4])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
if expire == 0 then expire = now + ARGV[2] end

-- Whether an entry is of the same code and user as this one: a lock_id is what follows the last NUL.
local function has_beside(member)
  local of = string.match(member, '^.*%z')
  for _, entry in ipairs(redis.call('ZRANGE', index, 0, -1)) do
    if string.sub(entry, 1, #of) == of then return true end
  end
  return false
end

redis.call('ZREMRANGEBYSCORE', index, '-inf', now - keep)
local full = entries_max > 0 and redis.call('ZCARD', index) >= entries_max
if full and not has_beside(ARGV[5]) then return 0 end
for i = 5, #ARGV do redis.call('ZADD', index, expire, ARGV[i]) end
redis.call('PEXPIREAT', index, redis.call('ZRANGE', index, -1, -1, 'WITHSCORES')[2] + keep)
return expire
