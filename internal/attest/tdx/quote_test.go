package tdx_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"teekms/internal/attest"
	"teekms/internal/attest/simtd"
	"teekms/internal/attest/tdx"
)

func TestPadding(t *testing.T) {
	td := openTD(t, simtdConfig())
	for _, s := range shapes {
		t.Run(s.name, func(t *testing.T) {
			quote := quoteOf(t, td, s.Shape).Quote
			for _, zeros := range []int{0, 1, 70, 3065} {
				q, err := tdx.ParseQuote(append(bytes.Clone(quote), make([]byte, zeros)...))
				if err != nil || !bytes.Equal(q.Raw, quote) {
					t.Errorf("ParseQuote() with %d zeros = %v, want the quote without them", zeros, err)
				}
			}
			padded := append(bytes.Clone(quote), 0, 0, 1, 0)
			if _, err := tdx.ParseQuote(padded); err == nil || !strings.Contains(err.Error(), "other than zero padding") {
				t.Errorf("ParseQuote() with a one in the padding = %v, want a refusal", err)
			}
		})
	}
	if _, err := tdx.ParseQuote(make([]byte, tdx.MaxQuoteSize+1)); err == nil || !strings.Contains(err.Error(), "more than 65536") {
		t.Errorf("ParseQuote() of too much = %v, want a refusal", err)
	}
}

func TestMarshalIsIdentity(t *testing.T) {
	for _, name := range []string{quoteSPR, quoteCOS, quoteV5} {
		raw := recordedQuote(t, name)
		q, err := tdx.ParseQuote(raw)
		if err != nil {
			t.Fatal(err)
		}
		if got := q.AppendTo([]byte("x")); !bytes.Equal(got[1:], q.Raw) || !bytes.HasPrefix(raw, q.Raw) {
			t.Errorf("AppendTo() of %s is not what was parsed", name)
		}
	}
}

// offsets are where the parts of a quote begin.
type offsets struct{ size, signature, key, certType, qeReport, qeSignature, authSize, auth, chainType, chain int }

func offsetsOf(quote []byte) offsets {
	var o offsets
	o.size = 48 + 584
	if binary.LittleEndian.Uint16(quote) == 5 {
		o.size = 48 + 6 + int(binary.LittleEndian.Uint32(quote[50:]))
	}
	o.signature = o.size + 4
	o.key = o.signature + 64
	o.certType = o.key + 64
	o.qeReport = o.certType + 6
	o.qeSignature = o.qeReport + 384
	o.authSize = o.qeSignature + 64
	o.auth = o.authSize + 2
	o.chainType = o.auth + int(binary.LittleEndian.Uint16(quote[o.authSize:]))
	o.chain = o.chainType + 6
	return o
}

