-- The index of stored chunks: sizes, order of use, leases, and who leaves. Keys:
--   kv/KEY          a chunk's stored bytes; arriving/ID: bytes that no index names yet, which expire
--   sizes           hash, key -> bytes; owners: hash, key -> namespace
--   used            sorted set of keys by use, counted in `uses`: no clock is asked
--   bytes           of all; namespace_bytes: hash, namespace -> bytes
--   dropped         set of keys that go when their last lease ends
--   leases          sorted set of HOLDER/KEY by deadline; holder/HOLDER: set of its keys

local function size_of(key)
  return tonumber(redis.call('HGET', at('sizes'), key) or 0)
end

local function flush_uses(keys)
  for _, key in ipairs(keys) do
    redis.call('ZADD', at('used'), 'XX', redis.call('INCR', at('uses')), key)
  end
end

local function count_bytes(namespace, num_bytes)
  redis.call('INCRBY', at('bytes'), num_bytes)
  redis.call('HINCRBY', at('namespace_bytes'), namespace, num_bytes)
end

-- Where Redis lost a part of the index, the others and the bytes themselves tell what is there.
local function take_stock()
  local known, total, shares = {}, 0, {}
  for _, keys in ipairs({
    redis.call('HKEYS', at('sizes')),
    redis.call('HKEYS', at('owners')),
    redis.call('ZRANGE', at('used'), 0, -1),
  }) do
    for _, key in ipairs(keys) do
      known[key] = true
    end
  end
  local last = redis.call('ZREVRANGE', at('used'), 0, 0, 'WITHSCORES')[2] or 0
  if tonumber(redis.call('GET', at('uses')) or 0) < tonumber(last) then
    redis.call('SET', at('uses'), last)
  end
  for key, _ in pairs(known) do
    local num_bytes = redis.call('STRLEN', at('kv/' .. key))
    local carrier = redis.call('SRANDMEMBER', at('carriers/' .. key))
    local owner = redis.call('HGET', at('owners'), key) or carrier and get(carrier, 'namespace')
    if num_bytes == 0 or not owner then
      redis.call('UNLINK', at('kv/' .. key))
      redis.call('HDEL', at('sizes'), key)
      redis.call('HDEL', at('owners'), key)
      redis.call('ZREM', at('used'), key)
    else
      redis.call('HSET', at('sizes'), key, num_bytes)
      redis.call('HSET', at('owners'), key, owner)
      if not redis.call('ZSCORE', at('used'), key) then
        redis.call('ZADD', at('used'), redis.call('INCR', at('uses')), key)
      end
      total = total + num_bytes
      shares[owner] = (shares[owner] or 0) + num_bytes
    end
  end
  redis.call('SET', at('bytes'), total)
  redis.call('DEL', at('namespace_bytes'))
  for namespace, num_bytes in pairs(shares) do
    redis.call('HSET', at('namespace_bytes'), namespace, num_bytes)
  end
end

local function take_stock_if_part_is_lost()
  local number = redis.call('HLEN', at('sizes'))
  local parts = { at('uses'), at('bytes'), at('namespace_bytes') }
  if
    redis.call('HLEN', at('owners')) ~= number
    or redis.call('ZCARD', at('used')) ~= number
    or number > 0 and redis.call('EXISTS', unpack(parts)) < #parts
  then
    take_stock()
  end
end

local function forget(key)
  redis.call('UNLINK', at('kv/' .. key))
  local namespace = redis.call('HGET', at('owners'), key)
  if namespace then
    count_bytes(namespace, -size_of(key))
  end
  redis.call('HDEL', at('sizes'), key)
  redis.call('HDEL', at('owners'), key)
  redis.call('ZREM', at('used'), key)
  redis.call('SREM', at('dropped'), key)
end

-- Ends the leases past their deadline first, and those from before the clock was set back.
local function leased(max_seconds)
  redis.call('ZREMRANGEBYSCORE', at('leases'), '-inf', seconds(now))
  redis.call('ZREMRANGEBYSCORE', at('leases'), '(' .. seconds(now + max_seconds), '+inf')
  local found = {}
  for _, lease in ipairs(redis.call('ZRANGE', at('leases'), 0, -1)) do
    found[string.match(lease, '/(.*)$')] = true
  end
  return found
end

local function to_free(used, incoming, budget)
  local total = used + incoming
  if total <= budget.high * budget.limit then
    return 0, 0
  end
  return total - math.floor(budget.low * budget.limit), math.max(0, total - budget.limit)
end

-- Keys that may leave: those that nobody names any more first, then the least recently used.
local function evictable(stay)
  local first, rest = {}, {}
  for _, key in ipairs(redis.call('ZRANGE', at('used'), 0, -1)) do
    if not stay[key] then
      local dropped = redis.call('SISMEMBER', at('dropped'), key) == 1
      table.insert(dropped and first or rest, key)
    end
  end
  for _, key in ipairs(rest) do
    table.insert(first, key)
  end
  return first
end

-- Adds to `leaving` what frees `wanted`, or all there is if that is `needed`; nil if it is not.
local function choose(candidates, wanted, needed, leaving)
  local freed, number = 0, 0
  for _, key in ipairs(candidates) do
    if freed >= wanted then
      break
    end
    if not leaving[key] then
      leaving[key] = true
      freed = freed + size_of(key)
      number = number + 1
    end
  end
  if freed < needed then
    return nil
  end
  return number, freed
end

local function of_namespace(keys, namespace)
  local found = {}
  for _, key in ipairs(keys) do
    if redis.call('HGET', at('owners'), key) == namespace then
      table.insert(found, key)
    end
  end
  return found
