"""The Lua scripts: one per method, each a single step on one key by the server's clock.

A record is one string under its key, so that a step is one read and at most one write::

    1 <checksum> <state> <attempt> <token> <lease's end> <expiry> <five lengths>
    <owner><fingerprint><namespace><value><outcome>

Times are microseconds since 1970, and stay texts or whole numbers below 2^53 all the way: Lua's ``tostring`` loses
digits. The checksum is over the key's name, the first line and all sections but the outcome, which carries one of its
own that only its reader looks at. The rules are those of `idempo.stores._transitions`; a script that meets a record it
cannot read changes nothing and answers an error that begins with "IDEMPO".

Redis refuses a write under memory pressure as the first write of a script only. Who holds a key may write on: such
scripts then begin with a write that needs no memory. (The flag ``allow-oom`` says the same from Redis 7.0 on, and is an
error before.)
"""

from __future__ import annotations

import hashlib
from typing import Final

_RECORD: Final = """
local name = KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local function text(number)
    return string.format('%.0f', number)
end

local function sum(line, sections)
    return string.sub(redis.sha1hex(name .. ' ' .. line .. '\\n' .. sections), 1, 16)
end

-- What is there (nil: nothing), the token of what was there last, and why it cannot be read.
local function read()
    local blob = redis.call('GET', name)
    if not blob then
        return nil, 0
    end
    local format, checksum, line, at = string.match(blob, '^(%d+) (%x+) ([^\\n]*)\\n()')
    if not format then
        return nil, 0, 'IDEMPO it was not written by idempo, or is damaged'
    end
    if format ~= '1' then
        return nil, 0, 'IDEMPO it is of format ' .. string.sub(format, 1, 9) .. ', and this idempo reads format 1'
    end
    local state, attempt, token, lease, expiry, lo, lf, ln, lv, lz =
        string.match(line, '^([RCF]) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+)$')
    local small = state and lo + lf + ln + lv
    if not state or #blob ~= at - 1 + small + lz
        or checksum ~= sum(line, string.sub(blob, at, at + small - 1)) then
        return nil, 0, 'IDEMPO it is damaged: its checksum or its length is wrong'
    end
    if now >= tonumber(expiry) then
        return nil, tonumber(token)
    end
    local fingerprint = at + lo
    local names = fingerprint + lf
    return {
        blob = blob, state = state, attempt = attempt, token = token,
        lease = tonumber(lease),
        owner = string.sub(blob, at, fingerprint - 1),
        fingerprint = string.sub(blob, fingerprint, names - 1),
        names = string.sub(blob, names, at + small - 1), ln = ln, lv = lv,
    }, tonumber(token)
end

local function blob(state, attempt, token, lease, expiry, owner, fingerprint, names, ln, lv, outcome)
    local line = string.format('%s %s %s %s %s %d %d %d %d %d', state, attempt, token, text(lease), text(expiry),
        #owner, #fingerprint, ln, lv, #outcome)
    local sections = owner .. fingerprint .. names
    return '1 ' .. sum(line, sections) .. ' ' .. line .. '\\n' .. sections .. outcome
end

local function milliseconds(expiry)
    return text(math.ceil(expiry / 1000))
end

-- By a claim: needs room.
local function take(made, expiry)
    redis.call('SET', name, made, 'PXAT', milliseconds(expiry))
end

-- By who holds the key: needs none.
local function keep(made, expiry)
    local answer = redis.pcall('SET', name, made, 'PXAT', milliseconds(expiry))
    if type(answer) == 'table' and answer.err then
        if not string.find(answer.err, 'OOM', 1, true) then
            return answer
        end
        redis.call('PERSIST', name)
        redis.call('SET', name, made, 'PXAT', milliseconds(expiry))
    end
end

local function tell()
    redis.pcall('PUBLISH', name, '')  -- a user who may not publish has waiters that poll
end
"""

