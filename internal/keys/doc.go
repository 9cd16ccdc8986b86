// Package keys holds the root keys of a KMS, the keys and signatures derived
// from them, and the certificates they issue. It knows no file, no RPC and no
// TEE.
//
// [NewRoots] makes the two root keys, [ParseRoots] reads them back; the methods
// of [Roots] derive every key an application gets. Derivations, signatures and
// certificates follow an existing wire format byte for byte, so that a KMS that
// takes over the root keys of another gives out the same keys
// (docs/wire.md#derivation).
package keys
