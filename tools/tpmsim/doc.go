// Package tpmsim has only tests: they run teekms/internal/keys/seal/tpm against
// the reference implementation of the TPM 2.0 specification, compiled into the
// test. It is a module of its own because it is C, and the products are not.
package tpmsim
