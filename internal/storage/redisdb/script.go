package redisdb

import "github.com/redis/go-redis/v9"

// What the scripts answer.
const (
	createDone      = 0
	createExists    = 1
	createLeftovers = 2

	commitDone      = 0
	commitConflict  = 1
	commitDuplicate = 2
)

// createScript makes a database where there is none of its keys.
//
// KEYS: header, head, rows, rules. ARGV: the values of the first two.
func createScript() *redis.Script {
	return redis.NewScript(`
if redis.call('EXISTS', KEYS[1]) == 1 then return 1 end
if redis.call('EXISTS', KEYS[2], KEYS[3], KEYS[4]) > 0 then return 2 end
redis.call('SET', KEYS[1], ARGV[1])
redis.call('SET', KEYS[2], ARGV[2])
return 0`)
}

// commitScript writes a commit, if the head is still the one it was built on and
// none of its events is recorded. The head is written after all that it leads
// to, and what nothing leads to any more is removed after that: should a command
// fail where none can, the old head is whole.
//
// KEYS: head, rows, rules. ARGV: the beginning of the expected head; the new head;
// 1 to clear; the numbers of event names, row pairs, node pairs and removed nodes;
// then these, a pair being name and value.
func commitScript() *redis.Script {
	return redis.NewScript(`
local head = redis.call('GET', KEYS[1])
if not head or string.sub(head, 1, #ARGV[1]) ~= ARGV[1] then return 1 end
local events, rows, nodes, removed = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local at = 8
for i = 1, events do
  if redis.call('HEXISTS', KEYS[2], ARGV[at]) == 1 then return 2 end
  at = at + 1
end
if ARGV[3] == '1' then redis.call('UNLINK', KEYS[2], KEYS[3]) end
for i = 1, rows do
  redis.call('HSET', KEYS[2], ARGV[at], ARGV[at + 1])
  at = at + 2
end
for i = 1, nodes do
  redis.call('HSET', KEYS[3], ARGV[at], ARGV[at + 1])
  at = at + 2
end
redis.call('SET', KEYS[1], ARGV[2])
for i = 1, removed do
  redis.call('HDEL', KEYS[3], ARGV[at])
  at = at + 1
end
return 0`)
}