_CLAIM: Final = """
local owner, fingerprint, lease, ttl, over, namespace, value = unpack(ARGV)
local found, last, bad = read()
if bad then
    return redis.error_reply(bad)
end
lease = now + lease
local expiry = lease + ttl
if not found then
    local token = text(math.max(last + 1, now))
    take(blob('R', 1, token, lease, expiry, owner, fingerprint, namespace .. value, #namespace, #value, ''), expiry)
    tell()
    return token
end
local stands = found.fingerprint
if found.state == 'R' and found.owner == owner then
    local made = blob('R', found.attempt, found.token, lease, expiry, owner, stands,
        found.names, found.ln, found.lv, '')
    local failed = keep(made, expiry)
    return failed or {1, text(now), made}
end
local took_over = found.state == 'R' and found.lease <= now
    and (over == '1' or over == '=' .. found.owner)
    and (fingerprint == stands or fingerprint == '' or stands == '')
if not took_over and not (found.state == 'F' and found.owner ~= owner) then
    return {0, text(now), found.blob}
end
local made = blob('R', found.attempt + 1, text(math.max(last + 1, now)), lease, expiry, owner,
    fingerprint == '' and stands or fingerprint, found.names, found.ln, found.lv, '')
take(made, expiry)
tell()
return {took_over and 2 or 1, text(now), made}
"""

_COMPLETE: Final = """
local owner, outcome, ttl = unpack(ARGV)
local found, last, bad = read()
if bad then
    return redis.error_reply(bad)
end
if not found or found.owner ~= owner then
    return 0
end
if found.state ~= 'R' then
    return found.state == 'C' and 1 or 0
end
local expiry = now + ttl
local failed = keep(blob('C', found.attempt, found.token, 0, expiry, owner, found.fingerprint,
    found.names, found.ln, found.lv, outcome), expiry)
if failed then
    return failed
end
tell()
return 1
"""

_RELEASE: Final = """
local owner, ttl, namespace, value = unpack(ARGV)
local found, last, bad = read()
if bad then
    return redis.error_reply(bad)
end
local expiry = now + ttl
if not found then
    -- Attempt 0: nobody has claimed the key. A repetition of this release is told so by it.
    local failed = keep(blob('F', 0, text(math.max(last + 1, now)), 0, expiry, owner, '',
        namespace .. value, #namespace, #value, ''), expiry)
    return failed or 0
end
if found.owner ~= owner then
    return 0
end
if found.state ~= 'R' then
    return found.state == 'F' and tonumber(found.attempt) > 0 and 1 or 0
end
local failed = keep(blob('F', found.attempt, found.token, 0, expiry, owner, found.fingerprint,
    found.names, found.ln, found.lv, ''), expiry)
if failed then
    return failed
end
tell()
return 1
"""

_RENEW: Final = """
local owner, lease, ttl = unpack(ARGV)
local found, last, bad = read()
if bad then
    return redis.error_reply(bad)
end
if not found or found.owner ~= owner or found.state ~= 'R' then
    return 0
end
local failed = keep(blob('R', found.attempt, found.token, now + lease, now + lease + ttl, owner,
    found.fingerprint, found.names, found.ln, found.lv, ''), now + lease + ttl)
if failed then
    return failed
end
if lease == '0' then
    tell()
end
return 1
"""

_GET: Final = """
local found, last, bad = read()
if bad then
    return redis.error_reply(bad)
end
return found and {0, text(now), found.blob}
"""

_DELETE: Final = """
local ok, found, last, bad = pcall(read)
if not ok then
    bad = 'IDEMPO it is not even a string'
end
if bad and ARGV[1] ~= '' then
    return redis.error_reply(bad)
end
if not bad and (not found or (ARGV[1] ~= '' and ARGV[1] ~= '=' .. found.owner)) then
    return 0
end
redis.call('UNLINK', name)
tell()
return 1
"""


class Script:
    """A script and the name by which a server that has it runs it."""

    __slots__ = ("sha", "text")

    def __init__(self, text: str) -> None:
        self.text = text.strip().encode()
        self.sha = hashlib.sha1(self.text, usedforsecurity=False).hexdigest().encode()


CLAIM: Final = Script(_RECORD + _CLAIM)
COMPLETE: Final = Script(_RECORD + _COMPLETE)
RELEASE: Final = Script(_RECORD + _RELEASE)
RENEW: Final = Script(_RECORD + _RENEW)
GET: Final = Script(_RECORD + _GET)
DELETE: Final = Script(_RECORD + _DELETE)
