// Package tdx verifies Intel TDX Evidence: it parses V4 and V5 quotes, builds
// the chain of certificates to one trust anchor, checks collateral and
// revocation, finds the TCB status and replays the event log
// (docs/evidence.md).
//
// Make a [Verifier] with [NewVerifier], over a [CachedSource] for anything
// that verifies more than once. [Verifier.Verify] gives Claims or the first
// link that fails, [Verifier.Trace] tells every link.
package tdx
