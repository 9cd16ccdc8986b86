// Package keystore keeps the key directory of a KMS: all of its files or none,
// whatever happens in between.
//
// [Open] recovers an interrupted write, says whether the directory is empty or
// complete, and makes again what can be made again. [NewBundle] and
// [Store.Commit] fill an empty directory; [Store.RenewRPC] replaces the RPC
// certificate. The root keys are written once and never overwritten. The
// directory of another dstack KMS is taken over as it is. Formats, states and
// the commit protocol are in docs/keydir.md.
package keystore
