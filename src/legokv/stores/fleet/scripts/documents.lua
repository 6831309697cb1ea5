-- Registered documents. Each operation is one atomic step, all of it or nothing. A Redis that evicts
-- may lose any key: one of a document's costs that document, one of an index is made anew from the
-- others. Keys:
--   number          the number given last: order of registration, never used again
--   numbers         hash, NAMESPACE/ID -> number
--   namespaces      set of those that have documents
--   order/NAMESPACE sorted set of its numbers
--   document/N      hash of all that a document is but its text/N; its head's token ids as hex
--   tokens/N        list of its chunks' token ids; keys/N: hash, position -> key once compiled
--   carriers/KEY    set of the numbers of the documents with that chunk
--   pinned          set of numbers
--   deleted         a channel that says NAMESPACE/ID of each document deleted

local function find(a)
  return redis.call('HGET', at('numbers'), a.namespace .. '/' .. a.id)
end

local function set(number, field, value)
  redis.call('HSET', at('document/' .. number), field, value)
end

local function unset(number, ...)
  redis.call('HDEL', at('document/' .. number), ...)
end

local LOST = 'lost: Redis dropped a part of this document; create it again'

local function is_lost(number)
  local parts = { at('document/' .. number), at('text/' .. number), at('tokens/' .. number) }
  return redis.call('EXISTS', unpack(parts)) < #parts
end

-- What the index of ids says of a document whose own record is lost.
local function remembered(number)
  local all = redis.call('HGETALL', at('numbers'))
  for index = 1, #all, 2 do
    if all[index + 1] == number and all[index] ~= MARK then
      local namespace, id = string.match(all[index], '^([^/]*)/(.*)$')
      local none = { 'num_bytes', '0', 'num_tokens', '0', 'num_chunks', '0', 'pinned', '0' }
      return { 'namespace', namespace, 'id', id, 'created_at', '0', unpack(none) }
    end
  end
end

-- A document whose keys are lost is compiled again: its KV may still be there.
local function begin_anew_without_keys(number)
  if get(number, 'state') == 'ready' and redis.call('EXISTS', at('keys/' .. number)) == 0 then
    set(number, 'state', 'registered')
  end
end

local function shown(number)
  local lost = is_lost(number)
  if not lost then
    begin_anew_without_keys(number)
  end
  local fields = redis.call('HGETALL', at('document/' .. number))
  if #fields == 0 then
    fields = remembered(number)
  end
  if not fields then
    return nil
  end
  if lost then
    for _, value in ipairs({ 'state', 'failed', 'failure', LOST }) do
      table.insert(fields, value)
    end
  end
  return { number, redis.call('HLEN', at('keys/' .. number)), unpack(fields) }
end

local function set_pinned(number, pinned)
  set(number, 'pinned', pinned and 1 or 0)
  redis.call(pinned and 'SADD' or 'SREM', at('pinned'), number)
end

local function set_ttl(number, ttl)
  set(number, 'expires_at', seconds(now + ttl))
  set(number, 'ttl_seconds', seconds(ttl))
end

-- An expiry that today's clock would not have set so far off is from before it was set back.
local function begin_ttl_anew_if_set_ahead(number)
  local ttl, expires_at = tonumber(get(number, 'ttl_seconds')), get(number, 'expires_at')
  -- What is stored is rounded to a microsecond.
  if ttl and tonumber(expires_at) > now + ttl + 0.001 then
    set_ttl(number, ttl)
  end
end

local function change(number, changes)
  if changes.name == cjson.null then
    unset(number, 'name')
  elseif changes.name ~= nil then
    set(number, 'name', changes.name)
  end
  if changes.ttl_seconds == cjson.null then
    unset(number, 'expires_at', 'ttl_seconds')
  elseif changes.ttl_seconds ~= nil then
    set_ttl(number, changes.ttl_seconds)
  end
  if changes.pinned ~= nil then
    set_pinned(number, changes.pinned)
  end
end

-- Why a document of so many tokens may not be pinned now: {'pins', tokens of others}; or nothing.
local function pin_refusal(number, num_tokens, a)
  if not a.changes.pinned then
    return nil
  end
  local others = 0
  for _, other in ipairs(pinned_documents()) do
    if other ~= number then
      others = others + tonumber(get(other, 'num_tokens') or 0)
    end
  end
  if others + num_tokens > a.max_pinned_tokens then
    return { 'pins', others, num_tokens }
  end
