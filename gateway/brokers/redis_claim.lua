-- Have ARGV[3] count as the deployment's policies, in a generation above ARGV[2], where ARGV[1] is still what does.
-- KEYS: meta   ARGV: 1 generation read, or 0  2 least  3 record  4 how many are remembered
-- Answers the new generation, or 0 where another node was faster.

local held = redis.call('HGET', KEYS[1], 'policy') or '0'
if held ~= ARGV[1] then return '0' end
local time = redis.call('TIME')
local generation = string.format('%.0f', math.max(time[1] * 1000000 + time[2], held + 1, ARGV[2] + 1))
redis.call('HSET', KEYS[1], 'policy', generation, 'policy:' .. generation, ARGV[3])

local numbers = {}
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  local number = string.match(field, '^policy:(%d+)$')
  if number then numbers[#numbers + 1] = tonumber(number) end
end
table.sort(numbers)
for index = 1, #numbers - tonumber(ARGV[4]) do
  redis.call('HDEL', KEYS[1], 'policy:' .. string.format('%.0f', numbers[index]))
end
return generation
