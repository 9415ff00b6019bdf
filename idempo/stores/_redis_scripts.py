"""The Lua scripts: one per method, each a single step on one key by the server's clock.

A record is one string under its key, so that a step is one read and at most one write. Its parts, in the words of the
library *struct* that every server carries (big-endian)::

    c2 "i1"  c40 checksum  c1 state  I4 attempt  d token  d lease's end  d expiry
    I4 I4 I4 I4 I4 the lengths of  owner  fingerprint  namespace  value  outcome, which follow

Times are whole microseconds since 1970, and stay below 2^53: as doubles they lose nothing, and as texts they never
appear but by ``string.format``, for ``tostring`` loses digits. The checksum, SHA-1 in hexadecimal, is over the key's
name and all that follows it but the outcome, which carries one of its own that only its reader looks at.

The rules are those of `idempo.stores._transitions`. A script that meets a record it cannot read changes nothing and
answers an error that begins with "IDEMPO".

Redis refuses a write under memory pressure as the first write of a script only. Who holds a key may write on: such
scripts then begin with a write that needs no memory. (The flag ``allow-oom`` says the same from Redis 7.0 on, and is an
error before.)
"""

from __future__ import annotations

import hashlib
from typing import Final

_READ: Final = """
local name = KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

-- Returns whether it can be read (if not, why not), then: nothing if there is nothing, or what there is.
local function read()
    local blob = redis.call('GET', name)
    if not blob then
        return true
    end
    local ok, format, sum, state, attempt, token, lease, expiry, lo, lf, ln, lv, lz, at =
        pcall(struct.unpack, '>c2c40c1I4dddI4I4I4I4I4', blob)
    if string.sub(blob, 1, 2) ~= 'i1' then
        if string.find(blob, '^i%d') then
            return false, 'IDEMPO it is of format ' .. string.sub(blob, 2, 2) .. ', and this idempo reads format 1'
        end
        return false, 'IDEMPO it was not written by idempo'
    end
    local last = ok and at - 1 + lo + lf + ln + lv
    if not ok or #blob ~= last + lz or redis.sha1hex(name .. string.sub(blob, 43, last)) ~= sum then
        return false, 'IDEMPO it is damaged: its checksum or its length is wrong'
    end
    return true, blob, state, attempt, token, lease, expiry, string.sub(blob, at, at - 1 + lo),
        string.sub(blob, at + lo, at - 1 + lo + lf), string.sub(blob, at + lo + lf, last), ln, lv
end
"""

_LOOK: Final = """
local ok, blob, state, attempt, token, lease_end, expiry, holder, stands, names, ln, lv = read()
if not ok then
    return redis.error_reply(blob)
end
if blob and now >= expiry then
    blob = nil
end
"""

_MAKE: Final = """
local function record(state, attempt, token, lease_end, expiry, owner, fingerprint, names, ln, lv, outcome)
    local rest = struct.pack('>c1I4dddI4I4I4I4I4', state, attempt, token, lease_end, expiry,
        #owner, #fingerprint, ln, lv, #outcome) .. owner .. fingerprint .. names
    return 'i1' .. redis.sha1hex(name .. rest) .. rest .. outcome
end

-- Times of expiry are kept in milliseconds by the server, and exactly in the record.
local function milliseconds(expiry)
    return string.format('%.0f', math.ceil(expiry / 1000))
end
"""

_TAKE: Final = """
local function take(made, expiry)
    redis.call('SET', name, made, 'PXAT', milliseconds(expiry))
end
"""

_KEEP: Final = """
local function keep(made, expiry)
    local answer = redis.pcall('SET', name, made, 'PXAT', milliseconds(expiry))
    if answer.err then
        if not string.find(answer.err, 'OOM', 1, true) then
            return answer
        end
        redis.call('PERSIST', name)
        redis.call('SET', name, made, 'PXAT', milliseconds(expiry))
    end
end
"""

# A user who may not publish has waiters that poll.
_TELL: Final = "redis.pcall('PUBLISH', name, '')"