end

-- Why a new document may not join its namespace: {'quota', documents, tokens, bytes of others}; or
-- nothing.
local function quota_refusal(a)
  if a.quota == cjson.null then
    return nil
  end
  local documents, tokens, text_bytes = 0, 0, 0
  for _, number in ipairs(redis.call('ZRANGE', at('order/' .. a.namespace), 0, -1)) do
    local sizes = redis.call('HMGET', at('document/' .. number), 'num_tokens', 'num_bytes')
    documents = documents + 1
    tokens = tokens + tonumber(sizes[1] or 0)
    text_bytes = text_bytes + tonumber(sizes[2] or 0)
  end
  local all_tokens, all_bytes = tokens + a.num_tokens, text_bytes + a.num_bytes
  local taken = all_tokens * a.quota.token_bytes + all_bytes
  if taken + (documents + 1) * a.quota.document_bytes > a.quota.max_bytes then
    return { 'quota', documents, tokens, text_bytes }
  end
end

local function let_go(number)
  local gone, seen = {}, {}
  for _, key in ipairs(redis.call('HVALS', at('keys/' .. number))) do
    local carriers = at('carriers/' .. key)
    redis.call('SREM', carriers, number)
    if redis.call('EXISTS', carriers) == 0 and not seen[key] then
      seen[key] = true
      table.insert(gone, key)
      -- In the same step: whatever happens to the caller now, the KV goes with the document.
      if redis.call('HEXISTS', at('sizes'), key) == 1 then
        redis.call('SADD', at('dropped'), key)
      end
    end
  end
  return gone
end

-- Forget all of a document; the keys of its chunks that no other carries.
local function remove(a, number)
  local gone = let_go(number)
  for _, kind in ipairs({ 'document/', 'text/', 'tokens/', 'keys/' }) do
    redis.call('DEL', at(kind .. number))
  end
  redis.call('SREM', at('pinned'), number)
  redis.call('HDEL', at('numbers'), a.namespace .. '/' .. a.id)
  redis.call('ZREM', at('order/' .. a.namespace), number)
  if redis.call('EXISTS', at('order/' .. a.namespace)) == 0 then
    redis.call('SREM', at('namespaces'), a.namespace)
  end
  redis.call('PUBLISH', at('deleted'), a.namespace .. '/' .. a.id)
  return gone
end

