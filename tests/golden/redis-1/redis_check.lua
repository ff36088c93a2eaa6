-- Compare with what a node knows of: ARGV holds pairs of an offset and the history it was told in. Where that is gone,
-- floor and top are raised above all of it. Answers {top, history, '1' where something was lost}.

local lost = '0'
for claim = 1, #ARGV, 2 do
  local told, known = tonumber(ARGV[claim]), ARGV[claim + 1]
  local ends
  if known == history then
    ends = top
  else
    for name, at in string.gmatch(takeovers, '(%x+):(%d+)') do
      if name == known then ends = tonumber(at) end
    end
  end
  -- Below the floor another witness was first: whoever stands there is told already.
  if told >= floor and (not ends or told > ends) then
    lost = '1'
    top = math.max(top + 1, told + 1, now)
    floor = top
  end
end
if lost == '1' then redis.call('HSET', KEYS[1], 'floor', fixed(floor), 'top', fixed(top)) end
return {fixed(top), history, lost}
