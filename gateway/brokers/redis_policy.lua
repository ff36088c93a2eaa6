-- From here on the partition is written under ARGV[1], a generation of the policies. Answers the one that it is in, which
-- is a later one where another node knows of that.

local theirs = held[5] or ''
if theirs ~= '' and tonumber(theirs) >= tonumber(ARGV[1]) then return theirs end
if theirs ~= '' then
  local eras = (held[6] or '') .. theirs .. ':' .. fixed(top) .. ' '
  local _, count = string.gsub(eras, ' ', '')
  if count > 8 then -- nothing that was let go under the first can be told any more
    redis.call('HSET', KEYS[1], 'floor', fixed(math.max(floor, tonumber(string.match(eras, ':(%d+)')))))
    eras = string.gsub(eras, '^%S+ ', '')
  end
  redis.call('HSET', KEYS[1], 'eras', eras)
end
redis.call('HSET', KEYS[1], 'policy', ARGV[1])
return ARGV[1]
