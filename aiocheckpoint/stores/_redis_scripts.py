"""What the Redis server does in one step, in Lua.

Keys of ours, below a prefix: `/keys` a sorted set of keys, `/head/KEY` and `/blobs/KEY` hashes,
`/chunk/ID/N` strings. A blob's field in `/blobs/KEY` is `ID NUMBER SIZES`: of its chunks.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple


class Script(NamedTuple):
    text: str
    sha: str


def _script(text: str) -> Script:
    text = _COMMON + text
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


# KEYS[1] is what the script is about, ARGV[1] the prefix, ARGV[2] the time to live in ms, 0 for
# ever. An error that the server answers is a value here, so that it fails nothing else.
_COMMON = """
local prefix, ttl = ARGV[1], tonumber(ARGV[2])
local function failed(reply)
  return type(reply) == 'table' and reply.err
end
local function chunks(meta, command, ...)
  local id, number = string.match(meta, '^(%x+) (%d+)')
  for n = 0, tonumber(number) - 1 do
    redis.pcall(command, prefix .. '/chunk/' .. id .. '/' .. n, ...)
  end
end
local function keep(key)
  if ttl > 0 then return redis.pcall('PEXPIRE', key, ttl) end
  return redis.pcall('PERSIST', key)
end
local function keep_chunks(meta)
  if ttl > 0 then chunks(meta, 'PEXPIRE', ttl) else chunks(meta, 'PERSIST') end
end
local function keep_all(key)
  local blobs = prefix .. '/blobs/' .. key
  if keep(blobs) == 1 then
    local metas = redis.pcall('HVALS', blobs)
    if not failed(metas) then
      for _, meta in ipairs(metas) do keep_chunks(meta) end
    end
  end
  keep(prefix .. '/head/' .. key)
end
"""

COMMIT = _script("""
-- KEYS: the index. ARGV[3]: a nonce; then, of each item, key, version expected or '', record.
-- Answers each: 1 done, 0 conflict, or an error's text. The version is the nonce and the position.
local index, created = KEYS[1], 0
local function commit(key, expect, version, record)
  local head = prefix .. '/head/' .. key
  local found = redis.pcall('HGET', head, 'version')
  if failed(found) then return found.err end
  if (found or '') ~= expect then return 0 end
  if not found then
    local added = redis.pcall('ZADD', index, 0, key)
    if failed(added) then return added.err end
    created = created + 1
  end
  local done = redis.pcall('HSET', head, 'version', version, 'record', record)
  if failed(done) then return done.err end
  keep_all(key)
  return 1
end
local answers = {}
for at = 4, #ARGV, 3 do
  local n = #answers + 1
  answers[n] = commit(ARGV[at], ARGV[at + 1], ARGV[3] .. '.' .. n, ARGV[at + 2])
end
if ttl > 0 and created > 0 then
  -- two looks for each key that comes: of those that have expired no more stay than there are live
  local some = redis.pcall('ZRANDMEMBER', index, 2 * created)
  if not failed(some) then
    for _, key in ipairs(some) do
      if redis.pcall('EXISTS', prefix .. '/head/' .. key) == 0 then
        redis.pcall('ZREM', index, key)
      end
    end
  end
end
return answers
""")

DELETE = _script("""
-- KEYS: the index. ARGV: key, version expected. Answers whether it was there.
local head = prefix .. '/head/' .. ARGV[3]
if redis.call('HGET', head, 'version') ~= ARGV[4] then return 0 end
redis.call('UNLINK', head)
redis.call('ZREM', KEYS[1], ARGV[3])
return 1
""")

PAGE = _script("""
-- KEYS: the index. ARGV: from, to, how many. Answers the last key that it looked at, if any, then
-- those that have a head. The others have expired.
local keys = redis.call('ZRANGEBYLEX', KEYS[1], ARGV[3], ARGV[4], 'LIMIT', 0, ARGV[5])
local answer = {keys[#keys]}
for _, key in ipairs(keys) do
  if redis.call('EXISTS', prefix .. '/head/' .. key) == 1 then
    answer[#answer + 1] = key
  else
    redis.pcall('ZREM', KEYS[1], key)
  end
end
return answer
""")

PUT_BLOB = _script("""
-- KEYS: the key's blobs. ARGV: key, name, meta, and the bytes unless its chunks lie there already.
-- Answers 1, 0 if a chunk is not there any more, or an error's text.
local blobs, name, meta, data = KEYS[1], ARGV[4], ARGV[5], ARGV[6]
local old = redis.pcall('HGET', blobs, name)
local error = failed(old)
if data and not error then
  local id = string.match(meta, '^%x+')
  error = failed(redis.pcall('SET', prefix .. '/chunk/' .. id .. '/0', data))
end
local id, number = string.match(meta, '^(%x+) (%d+)')
for n = 0, tonumber(number) - 1 do
  if not error and redis.pcall('EXISTS', prefix .. '/chunk/' .. id .. '/' .. n) == 0 then
    error = 0
  end
end
if not error then
  error = failed(redis.pcall('HSET', blobs, name, meta))
end
if error then
  chunks(meta, 'UNLINK')
  return error
end
keep_chunks(meta)
if old then chunks(old, 'UNLINK') end
keep_all(ARGV[3])
return 1
""")

OPEN_BLOB = _script("""
-- KEYS: the key's blobs. ARGV: key, name. Answers the meta, if there is such a blob.
local meta = redis.call('HGET', KEYS[1], ARGV[4])
if meta and ttl > 0 then keep_all(ARGV[3]) end
return meta
""")

DELETE_BLOBS = _script("""
-- KEYS: the key's blobs. ARGV: names.
for n = 3, #ARGV do
  local meta = redis.call('HGET', KEYS[1], ARGV[n])
  if meta then
    redis.call('HDEL', KEYS[1], ARGV[n])
    chunks(meta, 'UNLINK')
  end
end
return 1
""")
