-- One publish, atomically: dedupe, compare versions, assign the offset, append, trim, update the key table, announce.
-- KEYS: partition, log [, id] [, key table, ends]
-- ARGV: 1 channel  2 subject  3 body  4 retention in microseconds  5 size  6 'latest' or 'catch_up'  7 the history this
-- node acknowledged in, or ''  8 digest of an id, or ''  9 window in ms, or 0 where no new id is taken  10 key, or ''
-- 11 version, or ''  12 '1' for a deletion  13 life of the key in ms  14 most keys, or '0'  15 PUBLISH or SPUBLISH  16 the
-- offset that an expiry ends  17 generation of the policies  18 'generation:retention ...' of earlier ones that the
-- channel's log goes on from  19 bytes of the log  20 most deletions  21 traceparent, or ''
-- Answers {'ok', offset, history, '1' where there are too many deletions}, {'duplicate', offset, digest, history},
-- {'history'}, {'policy'}, {'ids'}, {'stale', offset, version}, {'keys', n}

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
if held[5] ~= ARGV[17] then return {'policy'} end
if id and ARGV[9] == '0' then return {'ids'} end

local function newer(version, than)
  local ours, theirs = string.gmatch(version, '%d+'), string.gmatch(than, '%d+')
  while true do
    local a, b = ours(), theirs()
    if not a then return false end
    if not b then return true end
    if tonumber(a) ~= tonumber(b) then return tonumber(a) > tonumber(b) end
  end
end

local crowded, tabled = '0', true
if keys then
  -- A value: "offset expires deleted version body", the key "#" counts the live ones, up to "" they are forgotten.
  local values = redis.call('HMGET', keys, ':' .. ARGV[10], '#', '')
  local value, count = values[1], tonumber(values[2] or '0')
  tabled = values[3]
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
  if becomes > alive and ARGV[14] ~= '0' and count >= tonumber(ARGV[14]) then return {'keys', count} end
  if becomes ~= alive then redis.call('HINCRBY', keys, '#', becomes - alive) end
  if becomes == 0 and redis.call('HLEN', keys) - count - 2 > 2 * tonumber(ARGV[20]) then crowded = '1' end
end

local before, retention = top, tonumber(ARGV[4])
top = math.max(top + 1, now)
local offset = fixed(top)
redis.call('HSET', KEYS[1], 'top', offset)

-- The edge: the offset after which nothing that matters is missing from log and key table.
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
local prev, empty = last and last[2][4], nil
if held[6] or not last or not tabled then
  -- What is gone by age, and up to where nothing is shown: earlier policies count for what was written under them.
  local gone, changed = now - retention, 0
  for generation, ends in string.gmatch(held[6] or '', '(%d+):(%d+)') do
    local earlier = string.match(ARGV[18], generation .. ':(%d+)')
    if earlier then gone = math.max(gone, math.min(tonumber(ends), now - tonumber(earlier)))
    else changed = math.max(changed, tonumber(ends)) end
  end
  empty = fixed(math.max(floor, changed, math.min(before, gone)))
  if not last then prev = empty
  elseif tonumber(prev) < changed then prev = fixed(changed) end
end
local edge = offset
if keys and ARGV[6] == 'latest' then edge = prev end
local size = #ARGV[3]
local sum = (last and tonumber(last[2][8]) or 0) + size -- of all bodies since the log began
redis.call('XADD', KEYS[2], 'MAXLEN', ARGV[5], offset .. '-0', 'prev', prev, 'edge', edge, 'm', ARGV[3], 'n', sum)
if top % 16 < 1 then redis.call('XTRIM', KEYS[2], 'MINID', fixed(math.max(0, now - retention))) end
local bytes = tonumber(ARGV[19])
if sum > bytes and math.floor(sum * 16 / bytes) > math.floor((sum - size) * 16 / bytes) then
  -- Looked at each time that a sixteenth of the bound has come; an entry without a sum is of an earlier release.
  local start, found = '-', nil
  while not found do
    for _, entry in ipairs(redis.call('XRANGE', KEYS[2], start, '+', 'COUNT', 4)) do
      local at = tonumber(entry[2][8])
      if at and at <= sum and at > sum - bytes then found = entry[1] break end
      start = '(' .. entry[1]
    end
  end
  redis.call('XTRIM', KEYS[2], 'MINID', found)
end
-- Longer than the retention, so that a clock which jumps back, or was behind, lets nothing go too early.
redis.call('PEXPIRE', KEYS[2], fixed(math.max(retention / 1000, (top - now + retention) / 1000) + 60000))

if keys then
  local life = tonumber(ARGV[13])
  local expires = fixed(now + life * 1000)
  local value = offset .. ' ' .. expires .. ' ' .. ARGV[12] .. ' ' .. ARGV[11] .. ' ' .. ARGV[3]
  if tabled then redis.call('HSET', keys, ':' .. ARGV[10], value)
  else redis.call('HSET', keys, ':' .. ARGV[10], value, '', empty) end
  redis.call('ZADD', KEYS[named + 2], expires, ARGV[1] .. '\0' .. ARGV[10])
  if redis.call('PTTL', keys) < life then redis.call('PEXPIRE', keys, fixed(life + 86400000)) end
end
if id then redis.call('SET', id, offset .. ' ' .. ARGV[8], 'PX', ARGV[9]) end
local form, body = '1 ', ARGV[3]
if ARGV[21] ~= '' then form, body = '2 ', ARGV[21] .. ' ' .. body end
redis.call(ARGV[15], ARGV[2], form .. fixed(before) .. ' ' .. offset .. ' ' .. history .. ' ' .. ARGV[1] .. ' ' .. body)
return {'ok', offset, history, crowded}