end

local function stay_beside(a)
  local stay = leased(a.max_lease_seconds)
  for key, _ in pairs(pinned_keys()) do
    stay[key] = true
  end
  return stay
end

-- Who leaves for a chunk, and how many of them for the quota and for the budget; nil: no room.
local function room_for(a)
  local leaving, own = {}, size_of(a.key)
  local all = tonumber(redis.call('GET', at('bytes')) or 0) - own
  local share = tonumber(redis.call('HGET', at('namespace_bytes'), a.namespace) or 0) - own
  local for_quota, freed = 0, 0
  local wanted, needed = to_free(all, a.num_bytes, a.budget)
  local wanted_share, needed_share = 0, 0
  if a.quota ~= cjson.null then
    wanted_share, needed_share = to_free(share, a.num_bytes, a.quota)
  end
  if wanted == 0 and wanted_share == 0 then
    return leaving, 0, 0
  end
  local stay = stay_beside(a)
  stay[a.key] = true
  local candidates = evictable(stay)
  if wanted_share > 0 then
    local mine = of_namespace(candidates, a.namespace)
    for_quota, freed = choose(mine, wanted_share, needed_share, leaving)
    if not for_quota then
      return nil
    end
    wanted, needed = to_free(all - freed, a.num_bytes, a.budget)
  end
  local for_budget = choose(candidates, wanted, needed, leaving)
  if not for_budget then
    return nil
  end
  return leaving, for_quota, for_budget
end

local function is_too_large(a)
  local over_quota = a.quota ~= cjson.null and a.num_bytes > a.quota.limit
  return over_quota or a.num_bytes > a.budget.limit
end

-- Take the bytes that arrived into the index, others making room.
function operations.keep(a)
  take_stock_if_part_is_lost()
  flush_uses(a.used)
  local arriving = at('arriving/' .. a.arriving)
  local arrived = redis.call('STRLEN', arriving)
  if arrived ~= a.num_bytes then
    redis.call('UNLINK', arriving)
    return { 'short', arrived }
  end
  local leaving, for_quota, for_budget
  if not is_too_large(a) then
    leaving, for_quota, for_budget = room_for(a)
  end
  if not leaving then
    redis.call('UNLINK', arriving)
    return { 'refused' }
  end
  for key, _ in pairs(leaving) do
    forget(key)
  end
  forget(a.key)
  redis.call('RENAME', arriving, at('kv/' .. a.key))
  redis.call('PERSIST', at('kv/' .. a.key))
  redis.call('HSET', at('sizes'), a.key, a.num_bytes)
  redis.call('HSET', at('owners'), a.key, a.namespace)
  redis.call('ZADD', at('used'), redis.call('INCR', at('uses')), a.key)
  count_bytes(a.namespace, a.num_bytes)
  return { 'kept', for_quota, for_budget }
end

local function end_dropped(max_lease_seconds)
  local unwanted = redis.call('SMEMBERS', at('dropped'))
  if #unwanted == 0 then
    return 0
  end
  local number, stay = 0, leased(max_lease_seconds)
  for _, key in ipairs(unwanted) do
    if not stay[key] then
      forget(key)
      number = number + 1
    end
  end
  return number
end

function operations.drop(a)
  for _, key in ipairs(a.keys) do
    if redis.call('HEXISTS', at('sizes'), key) == 1 then
      redis.call('SADD', at('dropped'), key)
    end
  end
  return { 'ok', end_dropped(a.max_lease_seconds) }
end

function operations.forget(a)
  for _, key in ipairs(a.keys) do
    forget(key)
  end
  return { 'ok' }
end

function operations.lease(a)
  flush_uses(a.used)
  local holder = at('holder/' .. a.holder)
  for _, key in ipairs(a.keys) do
    redis.call('ZADD', at('leases'), seconds(now + a.seconds), a.holder .. '/' .. key)
    redis.call('SADD', holder, key)
  end
  redis.call('EXPIRE', holder, math.ceil(a.max_lease_seconds))
  return { 'ok' }
end

function operations.release(a)
  for _, key in ipairs(redis.call('SMEMBERS', at('holder/' .. a.holder))) do
    redis.call('ZREM', at('leases'), a.holder .. '/' .. key)
  end
  redis.call('DEL', at('holder/' .. a.holder))
  return { 'ok', end_dropped(a.max_lease_seconds) }
end

function operations.totals(a)
  local number = 0
  for _, _ in pairs(leased(a.max_lease_seconds)) do
    number = number + 1
  end
  local num_bytes = tonumber(redis.call('GET', at('bytes')) or 0)
  return { 'ok', redis.call('HLEN', at('sizes')), num_bytes, number }
end

-- Forget what the index names and Redis lost, and what the budget has no room for any more.
function operations.trim(a)
  take_stock_if_part_is_lost()
  local lost = 0
  for _, key in ipairs(redis.call('HKEYS', at('sizes'))) do
    if redis.call('EXISTS', at('kv/' .. key)) == 0 then
      forget(key)
      lost = lost + 1
    end
  end
  local leaving = {}
  local wanted = to_free(tonumber(redis.call('GET', at('bytes')) or 0), 0, a.budget)
  if wanted > 0 then
    choose(evictable(stay_beside(a)), wanted, 0, leaving)
  end
  local surplus = 0
  for key, _ in pairs(leaving) do
    forget(key)
    surplus = surplus + 1
  end
  return { 'ok', lost, surplus, end_dropped(a.max_lease_seconds) }
end

return operations[ARGV[2]](cjson.decode(ARGV[3]))
