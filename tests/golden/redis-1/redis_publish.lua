-- One publish, atomically: dedupe, compare versions, assign the offset, append, trim, update the key table, announce.
-- KEYS: partition, log [, id] [, key table]
-- ARGV: 1 channel  2 subject  3 body  4 retention in microseconds  5 size  6 'latest' or 'catch_up'  7 the history this
-- node acknowledged in, or ''  8 digest of an id, or ''  9 window in ms  10 key, or ''  11 version, or ''  12 '1' for a
-- deletion  13 life of the key in ms  14 most keys, or '0'  15 PUBLISH or SPUBLISH  16 the offset that an expiry ends
-- Answers {'ok', offset, history}, {'duplicate', offset, digest, history}, {'history'}, {'stale', offset, version}, {'keys', n}

local named = 2
local id, keys
if ARGV[8] ~= '' then named = named + 1; id = KEYS[named] end
if ARGV[10] ~= '' then keys = KEYS[named + 1] end

if id then
  local known = redis.call('GET', id)
  if known then
    local offset, digest = string.match(known, '^(%d+) (.*)$')
    return {'duplicate', offset, digest, history}
  end
end
if ARGV[7] ~= '' and ARGV[7] ~= history then return {'history'} end

local function newer(version, than)
  local ours, theirs = string.gmatch(version, '%d+'), string.gmatch(than, '%d+')
  while true do
    local a, b = ours(), theirs()
    if not a then return false end
    if not b then return true end
    if tonumber(a) ~= tonumber(b) then return tonumber(a) > tonumber(b) end
  end
end

if keys then
  -- A value: "offset expires deleted version body", the key "#" counts the live ones, "" is the last one forgotten.
  local value = redis.call('HGET', keys, ':' .. ARGV[10])
  local alive = 0
  if value then
    local offset, deleted, version = string.match(value, '^(%d+) %d+ (%d) (%S*) ')
    if ARGV[16] ~= '' and offset ~= ARGV[16] then return {'stale', offset, version} end
    if ARGV[16] == '' and ARGV[11] ~= '' and version ~= '' and not newer(ARGV[11], version) then
      return {'stale', offset, version}
    end
    if deleted == '0' then alive = 1 end
  elseif ARGV[16] ~= '' then
    return {'stale', '0', ''}
  end
  local becomes = ARGV[12] == '1' and 0 or 1
  if becomes > alive and ARGV[14] ~= '0' then
    local count = tonumber(redis.call('HGET', keys, '#') or '0')
    if count >= tonumber(ARGV[14]) then return {'keys', count} end
  end
  if becomes ~= alive then redis.call('HINCRBY', keys, '#', becomes - alive) end
end

local before = top
top = math.max(top + 1, now)
local offset = fixed(top)
redis.call('HSET', KEYS[1], 'top', offset)

-- The edge: the offset after which nothing that matters is missing from log and key table.
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
local prev = last and last[2][4] or fixed(math.max(floor, math.min(before, now - tonumber(ARGV[4]))))
local edge = offset
if keys and ARGV[6] == 'latest' then edge = prev end
redis.call('XADD', KEYS[2], 'MAXLEN', ARGV[5], offset .. '-0', 'prev', prev, 'edge', edge, 'm', ARGV[3])
if top % 16 < 1 then redis.call('XTRIM', KEYS[2], 'MINID', fixed(now - tonumber(ARGV[4]))) end
-- Longer than the retention, so that a clock which jumps back, or was behind, lets nothing go too early.
redis.call('PEXPIRE', KEYS[2], fixed(math.max(tonumber(ARGV[4]) / 1000, (top - now + tonumber(ARGV[4])) / 1000) + 60000))

if keys then
  local expires = fixed(now + tonumber(ARGV[13]) * 1000)
  redis.call('HSET', keys, ':' .. ARGV[10], offset .. ' ' .. expires .. ' ' .. ARGV[12] .. ' ' .. ARGV[11] .. ' ' .. ARGV[3])
  local left = redis.call('PTTL', keys)
  if left < tonumber(ARGV[13]) then redis.call('PEXPIRE', keys, fixed(tonumber(ARGV[13]) + 86400000)) end
end
if id then redis.call('SET', id, offset .. ' ' .. ARGV[8], 'PX', ARGV[9]) end
redis.call(ARGV[15], ARGV[2], '1 ' .. fixed(before) .. ' ' .. offset .. ' ' .. history .. ' ' .. ARGV[1] .. ' ' .. ARGV[3])
return {'ok', offset, history}
