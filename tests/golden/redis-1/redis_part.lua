-- What both scripts begin with: the store's time, the history it writes, and the partition.
-- A partition is a hash: floor, top (offsets), history, takeovers ("history:top history:top ..." of the last 8).
-- Offsets are microseconds below 2^53, which a double holds exactly.

local function fixed(number) return string.format('%.0f', number) end

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

-- The replication id is another one after every restart and every promotion. It is asked for inside the script: a
-- connection can outlive a change of role.
local history = string.sub(string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)'), 1, 16)

local held = redis.call('HMGET', KEYS[1], 'floor', 'top', 'history', 'takeovers')
local floor, top, takeovers = tonumber(held[1]), tonumber(held[2]), held[4] or ''
if not top then
  floor, top = now, now
  redis.call('HSET', KEYS[1], 'floor', fixed(floor), 'top', fixed(top), 'history', history, 'takeovers', '')
elseif held[3] ~= history then
  takeovers = takeovers .. held[3] .. ':' .. fixed(top) .. ' '
  local _, count = string.gsub(takeovers, ' ', '')
  if count > 8 then takeovers = string.gsub(takeovers, '^%S+ ', '') end
  redis.call('HSET', KEYS[1], 'history', history, 'takeovers', takeovers)
end
