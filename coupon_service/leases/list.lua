-- The live locks of an index in the order of their expiry.
--
-- KEYS     1: the index, a zset
-- ARGV     from_ms (the least expiry), offset, count
-- Returns  {member, expire_ms, member, expire_ms, ...}

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local from = math.max(tonumber(ARGV[1]), now + 1)
return redis.call('ZRANGEBYSCORE', KEYS[1], from, '+inf', 'WITHSCORES', 'LIMIT', ARGV[2], ARGV[3])
