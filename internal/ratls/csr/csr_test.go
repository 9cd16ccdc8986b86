package csr_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
	"teekms/internal/attest/simtd"
	"teekms/internal/keys"
	"teekms/internal/ratls/csr"
)

// The known requests of version 2: no names but the subject, for a server.
const (
	confirm = "44706c65617365207369676e20636572743a"
	known   = confirm + "0c0102030040746573742e6578616d706c652e636f6d000100"
	zeros64 = "00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
	known2a = known + "00" + "000000" + "0000000000" + zeros64 + "00"
	known2b = known + "01" + "000000" + "0000040900" + "00" + zeros64 + "00"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestKnownRequests(t *testing.T) {
	for _, tt := range []struct {
		name, hex    string
		size         int
		withEvidence bool
		quote        []byte
	}{
		{"empty quote", known2a, 117, false, nil},
		{"quote of one byte", known2b, 118, true, []byte{9}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			raw := unhex(t, tt.hex)
			if len(raw) != tt.size {
				t.Fatalf("%d bytes, want %d", len(raw), tt.size)
			}
			got, err := csr.Parse(csr.Version2, raw)
			if err != nil {
				t.Fatal(err)
			}
			want := &csr.Request{
				PublicKey: []byte{1, 2, 3}, Subject: "test.example.com", ServerAuth: true, WithEvidence: tt.withEvidence,
				Evidence: &attest.Evidence{Quote: tt.quote},
			}
			if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(csr.Request{})); diff != "" {
				t.Errorf("Parse() (-want +got)\n%s", diff)
			}
			n := len(unhex(t, known)) + 1 + 3
			if b, err := want.Marshal2(raw[n:]); err != nil || !bytes.Equal(b, raw) {
				t.Errorf("Marshal2() = %x, %v, want %x", b, err, raw)
			}
		})
	}
}