// TestLengths has each length and type of a quote say something else.
func TestLengths(t *testing.T) {
	td := openTD(t, simtdConfig())
	for _, s := range shapes {
		quote := quoteOf(t, td, s.Shape).Quote
		o := offsetsOf(quote)
		put16 := func(off int, v uint16) func([]byte) {
			return func(b []byte) { binary.LittleEndian.PutUint16(b[off:], v) }
		}
		put32 := func(off int, v uint32) func([]byte) {
			return func(b []byte) { binary.LittleEndian.PutUint32(b[off:], v) }
		}
		get32 := func(off int) uint32 { return binary.LittleEndian.Uint32(quote[off:]) }
		tests := []struct {
			name   string
			edit   func([]byte)
			reason string
		}{
			{"version 3", put16(0, 3), "version 3"},
			{"P-384 key", put16(2, 3), "attestation key type 3"},
			{"SGX", put32(4, 0), "TEE type 0x0"},
			{"another QE vendor", put16(12, 0), "QE vendor"},
			{"signed data of 0", put32(o.size, 0), "quote signature of 64 bytes, 0 left"},
			{"signed data of 10", put32(o.size, 10), "quote signature of 64 bytes, 10 left"},
			{"signed data of 4 GiB", put32(o.size, 1<<32-1), "signed data of 4294967295 bytes"},
			{"signed data of 2 GiB", put32(o.size, 1<<31), "signed data of 2147483648 bytes"},
			{"signed data one too long", put32(o.size, get32(o.size)+1), "signed data of"},
			{"signed data one too short", put32(o.size, get32(o.size)-1), "certification data of"},
			{"signed data without certification", put32(o.size, 0x86), "certification data"},
			{"certification type 5", put16(o.certType, 5), "certification data type 5"},
			{"certification of 0", put32(o.certType+2, 0), "QE report of 384 bytes, 0 left"},
			{"certification of 4 GiB", put32(o.certType+2, 1<<32-1), "certification data of 4294967295 bytes"},
			{"certification one too long", put32(o.certType+2, get32(o.certType+2)+1), "certification data of"},
			{"certification one too short", put32(o.certType+2, get32(o.certType+2)-1), "PCK chain of"},
			{"QE auth of 65535", put16(o.authSize, 0xffff), "QE authentication data of 65535 bytes"},
			{"QE auth of 0", put16(o.authSize, 0), "inner certification data type"},
			{"chain type 6", put16(o.chainType, 6), "inner certification data type 6"},
			{"chain of 4 GiB", put32(o.chainType+2, 1<<32-1), "PCK chain of 4294967295 bytes"},
			{"chain one too long", put32(o.chainType+2, get32(o.chainType+2)+1), "PCK chain of"},
			{"chain one too short", put32(o.chainType+2, get32(o.chainType+2)-1), "1 bytes after the PCK chain"},
		}
		if s.Version == 5 {
			tests = append(tests, []struct {
				name   string
				edit   func([]byte)
				reason string
			}{
				{"body type 1", put16(48, 1), "body type 1"},
				{"body type 4", put16(48, 4), "body type 4"},
				{"body size 0", put32(50, 0), "has 0 bytes"},
				{"body size of the other type", put32(50, 584+648-get32(50)), "bytes, want"},
				{"body of 4 GiB", put32(50, 1<<32-1), "has 4294967295 bytes"},
			}...)
		}
		for _, tt := range tests {
			t.Run(s.name+"/"+tt.name, func(t *testing.T) {
				b := bytes.Clone(quote)
				tt.edit(b)
				if _, err := tdx.ParseQuote(b); err == nil || !strings.Contains(err.Error(), tt.reason) {
					t.Errorf("ParseQuote() = %v, want %q", err, tt.reason)
				}
			})
		}
	}
}

func TestBytesAfterCertificationData(t *testing.T) {
	quote := append(quoteOf(t, openTD(t, simtdConfig()), simtd.Shape{}).Quote, 0)
	o := offsetsOf(quote)
	binary.LittleEndian.PutUint32(quote[o.size:], binary.LittleEndian.Uint32(quote[o.size:])+1)
	if _, err := tdx.ParseQuote(quote); err == nil || !strings.Contains(err.Error(), "1 bytes after the certification data") {
		t.Errorf("ParseQuote() = %v, want a refusal of the byte", err)
	}
}

func TestEveryTruncation(t *testing.T) {
	td := openTD(t, simtdConfig())
	for _, s := range shapes {
		t.Run(s.name, func(t *testing.T) {
			v := verifierOf(t, td)
			quote := quoteOf(t, td, s.Shape).Quote
			if _, err := v.Verify(t.Context(), &attest.Evidence{Quote: quote}); err != nil {
				t.Fatal(err)
			}
			for n := range quote {
				if _, err := v.Verify(t.Context(), &attest.Evidence{Quote: quote[:n]}); err == nil {
					t.Errorf("Verify() accepts the first %d of %d bytes", n, len(quote))
				} else if n%500 == 0 {
					wantRefusal(t, err, attest.LinkFormat, "left")
				}
			}
		})
	}
}

