package attest

import (
	"crypto/sha512"
	"encoding/hex"

	"github.com/ethereum/go-ethereum/crypto"
)

// ReportData are the 64 bytes that a quote binds. Each use has a constructor
// of its own, so that Evidence made for one cannot serve another, and no caller
// can have bytes of its choice quoted. The zero value is [NoReportData].
type ReportData struct{ b [64]byte }

// Bytes returns the 64 bytes.
func (r ReportData) Bytes() [64]byte { return r.b }

// NoReportData is 64 zero bytes: a quote that says where it was made and binds
// nothing (docs/wire.md#report-data).
func NoReportData() ReportData { return ReportData{} }

// BootstrapReportData binds the two public root keys of a KMS: Keccak-256 of
// their hex in a fixed sentence, zero-padded to 64 bytes. caPublic is DER
// SubjectPublicKeyInfo, k256Public a compressed point
// (docs/wire.md#report-data; "genereted" is how it is spelled on the wire).
func BootstrapReportData(caPublic, k256Public []byte) ReportData {
	text := "dstack-kms-genereted-keys-v1:" + hex.EncodeToString(caPublic) + ";" + hex.EncodeToString(k256Public) + ";"
	var r ReportData
	copy(r.b[:], crypto.Keccak256([]byte(text)))
	return r
}

// RATLSReportData binds the public key of a certificate: SHA-512 of
// "ratls-cert:" and the DER SubjectPublicKeyInfo (docs/wire.md#report-data).
func RATLSReportData(subjectPublicKeyInfo []byte) ReportData {
	return ReportData{b: sha512.Sum512(append([]byte("ratls-cert:"), subjectPublicKeyInfo...))}
}
