// Package redisdb keeps the audit log and the registry of a KMS in Redis, with
// values that the server cannot read and names that it cannot guess
// (docs/storage.md#redis). [Open] gives a [DB]; package sqldb is its sibling
// for SQL.
//
// A database is four keys of one cluster hash tag, where h is a hash of the
// label:
//
//	kms:{h}:hdr    the header: key derivation, whose database, wrapped root key
//	kms:{h}:head   the head record: where the log ends, the root of the rules
//	kms:{h}:rows   a hash: audit rows by blind sequence number, and sequence
//	               numbers by blind event id
//	kms:{h}:rules  a hash: the nodes of the tree of rules, by random id
//
// Every value but the header is XChaCha20-Poly1305 under a key of the database,
// bound to the label, the key and the field that hold it. Whoever commits
// replaces the head record by comparing it first, in one script with all that it
// leads to, so that a commit is all or nothing and nobody overwrites another.
//
// The rules are a B+ tree whose nodes are never changed: a commit writes the
// nodes on the way to what it changes under new random ids and removes the old
// ones. The head record names the root, every node its children. A server can
// therefore neither bring back a rule that was removed nor hide one that is
// there without rolling back the head itself.
package redisdb
