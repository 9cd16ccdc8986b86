// Package redisdb keeps the audit log and the registry of a KMS in Redis, with
// values that the server cannot read and names that it cannot guess
// (docs/storage.md#redis). [Open] gives a [DB]; package sqldb is its sibling
// for SQL.
//
// A database is one hash, kms:{h}, where h is a hash of the label. Its fields are
//
//	header       key derivation, whose database it is, the wrapped root key
//	head         the head record: where the log ends, the root of the rules
//	blind names  audit rows by sequence number, sequence numbers by event id
//	random ids   the nodes of the tree of rules
//
// Every value but the header is XChaCha20-Poly1305 under a key of the database,
// bound to the label, the key and the field that hold it. Whoever commits
// replaces the head record by comparing it first, in a script that writes it and
// the rows with one command, so that a commit is all or nothing and nobody
// overwrites another.
//
// One command, because Redis 7.0 checks transactions against the permissions of
// its default user when it reads its append-only file: where that user is
// restricted, a restarted server drops all that was written by several commands
// together. A single command it never drops. That is also why the database is
// one hash.
//
// The rules are a B+ tree whose nodes are never changed: a commit writes the
// nodes on the way to what it changes under new random ids and removes the old
// ones. The head record names the root, every node its children. A server can
// therefore neither bring back a rule that was removed nor hide one that is
// there without rolling back the head itself.
package redisdb
