-- Compare with what a node knows of: ARGV holds an offset, the history it was told in, and how many microseconds ago at
-- least it was last told anything there, for each such history. Where that is gone, floor and top are raised above all of
-- it. Answers {top, history, '1' where something was lost}.

-- When that was done last, by this server's clock; 0 where it was another's.
local function raised()
  local by, at = string.match(redis.call('HGET', KEYS[1], 'raised') or history .. ' ' .. fixed(floor), '(%x+) (%d+)')
  return by == history and tonumber(at) or 0
end

local lost, above = '0', top
for claim = 1, #ARGV, 3 do
  local told, known, age = tonumber(ARGV[claim]), ARGV[claim + 1], tonumber(ARGV[claim + 2])
  local ends
  if known == history then
    ends = top
  else
    for name, at in string.gmatch(takeovers, '(%x+):(%d+)') do
      if name == known then ends = tonumber(at) end
    end
  end
  -- Below the floor another witness was first: whoever stands there is told already. But a server that was replaced may
  -- have lived on, and what it acknowledged since is yet to be told.
  if (not ends or told > ends) and (told >= floor or now - age >= raised()) then
    lost = '1'
    above = math.max(above, told)
  end
end
if lost == '1' then
  top = math.max(above + 1, now)
  redis.call('HSET', KEYS[1], 'floor', fixed(top), 'top', fixed(top), 'raised', history .. ' ' .. fixed(now))
end
return {fixed(top), history, lost}