// TestEveryBit flips each bit of header, body, lengths, signatures, keys and QE
// report of one V4 and one V5 quote, on a verifier that knows the true quote.
// Of the PCK and its issuer every byte has a bit flipped: what is accepted
// there must be another spelling of the same certificates.
func TestEveryBit(t *testing.T) {
	td := openTD(t, simtdConfig())
	for _, s := range []simtd.Shape{{Version: 4}, {Version: 5, BodyType: tdx.BodyTDX15}} {
		t.Run(fmt.Sprintf("V%d", s.Version), func(t *testing.T) {
			t.Parallel()
			v := verifierOf(t, td)
			quote := quoteOf(t, td, s).Quote
			if _, err := v.Verify(t.Context(), &attest.Evidence{Quote: quote}); err != nil {
				t.Fatal(err)
			}
			o := offsetsOf(quote)
			b := bytes.Clone(quote)
			flips := 0
			for i := range o.chain {
				for bit := range 8 {
					b[i] ^= 1 << bit
					if _, err := v.Verify(t.Context(), &attest.Evidence{Quote: b}); err == nil {
						t.Errorf("Verify() accepts bit %d of byte %#x flipped", bit, i)
					}
					b[i] ^= 1 << bit
					flips++
				}
			}
			if want := o.chain * 8; flips != want || want < 8*1200 {
				t.Errorf("%d bits flipped, want %d", flips, want)
			}
			flipChain(t, v, b, o.chain)
		})
	}
}

// flipChain flips one bit in each byte of the first two certificates.
func flipChain(t *testing.T, v *tdx.Verifier, quote []byte, off int) {
	t.Helper()
	truth, err := tdx.ParseChain(quote[off:], 3)
	if err != nil {
		t.Fatal(err)
	}
	end := off + len(pemOf(truth[:2]...))
	for i := off; i < end; i++ {
		quote[i] ^= 1 << (i % 8)
		if _, err := v.Verify(t.Context(), &attest.Evidence{Quote: quote}); err == nil {
			got, err := tdx.ParseChain(quote[off:], 3)
			if err != nil || !got[0].Equal(truth[0]) || !got[1].Equal(truth[1]) {
				t.Errorf("Verify() accepts a bit of byte %d of the chain flipped", i-off)
			}
		}
		quote[i] ^= 1 << (i % 8)
	}
}

// addQuotes seeds a fuzz target with all quotes at hand.
func addQuotes(f *testing.F) {
	f.Helper()
	td := openTD(f, simtdConfig())
	for _, s := range shapes {
		f.Add(quoteOf(f, td, s.Shape).Quote)
	}
	for _, name := range []string{quoteSPR, quoteV5, quoteCOS} {
		f.Add(recordedQuote(f, name))
	}
}

func FuzzParseQuote(f *testing.F) {
	addQuotes(f)
	f.Fuzz(func(t *testing.T, raw []byte) {
		q, err := tdx.ParseQuote(raw)
		if err != nil {
			return
		}
		if !bytes.HasPrefix(raw, q.Raw) || len(bytes.Trim(raw[len(q.Raw):], "\x00")) != 0 {
			t.Fatal("Raw is not the input without zero padding")
		}
		if got := q.AppendTo(nil); !bytes.Equal(got, q.Raw) {
			t.Fatalf("AppendTo() = %x, want %x", got, q.Raw)
		}
	})
}

// FuzzVerify looks for panics, and for quotes that verify though no TD made
// them.
func FuzzVerify(f *testing.F) {
	addQuotes(f)
	td := openTD(f, simtdConfig())
	made := quoteOf(f, td, simtd.Shape{})
	f.Add(made.Quote)
	v := verifierOf(f, td)
	truth, err := tdx.ParseQuote(made.Quote)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := v.Verify(context.Background(), &attest.Evidence{Quote: raw})
		if err == nil && (c.MRTD != truth.MRTD() || c.ReportData != truth.ReportData()) {
			t.Fatalf("Verify(%x) = %+v", raw, c)
		}
	})
}