_CLAIM: Final = f"""
local owner, fingerprint, lease, ttl, over, namespace, value = unpack(ARGV)
if blob and state == 'C' then
    return {{0, time[1], time[2], blob}}
end
{_MAKE}{_TAKE}
lease = now + lease
expiry = lease + ttl
if not blob then
    token = math.max((token or 0) + 1, now)
    take(record('R', 1, token, lease, expiry, owner, fingerprint, namespace .. value, #namespace, #value, ''), expiry)
    {_TELL}
    return string.format('%.0f', token)
end
if state == 'R' and holder == owner then
    {_KEEP}
    local made = record('R', attempt, token, lease, expiry, owner, stands, names, ln, lv, '')
    return keep(made, expiry) or {{1, time[1], time[2], made}}
end
local took_over = state == 'R' and lease_end <= now
    and (over == '1' or over == '=' .. holder)
    and (fingerprint == stands or fingerprint == '' or stands == '')
if not took_over and not (state == 'F' and holder ~= owner) then
    return {{0, time[1], time[2], blob}}
end
local made = record('R', attempt + 1, math.max(token + 1, now), lease, expiry, owner,
    fingerprint == '' and stands or fingerprint, names, ln, lv, '')
take(made, expiry)
{_TELL}
return {{took_over and 2 or 1, time[1], time[2], made}}
"""

_COMPLETE: Final = f"""
if not blob or holder ~= ARGV[1] then
    return 0
end
if state ~= 'R' then
    return state == 'C' and 1 or 0
end
{_MAKE}{_KEEP}
expiry = now + ARGV[3]
local failed = keep(record('C', attempt, token, 0, expiry, holder, stands, names, ln, lv, ARGV[2]), expiry)
if failed then
    return failed
end
{_TELL}
return 1
"""

_RELEASE: Final = f"""
local owner, ttl, namespace, value = unpack(ARGV)
{_MAKE}{_KEEP}
expiry = now + ttl
if not blob then
    -- Attempt 0: nobody has claimed the key. A repetition of this release is told so by it.
    token = math.max((token or 0) + 1, now)
    return keep(record('F', 0, token, 0, expiry, owner, '', namespace .. value, #namespace, #value, ''), expiry) or 0
end
if holder ~= owner then
    return 0
end
if state ~= 'R' then
    return state == 'F' and attempt > 0 and 1 or 0
end
local failed = keep(record('F', attempt, token, 0, expiry, owner, stands, names, ln, lv, ''), expiry)
if failed then
    return failed
end
{_TELL}
return 1
"""

_RENEW: Final = f"""
local owner, lease, ttl = unpack(ARGV)
if not blob or holder ~= owner or state ~= 'R' then
    return 0
end
{_MAKE}{_KEEP}
lease_end = now + lease
expiry = lease_end + ttl
local failed = keep(record('R', attempt, token, lease_end, expiry, owner, stands, names, ln, lv, ''), expiry)
if failed then
    return failed
end
if lease == '0' then
    {_TELL}
end
return 1
"""

_GET: Final = "return blob and {0, time[1], time[2], blob}"

_DELETE: Final = f"""
if ARGV[1] == '' then
    local can, ok = pcall(read)
    if not can or not ok then  -- it is somebody's who has looked at it
        redis.call('UNLINK', name)
        {_TELL}
        return 1
    end
end
{_LOOK}
if not blob or (ARGV[1] ~= '' and ARGV[1] ~= '=' .. holder) then
    return 0
end
redis.call('UNLINK', name)
{_TELL}
return 1
"""


class Script:
    """A script, and how it is run.

    Args:
        text: The script.
        is_rare: Whether it is sent whole each time. Else it is named by its digest, and sent whole when the server does
            not know it, which takes a second round trip.

    Attributes:
        text: The script.
        first: The command, and what it runs.
    """

    __slots__ = ("first", "text")

    def __init__(self, text: str, *, is_rare: bool = False) -> None:
        self.text = text.strip().encode()
        digest = hashlib.sha1(self.text, usedforsecurity=False).hexdigest().encode()
        self.first = ("EVAL", self.text) if is_rare else ("EVALSHA", digest)


CLAIM: Final = Script(_READ + _LOOK + _CLAIM)
COMPLETE: Final = Script(_READ + _LOOK + _COMPLETE)
# After a claim that was never answered the release is all that keeps the key from being stuck: one try must do.
RELEASE: Final = Script(_READ + _LOOK + _RELEASE, is_rare=True)
RENEW: Final = Script(_READ + _LOOK + _RENEW)
GET: Final = Script(_READ + _LOOK + _GET)
DELETE: Final = Script(_READ + _DELETE, is_rare=True)
