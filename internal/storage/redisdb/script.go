package redisdb

import "github.com/redis/go-redis/v9"

// What the scripts answer. Each of them writes with one command or not at all
// (see the package's comment).
const (
	createDone      = 0
	createExists    = 1
	commitDone      = 0
	commitConflict  = 1
	commitDuplicate = 2
)

// createScript makes a database where there is none.
//
// KEYS: the database. ARGV: header and head.
func createScript() *redis.Script {
	return redis.NewScript(`
if redis.call('HEXISTS', KEYS[1], 'header') == 1 then return 1 end
if redis.call('EXISTS', KEYS[1]) == 1 then return 2 end
redis.call('HSET', KEYS[1], 'header', ARGV[1], 'head', ARGV[2])
return 0`)
}

// commitScript writes fields, the head among them, if the head is still the one
// they were built on and none of their events is recorded.
//
// KEYS: the database. ARGV: the beginning of the expected head; the number of
// names of events; these; then names and values. There is no room for more than
// some 7900 of these.
func commitScript() *redis.Script {
	return redis.NewScript(`
local head = redis.call('HGET', KEYS[1], 'head')
if not head or string.sub(head, 1, #ARGV[1]) ~= ARGV[1] then return 1 end
local events = tonumber(ARGV[2])
for i = 3, 2 + events do
  if redis.call('HEXISTS', KEYS[1], ARGV[i]) == 1 then return 2 end
end
redis.call('HSET', KEYS[1], unpack(ARGV, 3 + events))
return 0`)
}

// clearScript puts another database in the place of one, if the head is still the
// expected one.
//
// KEYS: the database, the other. ARGV: the beginning of the expected head.
func clearScript() *redis.Script {
	return redis.NewScript(`
local head = redis.call('HGET', KEYS[1], 'head')
if not head or string.sub(head, 1, #ARGV[1]) ~= ARGV[1] then return 1 end
redis.call('RENAME', KEYS[2], KEYS[1])
return 0`)
}
