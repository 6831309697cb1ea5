-- What every script begins with: names, the time, and which chunks pinned documents carry.
-- KEYS[1] is the model's prefix; its {tag} puts all its keys into one slot of a cluster.
-- ARGV: Unix seconds or '' for the server's own clock, the operation, its arguments in JSON, blobs.

local prefix = KEYS[1]

-- A member of each index that is never empty otherwise: without it, Redis lost the index.
local MARK = ''

local function at(name)
  return prefix .. name
end

local function clock()
  if ARGV[1] ~= '' then
    return tonumber(ARGV[1])
  end
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1e6
end

local now = clock()

-- Lua's own form of a number has 14 digits; Unix microseconds have 16.
local function seconds(value)
  return string.format('%.6f', value)
end

local function get(number, field)
  return redis.call('HGET', at('document/' .. number), field)
end

local function is_expired(number)
  local expires_at = get(number, 'expires_at')
  return expires_at and tonumber(expires_at) <= now
end

local function pinned_documents()
  local found = {}
  for _, number in ipairs(redis.call('SMEMBERS', at('pinned'))) do
    if number ~= MARK and not is_expired(number) then
      table.insert(found, number)
    end
  end
  return found
end

local function pinned_keys()
  local found = {}
  for _, number in ipairs(pinned_documents()) do
    for _, key in ipairs(redis.call('HVALS', at('keys/' .. number))) do
      found[key] = true
    end
  end
  return found
end

local operations = {}