// full is a request with every field.
func full(t testing.TB, version uint32) (*ecdsa.PrivateKey, *csr.Request) {
	t.Helper()
	td, err := simtd.Open(simtd.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	key, err := keys.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	ev, err := td.Attest(context.Background(), attest.RATLSReportData(public))
	if err != nil {
		t.Fatal(err)
	}
	r := &csr.Request{
		PublicKey: public, Subject: "app.example", Org: "Example", SANs: []string{"app.example", "192.0.2.1"},
		ClientAuth: true, WithEvidence: true, Evidence: ev,
	}
	if version == csr.Version1 {
		ev.VMConfig = "" // it has no place in version 1
		return key, r
	}
	from, to := time.Unix(0, 0).UTC(), time.Unix(253402300799, 0).UTC()
	r.WithAppInfo, r.NotBefore, r.NotAfter = true, &from, &to
	return key, r
}

func marshal(t testing.TB, version uint32, r *csr.Request) []byte {
	t.Helper()
	raw, err := csr.Marshal(version, r)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func sign(t testing.TB, key *ecdsa.PrivateKey, raw []byte) []byte {
	t.Helper()
	digest := sha256.Sum256(raw)
	sig, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

func TestRequestSurvivesTheEncoding(t *testing.T) {
	for _, version := range []uint32{csr.Version1, csr.Version2} {
		key, want := full(t, version)
		raw := marshal(t, version, want)
		got, err := csr.Parse(version, raw)
		if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(csr.Request{})); err != nil || diff != "" {
			t.Errorf("version %d: Parse() = %v, (-want +got)\n%s", version, err, diff)
		}
		public, err := got.VerifySignature(raw, sign(t, key, raw))
		if err != nil || !public.Equal(&key.PublicKey) {
			t.Errorf("version %d: VerifySignature() = %v, %v, want the key", version, public, err)
		}
	}
}

func TestPaddedQuoteOfVersion1IsTrimmed(t *testing.T) {
	_, r := full(t, csr.Version1)
	want := r.Evidence.Quote
	r.Evidence = &attest.Evidence{Quote: append(bytes.Clone(want), make([]byte, 100)...), EventLog: r.Evidence.EventLog}
	got, err := csr.Parse(csr.Version1, marshal(t, csr.Version1, r))
	if err != nil || !bytes.Equal(got.Evidence.Quote, want) {
		t.Errorf("Parse() has a quote of %d bytes, %v, want %d", len(got.Evidence.Quote), err, len(want))
	}
}

func TestVerifySignatureRefuses(t *testing.T) {
	key, r := full(t, csr.Version2)
	raw := marshal(t, csr.Version2, r)
	other, _ := full(t, csr.Version2)
	edit := func(i int) []byte {
		b := bytes.Clone(raw)
		b[i] ^= 1
		return b
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	with := func(public any) []byte {
		der, err := x509.MarshalPKIXPublicKey(public)
		if err != nil {
			t.Fatal(err)
		}
		changed := *r
		changed.PublicKey = der
		return marshal(t, csr.Version2, &changed)
	}
	garbage := *r
	garbage.PublicKey = []byte{1, 2, 3}
	tests := []struct {
		name     string
		raw, sig []byte
		want     error
	}{
		{"signature of another key", raw, sign(t, other, raw), csr.ErrSignature},
		{"signature over other bytes", raw, sign(t, key, raw[1:]), csr.ErrSignature},
		{"no signature", raw, nil, csr.ErrSignature},
		{"byte after the signature", raw, append(sign(t, key, raw), 0), csr.ErrSignature},
		{"request changed", edit(len(raw) - 3), sign(t, key, raw), csr.ErrSignature},
		{"other confirm word, unsigned", edit(1), sign(t, key, raw), csr.ErrSignature},
		{"other confirm word", edit(1), sign(t, key, edit(1)), csr.ErrConfirmWord},
		{"P-384 key", with(&p384.PublicKey), sign(t, p384, with(&p384.PublicKey)), csr.ErrAlgorithm},
		{"RSA key", with(&rsaKey.PublicKey), nil, csr.ErrAlgorithm},
		{"no key", marshal(t, csr.Version2, &garbage), nil, csr.ErrAlgorithm},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, err := csr.Parse(csr.Version2, tt.raw)
			if err != nil {
				t.Fatal(err)
			}
			if key, err := r.VerifySignature(tt.raw, tt.sig); !errors.Is(err, tt.want) || key != nil {
				t.Errorf("VerifySignature() = %v, %v, want %v", key, err, tt.want)
			}
		})
	}
	for want, err := range map[string]error{"Unsupported algorithm": csr.ErrAlgorithm, "Invalid signature": csr.ErrSignature, "Invalid confirm word": csr.ErrConfirmWord} {
		if err.Error() != want {
			t.Errorf("text is %q, want %q", err, want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	const v1 = known + "00" + "0409" + "085b5d"
	long := strings.Repeat("61", csr.MaxNameSize+1)
	key := "0c010203"
	swap := func(s, old, replacement string) string { return strings.Replace(s, old, replacement, 1) }
	tests := []struct {
		name    string
		version uint32
		hex     string
		want    string
	}{
		{"version 0", 0, known2a, "version is 0, want 1 or 2"},
		{"version 3", 3, known2a, "version is 3, want 1 or 2"},
		{"largest version", 1<<32 - 1, known2a, "version is 4294967295, want 1 or 2"},
		{"nothing", 1, "", "confirm word: ends too early"},
		{"byte after version 1", 1, v1 + "00", "1 bytes after the end"},
		{"byte after version 2", 2, known2a + "00", "reading attestation: 1 bytes after the end"},
		{"version 2 read as 1", 1, known2a, "71 bytes after the end"},
		{"version 1 read as 2", 2, v1, "flag 0: is 0x04, want 00 or 01"},
		{"option that is none", 2, swap(known2a, key+"00", key+"02"), "organization: is 0x02, want 00 or 01"},
		{"flag that is none", 2, swap(known2a, "0001000000", "0002000000"), "flag 0: is 0x02, want 00 or 01"},
		{"confirm word too long", 1, "0510" + long, "confirm word: 1025 bytes, want at most 1024"},
		{"key too long", 1, confirm + "0510" + long, "public key of 1025 bytes, want at most 1024"},
		{"organization too long", 1, confirm + key + "01" + "0510" + long, "organization: 1025 bytes, want at most 1024"},
		{"subject too long", 1, confirm + key + "00" + "0510" + long, "subject: 1025 bytes, want at most 1024"},
		{"subject not UTF-8", 1, confirm + key + "00" + "04ff", "subject: not UTF-8"},
		{"name too long", 1, confirm + key + "00" + "0461" + "04" + "0510" + long, "alternative name 0: 1025 bytes, want at most 1024"},
		{"too many names", 1, confirm + key + "00" + "0461" + "0502" + strings.Repeat("00", 129), "alternative names: more than 128"},
		{"more names than bytes", 1, confirm + key + "00" + "0461" + "0c00", "alternative names: ends too early"},
		{"length longer than needed", 1, confirm + "0d00010203", "public key: length not in its shortest form"},
		{"length of four gigabytes", 1, confirm + "03ffffffff", "public key: length larger than any attestation"},
		{"time cut", 2, known + "00" + "00" + "0101", "not before: ends too early"},
		{"time after 9999", 2, known + "00" + "00" + "00" + "01" + "8041f4ff3a000000", "not after: 253402300800 seconds are after the year 9999"},
		{"largest time", 2, known + "00" + "00" + "01ffffffffffffffff", "not before: 18446744073709551615 seconds are after the year 9999"},
		{"no attestation", 2, known + "00" + "000000", "reading attestation: ends too early"},
		{"another platform", 2, known + "00" + "000000" + "0003", "reading attestation: SEV-SNP is not supported, only TDX"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			raw := unhex(t, tt.hex)
			got, err := csr.Parse(tt.version, raw)
			if want := "reading signing request: " + tt.want; err == nil || err.Error() != want {
				t.Errorf("Parse(%s) = %v, %v, want %q", tt.hex, got, err, want)
			}
		})
	}
	if _, err := csr.Parse(csr.Version1, make([]byte, csr.MaxSize+1)); err == nil || !strings.Contains(err.Error(), "1048577 bytes, want at most 1048576") {
		t.Errorf("Parse(too large) = %v, want the bound", err)
	}
	if _, err := csr.Parse(csr.Version1, unhex(t, v1)); err != nil {
		t.Errorf("Parse(version 1) = %v", err)
	}
}

func TestEveryTruncationIsRefused(t *testing.T) {
	for _, version := range []uint32{csr.Version1, csr.Version2} {
		_, r := full(t, version)
		raw := marshal(t, version, r)
		for n := 0; n < len(raw); n += 1 + n/200 { // every byte of the names
			if _, err := csr.Parse(version, raw[:n]); err == nil || !strings.Contains(err.Error(), "ends too early") {
				t.Fatalf("Parse(%d, first %d of %d bytes) = %v, want it to end too early", version, n, len(raw), err)
			}
		}
	}
}

func TestContradictingEvidenceIsRefused(t *testing.T) {
	_, r := full(t, csr.Version2)
	raw := marshal(t, csr.Version2, r)
	b := r.Evidence.Quote[568 : 568+64] // the report data, which stands after the quote once more
	i := bytes.LastIndex(raw, b)
	raw[i] ^= 1
	if _, err := csr.Parse(csr.Version2, raw); err == nil || err.Error() != "reading signing request: attestation: report data is not that of the quote" {
		t.Errorf("Parse() = %v, want its refusal", err)
	}
}

func TestMarshalRefuses(t *testing.T) {
	_, good := full(t, csr.Version2)
	early := time.Unix(-1, 0)
	tests := []struct {
		name    string
		version uint32
		edit    func(*csr.Request)
		want    string
	}{
		{"no Evidence", 2, func(r *csr.Request) { r.Evidence = nil }, "no Evidence"},
		{"Evidence that is none", 2, func(r *csr.Request) { r.Evidence = &attest.Evidence{} }, "making attestation: header of 48 bytes, 0 left"},
		{"version 3", 3, func(*csr.Request) {}, "version is 3, want 1 or 2"},
		{"times in version 1", 1, func(*csr.Request) {}, "version 1 has no app info and no times"},
		{"time before 1970", 2, func(r *csr.Request) { r.NotBefore = &early }, early.String() + " has no place in a request"},
		{"subject not UTF-8", 2, func(r *csr.Request) { r.Subject = "\xff" }, "name of 1 bytes, want UTF-8 of at most 1024"},
		{"name too long", 2, func(r *csr.Request) { r.SANs = []string{strings.Repeat("a", 1025)} }, "name of 1025 bytes, want UTF-8 of at most 1024"},
		{"too many names", 2, func(r *csr.Request) { r.SANs = make([]string, 129) }, "129 alternative names, want at most 128"},
		{"too large", 2, func(r *csr.Request) {
			r.Evidence = &attest.Evidence{Quote: r.Evidence.Quote, VMConfig: strings.Repeat(" ", csr.MaxSize)}
		}, "bytes, want at most 1048576"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := *good
			tt.edit(&r)
			if _, err := csr.Marshal(tt.version, &r); err == nil || !strings.HasPrefix(err.Error(), "writing signing request: ") || !strings.HasSuffix(err.Error(), tt.want) {
				t.Errorf("Marshal() = %v, want %q", err, tt.want)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add(csr.Version2, unhex(f, known2a))
	f.Add(csr.Version2, unhex(f, known2b))
	f.Add(csr.Version1, unhex(f, known+"00"+"0409"+"085b5d"))
	for _, version := range []uint32{csr.Version1, csr.Version2} {
		_, r := full(f, version)
		f.Add(version, marshal(f, version, r))
	}
	f.Fuzz(func(t *testing.T, version uint32, raw []byte) {
		r, err := csr.Parse(version, raw)
		if err != nil {
			return
		}
		if _, err := r.VerifySignature(raw, raw); err == nil {
			t.Fatalf("VerifySignature(%x) accepts the request as its signature", raw)
		}
		b, err := csr.Marshal(version, r)
		if err != nil {
			return // a quote that is none cannot be written in version 2
		}
		again, err := csr.Parse(version, b)
		if err != nil {
			t.Fatalf("Parse(Marshal(%x)) = %v", raw, err)
		}
		same := cmp.Comparer(func(a, b *attest.Evidence) bool {
			la, errA := eventlog.Parse(a.EventLog)
			lb, errB := eventlog.Parse(b.EventLog)
			return bytes.Equal(a.Quote, b.Quote) && a.VMConfig == b.VMConfig && (errA == nil) == (errB == nil) && cmp.Equal(la, lb, cmpopts.EquateEmpty())
		})
		if diff := cmp.Diff(r, again, same, cmpopts.EquateEmpty(), cmpopts.IgnoreUnexported(csr.Request{})); diff != "" {
			t.Fatalf("Parse(Marshal(%x)) (-want +got)\n%s", raw, diff)
		}
	})
}
