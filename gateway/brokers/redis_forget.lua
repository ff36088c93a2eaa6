-- Let go of deletions: those of these keys whose time is over, and the oldest where a table has too many.
-- KEYS: key table, ends   ARGV: 1 channel  2 most deletions  3... keys
-- Answers how many deletions are left.

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local forgotten = tonumber(redis.call('HGET', KEYS[1], '') or '0')

local function forget(key, offset)
  forgotten = math.max(forgotten, tonumber(offset))
  redis.call('HSET', KEYS[1], '', string.format('%.0f', forgotten))
  redis.call('HDEL', KEYS[1], ':' .. key)
  redis.call('ZREM', KEYS[2], ARGV[1] .. '\0' .. key)
end

for number = 3, #ARGV do
  local key = ARGV[number]
  local value = redis.call('HGET', KEYS[1], ':' .. key)
  if not value then
    redis.call('ZREM', KEYS[2], ARGV[1] .. '\0' .. key)
  else
    local offset, expires, deleted = string.match(value, '^(%d+) (%d+) (%d) ')
    if deleted == '1' and tonumber(expires) <= now then forget(key, offset)
    else redis.call('ZADD', KEYS[2], expires, ARGV[1] .. '\0' .. key) end
  end
end

local left = redis.call('HLEN', KEYS[1]) - tonumber(redis.call('HGET', KEYS[1], '#') or '0') - 2
if left > tonumber(ARGV[2]) then
  local deletions, values = {}, redis.call('HGETALL', KEYS[1])
  for index = 1, #values, 2 do
    if string.sub(values[index], 1, 1) == ':' then
      local offset, deleted = string.match(values[index + 1], '^(%d+) %d+ (%d) ')
      if deleted == '1' then deletions[#deletions + 1] = {tonumber(offset), string.sub(values[index], 2)} end
    end
  end
  table.sort(deletions, function(one, other) return one[1] < other[1] end)
  left = #deletions
  for index = 1, #deletions - tonumber(ARGV[2]) do
    forget(deletions[index][2], deletions[index][1])
    left = left - 1
  end
end
return left
