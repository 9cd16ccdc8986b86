package tdx_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"testing"

	"golang.org/x/sys/unix"

	"teekms/internal/attest"
	"teekms/internal/attest/simtd"
	"teekms/internal/attest/tdx"
)

// BenchmarkP256Verify is the floor of BenchmarkVerifyWarm: one P-256
// verification over as many bytes as a V4 quote signs. Compare them with
// -cpu 1.
func BenchmarkP256Verify(b *testing.B) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	signed := make([]byte, 48+584)
	digest := sha256.Sum256(signed)
	signature, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		b.Fatal(err)
	}
	defer reportCPU(b)()
	for b.Loop() {
		digest := sha256.Sum256(signed)
		if !ecdsa.VerifyASN1(&key.PublicKey, digest[:], signature) {
			b.Fatal("signature does not verify")
		}
	}
}

// BenchmarkVerifyWarm verifies quotes of a known enclave on a known platform,
// each over other report data, through the collateral cache.
func BenchmarkVerifyWarm(b *testing.B) {
	td, v := benchVerifier(b)
	evidence := make([]*attest.Evidence, 64)
	for i := range evidence {
		q, err := td.Quote([64]byte{byte(i)}, simtd.Shape{})
		if err != nil {
			b.Fatal(err)
		}
		evidence[i] = &attest.Evidence{Quote: q}
	}
	if _, err := v.Verify(b.Context(), evidence[0]); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	defer reportCPU(b)()
	for i := 0; b.Loop(); i++ {
		if _, err := v.Verify(b.Context(), evidence[i%len(evidence)]); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkVerifyWarmEventLog has the event log replayed as well.
func BenchmarkVerifyWarmEventLog(b *testing.B) {
	td, v := benchVerifier(b)
	ev := attestBy(b, td)
	if _, err := v.Verify(b.Context(), ev); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	defer reportCPU(b)()
	for b.Loop() {
		if _, err := v.Verify(b.Context(), ev); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkVerifyCold verifies with a verifier and a collateral cache that know
// nothing: chain, QE report and all collateral, as on the first contact with a
// platform, but for fetching.
func BenchmarkVerifyCold(b *testing.B) {
	td := openTD(b, simtdConfig())
	ev := quoteOf(b, td, simtd.Shape{})
	v, cache := cachedVerifier(b, td)
	b.ReportAllocs()
	defer reportCPU(b)()
	for b.Loop() {
		v.Forget()
		cache.Forget()
		if _, err := v.Verify(b.Context(), ev); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkParseQuote reads a quote without verifying anything.
func BenchmarkParseQuote(b *testing.B) {
	quote := quoteOf(b, openTD(b, simtdConfig()), simtd.Shape{}).Quote
	b.ReportAllocs()
	defer reportCPU(b)()
	for b.Loop() {
		if _, err := tdx.ParseQuote(quote); err != nil {
			b.Fatal(err)
		}
	}
}

func benchVerifier(b *testing.B) (*simtd.TD, *tdx.Verifier) {
	b.Helper()
	td := openTD(b, simtdConfig())
	v, _ := cachedVerifier(b, td)
	return td, v
}

func cachedVerifier(b *testing.B, td *simtd.TD) (*tdx.Verifier, *tdx.CachedSource) {
	b.Helper()
	source, err := tdx.NewCachedSource(tdx.CachedConfig{Source: td, TrustAnchor: td.Root(), Now: (&clock{simTime}).Now})
	if err != nil {
		b.Fatal(err)
	}
	return newVerifier(b, tdx.Config{TrustAnchor: td.Root(), Collateral: source, Now: (&clock{simTime}).Now}), source
}

// reportCPU adds the processor time of the process per operation, which other
// load on the machine does not change as it does the time on the clock.
func reportCPU(b *testing.B) (report func()) {
	b.Helper()
	start := cpuTime(b)
	return func() { b.ReportMetric(float64(cpuTime(b)-start)/float64(b.N), "cpu-ns/op") }
}

func cpuTime(b *testing.B) int64 {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}