local function insert(a)
  local number = tostring(redis.call('INCR', at('number')))
  redis.call('HSET', at('numbers'), a.namespace .. '/' .. a.id, number)
  redis.call('SADD', at('namespaces'), a.namespace)
  redis.call('ZADD', at('order/' .. a.namespace), number, number)
  redis.call('SET', at('text/' .. number), a.text)
  local document = at('document/' .. number)
  redis.call('HSET', document, 'namespace', a.namespace, 'id', a.id, 'state', 'registered')
  redis.call('HSET', document, 'num_bytes', a.num_bytes, 'num_tokens', a.num_tokens)
  redis.call('HSET', document, 'num_chunks', #ARGV - 3, 'created_at', seconds(now), 'pinned', 0)
  redis.call('HSET', document, 'head', a.head)
  for position = 4, #ARGV do
    redis.call('RPUSH', at('tokens/' .. number), ARGV[position])
  end
  return number
end

local function renew(number)
  if is_expired(number) then
    unset(number, 'expires_at', 'ttl_seconds')
    set_pinned(number, false)
  end
  if get(number, 'state') == 'failed' then
    set(number, 'state', 'registered')
    unset(number, 'failure')
  end
end

function operations.register(a)
  local number = find(a)
  if number and is_lost(number) then
    remove(a, number)
    number = nil
  end
  local created = not number
  local num_tokens = created and a.num_tokens or tonumber(get(number, 'num_tokens'))
  local refused = created and quota_refusal(a) or pin_refusal(number, num_tokens, a)
  if refused then
    return refused
  end
  if created then
    number = insert(a)
  else
    renew(number)
    begin_ttl_anew_if_set_ahead(number)
  end
  change(number, a.changes)
  return { 'ok', created and 1 or 0, shown(number) }
end

function operations.get(a)
  local number = find(a)
  return number and { 'ok', shown(number) } or { 'missing' }
end

function operations.text(a)
  local number = find(a)
  local text = number and redis.call('GET', at('text/' .. number))
  return text and { 'ok', text } or { number and 'lost' or 'missing' }
end

-- `found` with the head, then the token ids and the key of each chunk behind it.
local function with_chunks(found, number)
  table.insert(found, get(number, 'head') or '')
  for index, blob in ipairs(redis.call('LRANGE', at('tokens/' .. number), 0, -1)) do
    table.insert(found, blob)
    table.insert(found, redis.call('HGET', at('keys/' .. number), index - 1))
  end
  return found
end

function operations.chunks(a)
  local number = find(a)
  local found = number and with_chunks({ 'ok' }, number)
  return found and #found > 2 and found or { number and 'lost' or 'missing' }
end

function operations.page(a)
  local found, last = {}, a.after
  if a.id then
    last = find(a)
    if not last then
      return { 'missing' }
    end
  end
  if a.newest_first and last == 0 then
    last = '+inf'
  end
  local order = at('order/' .. a.namespace)
  while #found <= a.limit do
    local numbers
    if a.newest_first then
      numbers = redis.call('ZREVRANGEBYSCORE', order, '(' .. last, '-inf', 'LIMIT', 0, a.limit + 1)
    else
      numbers = redis.call('ZRANGEBYSCORE', order, '(' .. last, '+inf', 'LIMIT', 0, a.limit + 1)
    end
    if #numbers == 0 then
      break
    end
    for _, number in ipairs(numbers) do
      last = number
      local one = #found <= a.limit and shown(number)
      if one == nil then
        redis.call('ZREM', order, number)  -- nothing of it is left, not even its id
      elseif one and (a.name == cjson.null or get(number, 'name') == a.name) then
        table.insert(found, one)
      end
    end
  end
  return { 'ok', found }
end

function operations.update(a)
  local number = find(a)
  if not number then
    return { 'missing' }
  end
  if is_lost(number) then
    return { 'lost' }
  end
  local refused = pin_refusal(number, tonumber(get(number, 'num_tokens')), a)
  if refused then
    return refused
  end
  begin_ttl_anew_if_set_ahead(number)
  change(number, a.changes)
  return { 'ok', shown(number) }
end

function operations.touch(a)
  for _, id in ipairs(a.ids) do
    local number = find({ namespace = a.namespace, id = id })
    if number and not is_lost(number) then
      set(number, 'last_used_at', seconds(now))
    end
  end
  return { 'ok' }
end

function operations.delete(a)
  local number = find(a)
  return number and { 'ok', remove(a, number) } or { 'missing' }
end

function operations.sweep()
  for _, number in ipairs(redis.call('SMEMBERS', at('pinned'))) do
    if number ~= MARK and redis.call('EXISTS', at('document/' .. number)) == 0 then
      redis.call('SREM', at('pinned'), number)
    elseif number ~= MARK then
      begin_ttl_anew_if_set_ahead(number)
      if is_expired(number) then
        set_pinned(number, false)
      end
    end
  end
  return { 'ok' }
end

function operations.pinned_keys()
  local found = { 'ok' }
  for key, _ in pairs(pinned_keys()) do
    table.insert(found, key)
  end
  return found
end

-- The namespace of each key that some document carries, else ''.
function operations.named(a)
  local found = { 'ok' }
  for _, key in ipairs(a.keys) do
    local number = redis.call('SRANDMEMBER', at('carriers/' .. key))
    table.insert(found, number and get(number, 'namespace') or '')
  end
  return found
end

local function holds(a)
  return get(a.number, 'claim') == a.holder
end

function operations.take_claim(a)
  local number = find(a)
  if not number then
    return { 'missing' }
  end
  if is_lost(number) then
    return { 'taken' }
  end
  begin_anew_without_keys(number)
  local state = get(number, 'state')
  if state == 'compiling' then
    local deadline = tonumber(get(number, 'claim_deadline') or 0)
    -- A deadline further off than a claim lasts was written before the clock was set back.
    if now < deadline and deadline <= now + a.seconds then
      return { 'taken' }
    end
  elseif state ~= 'registered' then
    return { 'taken' }
  end
  set(number, 'state', 'compiling')
  set(number, 'claim', a.holder)
  set(number, 'claim_deadline', seconds(now + a.seconds))
  return with_chunks({ 'ok', number }, number)
end

local function note_chunk(number, position, key)
  redis.call('HSET', at('keys/' .. number), position, key)
  redis.call('SADD', at('carriers/' .. key), number)
  -- Deleted with an earlier document of the same content, and named again before it went.
  redis.call('SREM', at('dropped'), key)
end

function operations.record_chunk(a)
  if not holds(a) then
    return { 'lost' }
  end
  note_chunk(a.number, a.position, a.key)
  set(a.number, 'claim_deadline', seconds(now + a.seconds))
  return { 'ok' }
end

function operations.renew_claim(a)
  if not holds(a) then
    return { 'lost' }
  end
  set(a.number, 'claim_deadline', seconds(now + a.seconds))
  return { 'ok' }
end

function operations.finish_claim(a)
  if not holds(a) then
    return { 'lost' }
  end
  if a.last ~= cjson.null then
    note_chunk(a.number, a.last.position, a.last.key)
  end
  unset(a.number, 'claim', 'claim_deadline', 'failure')
  set(a.number, 'state', a.state)
  if a.failure ~= cjson.null then
    set(a.number, 'failure', a.failure)
  end
  return { 'ok', shown(a.number) }
end

function operations.namespaces()
  local found = { 'ok' }
  for _, namespace in ipairs(redis.call('SMEMBERS', at('namespaces'))) do
    if namespace ~= MARK then
      table.insert(found, namespace)
    end
  end
  return found
end

local function index(place, number)
  local namespace, id = string.match(place, '^([^/]*)/(.*)$')
  redis.call('HSETNX', at('numbers'), place, number)
  redis.call('SADD', at('namespaces'), namespace)
  redis.call('ZADD', at('order/' .. namespace), number, number)
  if tonumber(number) > tonumber(redis.call('GET', at('number')) or 0) then
    redis.call('SET', at('number'), number)
  end
end

-- Put documents that Redis has into the indexes.
function operations.adopt(a)
  for _, number in ipairs(a.numbers) do
    local namespace, id = get(number, 'namespace'), get(number, 'id')
    if namespace and id then
      local known = redis.call('HGET', at('numbers'), namespace .. '/' .. id)
      if not known or known == number then
        index(namespace .. '/' .. id, number)
        if get(number, 'pinned') == '1' then
          redis.call('SADD', at('pinned'), number)
        end
        for _, key in ipairs(redis.call('HVALS', at('keys/' .. number))) do
          redis.call('SADD', at('carriers/' .. key), number)
        end
      end
    end
  end
  return { 'ok' }
end

-- All documents were adopted: what is known of lost ones is indexed too, and the indexes are whole.
function operations.mended()
  local all = redis.call('HGETALL', at('numbers'))
  for place = 1, #all, 2 do
    if all[place] ~= MARK then
      index(all[place], all[place + 1])
    end
  end
  for _, namespace in ipairs(redis.call('SMEMBERS', at('namespaces'))) do
    if redis.call('EXISTS', at('order/' .. namespace)) == 0 then
      redis.call('SREM', at('namespaces'), namespace)
    end
  end
  redis.call('SETNX', at('number'), 0)
  redis.call('HSET', at('numbers'), MARK, 0)
  redis.call('SADD', at('namespaces'), MARK)
  redis.call('SADD', at('pinned'), MARK)
  return { 'ok' }
end

local function is_index_lost(a)
  local marked = redis.call('HEXISTS', at('numbers'), MARK) == 1
    and redis.call('SISMEMBER', at('namespaces'), MARK) == 1
    and redis.call('SISMEMBER', at('pinned'), MARK) == 1
    and redis.call('EXISTS', at('number')) == 1
  return not marked
    or a.namespace
      and a.namespace ~= MARK
      and redis.call('SISMEMBER', at('namespaces'), a.namespace) == 1
      and redis.call('EXISTS', at('order/' .. a.namespace)) == 0
end

local mending = { adopt = true, mended = true }
local operation, arguments = ARGV[2], cjson.decode(ARGV[3])
if not mending[operation] and is_index_lost(arguments) then
  return { 'unmended' }
end
return operations[operation](arguments)
