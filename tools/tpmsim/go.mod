module teekms/tools/tpmsim

go 1.26.0

replace (
	teekms => ../..
	teekms/gen => ../../gen
)

require (
	filippo.io/age v1.3.2
	github.com/google/go-tpm v0.9.8
	github.com/google/go-tpm-tools v0.4.7
	teekms v0.0.0-00010101000000-000000000000
)

require (
	filippo.io/edwards25519 v1.2.0 // indirect
	filippo.io/hpke v0.4.0 // indirect
	github.com/ethereum/go-ethereum v1.16.7 // indirect
	github.com/holiman/uint256 v1.3.2 // indirect
	golang.org/x/crypto v0.58.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
	golang.org/x/term v0.47.0 // indirect
)
