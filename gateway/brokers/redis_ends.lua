-- The first members of an index of ends, with the store's time.
-- KEYS: ends   ARGV: how many

local time = redis.call('TIME')
return {
  string.format('%.0f', time[1] * 1000000 + time[2]), redis.call('ZRANGE', KEYS[1], 0, ARGV[1] - 1, 'WITHSCORES')
}
