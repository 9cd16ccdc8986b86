// Package kmstest makes the public files of a KMS for the tests of kmsctl: keys
// made in a software trust domain, their record, and their certificates.
package kmstest

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"teekms/internal/attest"
	"teekms/internal/attest/simtd"
	"teekms/internal/keys"
)

// Domain is the name of the KMS.
const Domain = "kms.example.com"

// KMS is what a bootstrap leaves behind, and the trust domain it ran in.
type KMS struct {
	// TD is the software trust domain; TDDir is its directory, Dir the key
	// directory, with its three public files and nothing else.
	TD         *simtd.TD
	TDDir, Dir string
	// Roots are the root keys, CA their certificate.
	Roots *keys.Roots
	CA    *x509.Certificate
	// RPC is the RPC certificate in DER, RPCKey its key.
	RPC    []byte
	RPCKey *ecdsa.PrivateKey
	// Evidence is over both root keys.
	Evidence *attest.Evidence
}

// New makes a KMS in a software trust domain of the given form.
func New(t testing.TB, cfg simtd.Config) *KMS {
	t.Helper()
	k := &KMS{TDDir: t.TempDir(), Dir: t.TempDir()}
	cfg.Dir = k.TDDir
	var err error
	k.TD, err = simtd.Open(cfg)
	check(t, err)
	k.Roots, err = keys.NewRoots()
	check(t, err)
	k.Evidence, err = k.TD.Attest(t.Context(), attest.BootstrapReportData(k.Roots.CAPublic(), k.Roots.K256Public()))
	check(t, err)
	ca, err := keys.NewRootCA(k.Roots, time.Now())
	check(t, err)
	k.CA, err = x509.ParseCertificate(ca)
	check(t, err)
	k.RPCKey, err = keys.NewKey()
	check(t, err)
	k.RPC, err = keys.IssueRPC(keys.RPCRequest{Roots: k.Roots, CA: k.CA, Public: &k.RPCKey.PublicKey, Domain: Domain, Now: time.Now()})
	check(t, err)
	k.Write(t, "bootstrap-info.json", k.Record(t, hex.EncodeToString))
	k.Write(t, "root-ca.crt", keys.CertificatePEM(ca))
	k.Write(t, "rpc.crt", keys.CertificatePEM(k.RPC))
	return k
}

// Record is the JSON of the record, its bytes written by encode.
func (k *KMS) Record(t testing.TB, encode func([]byte) string) []byte {
	t.Helper()
	return JSON(t, map[string]string{
		"ca_pubkey": encode(k.Roots.CAPublic()), "k256_pubkey": encode(k.Roots.K256Public()),
		"quote": encode(k.Evidence.Quote), "eventlog": encode(k.Evidence.EventLog),
	})
}

// Rewrite writes the record anew after edit has changed it; its bytes are in
// hex.
func (k *KMS) Rewrite(t testing.TB, edit func(map[string]string)) {
	t.Helper()
	var fields map[string]string
	check(t, json.Unmarshal(k.Record(t, hex.EncodeToString), &fields))
	edit(fields)
	k.Write(t, "bootstrap-info.json", JSON(t, fields))
}

// Write writes a file of the key directory and returns its path.
func (k *KMS) Write(t testing.TB, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(k.Dir, name)
	check(t, os.WriteFile(path, data, 0o644))
	return path
}

// JSON encodes v.
func JSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	check(t, err)
	return b
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
