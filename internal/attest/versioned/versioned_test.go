package versioned_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
	"teekms/internal/attest/simtd"
	"teekms/internal/attest/versioned"
)

func evidence(t testing.TB) *attest.Evidence {
	t.Helper()
	td, err := simtd.Open(simtd.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	ev, err := td.Attest(context.Background(), attest.RATLSReportData([]byte("key")))
	if err != nil {
		t.Fatal(err)
	}
	return ev
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// These are the attestations inside the known signing requests of
// docs/wire.md#csr, and one laid out by hand with every field.
func TestKnownAttestations(t *testing.T) {
	zeros := strings.Repeat("00", 64)
	tests := []struct {
		name, hex string
		want      *versioned.Attestation
	}{
		{"empty quote", "00 00 00 00 00" + zeros + "00", &versioned.Attestation{}},
		{"quote of one byte", "00 00 0409 00 00" + zeros + "00", &versioned.Attestation{Quote: []byte{9}}},
		{
			"every field",
			"00 00 0c010203" +
				"08" + // two events
				"00000000 0b000080 c0" + strings.Repeat("aa", 48) + "08" + "6162" + "04ff" +
				"03000000 01000008 00" + "0465" + "08cccd" +
				"04" + // one runtime event
				"0465" + "08cccd" +
				strings.Repeat("07", 64) + "087b7d",
			&versioned.Attestation{
				Quote: []byte{1, 2, 3},
				Events: eventlog.Log{
					{IMR: 0, Type: 0x8000000b, Digest: bytes.Repeat([]byte{0xaa}, 48), Name: "ab", Payload: []byte{0xff}},
					{IMR: 3, Type: 0x08000001, Name: "e", Payload: []byte{0xcc, 0xcd}},
				},
				RuntimeEvents: []versioned.RuntimeEvent{{Name: "e", Payload: []byte{0xcc, 0xcd}}},
				ReportData:    [64]byte(bytes.Repeat([]byte{7}, 64)),
				Config:        "{}",
			},
		},
	}
	empty := cmp.Comparer(func(a, b []byte) bool { return bytes.Equal(a, b) })
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := unhex(t, tt.hex)
			got, err := versioned.Parse(want)
			if err != nil {
				t.Fatalf("Parse() = %v", err)
			}
			if len(got.Events) == 0 {
				got.Events = nil
			}
			if len(got.RuntimeEvents) == 0 {
				got.RuntimeEvents = nil
			}
			if diff := cmp.Diff(tt.want, got, empty); diff != "" {
				t.Errorf("Parse() (-want +got)\n%s", diff)
			}
			if b, err := tt.want.Marshal(); err != nil || !bytes.Equal(b, want) {
				t.Errorf("Marshal() = %x, %v, want %x", b, err, want)
			}
		})
	}
}

func TestEvidenceSurvivesTheEncoding(t *testing.T) {
	want := evidence(t)
	a, err := versioned.New(want)
	if err != nil {
		t.Fatal(err)
	}
	a.Quote = append(append([]byte{}, a.Quote...), make([]byte, 70)...) // as hosts leave it
	b, err := a.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := versioned.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	got, err := parsed.Evidence()
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("Evidence() = %v, (-want +got)\n%s", err, diff)
	}
}

func TestEvidenceOfAStrippedAttestation(t *testing.T) {
	ev := evidence(t)
	a, err := versioned.New(ev)
	if err != nil {
		t.Fatal(err)
	}
	full, err := eventlog.Parse(ev.EventLog)
	if err != nil {
		t.Fatal(err)
	}
	want, err := full.Replay()
	if err != nil {
		t.Fatal(err)
	}
	a.Events = nil // what a certificate may leave of the log
	got, err := a.Evidence()
	if err != nil {
		t.Fatal(err)
	}
	log, err := eventlog.Parse(got.EventLog)
	if err != nil {
		t.Fatal(err)
	}
	if rtmr, err := log.Replay(); err != nil || rtmr[3] != want[3] {
		t.Errorf("Replay() = %x, %v, want %x", rtmr[3], err, want[3])
	}
}

func TestEvidenceUnwrapsTheMachineFromASystemConfig(t *testing.T) {
	a, err := versioned.New(evidence(t))
	if err != nil {
		t.Fatal(err)
	}
	for config, want := range map[string]string{
		`{"kms_urls":[],"vm_config":"{\"os_image_hash\":\"00\"}"}`: `{"os_image_hash":"00"}`,
		`{"os_image_hash":"00"}`:                                   `{"os_image_hash":"00"}`,
		`{"vm_config":7}`:                                          `{"vm_config":7}`,
		``:                                                         ``,
		`no JSON`:                                                  `no JSON`,
	} {
		a.Config = config
		if got, err := a.Evidence(); err != nil || got.VMConfig != want {
			t.Errorf("VMConfig of %q = %q, %v, want %q", config, got.VMConfig, err, want)
		}
	}
}

func TestEvidenceRefusesWhatContradictsItself(t *testing.T) {
	ev := evidence(t)
	tests := []struct {
		name string
		edit func(*versioned.Attestation)
		want string
	}{
		{"other report data", func(a *versioned.Attestation) { a.ReportData[0] ^= 1 }, "attestation: report data is not that of the quote"},
		{"no quote", func(a *versioned.Attestation) { a.Quote = nil }, "attestation: header of 48 bytes, 0 left"},
		{"runtime event left out", func(a *versioned.Attestation) { a.RuntimeEvents = a.RuntimeEvents[1:] }, "attestation: event log has 9 runtime events, the list of them 8"},
		{"runtime event of another name", func(a *versioned.Attestation) { a.RuntimeEvents[1].Name = "x" }, "attestation: runtime event 1 of the event log is not that of the list"},
		{"runtime event of another payload", func(a *versioned.Attestation) { a.RuntimeEvents[1].Payload = nil }, "attestation: runtime event 1 of the event log is not that of the list"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, err := versioned.New(ev)
			if err != nil {
				t.Fatal(err)
			}
			tt.edit(a)
			if _, err := a.Evidence(); err == nil || !strings.HasPrefix(err.Error(), tt.want) {
				t.Errorf("Evidence() = %v, want %q", err, tt.want)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	zeros := strings.Repeat("00", 64)
	tests := []struct{ name, hex, want string }{
		{"nothing", "", "ends too early"},
		{"version alone", "00", "ends too early"},
		{"unknown format", "0100", "unknown format 0x01"},
		{"GCP", "0001", "GCP TDX with a TPM is not supported, only TDX"},
		{"SEV-SNP", "0003", "SEV-SNP is not supported, only TDX"},
		{"unknown kind", "0009", "kind 9 is not supported, only TDX"},
		{"byte after the end", "0000000000" + zeros + "00" + "00", "1 bytes after the end"},
		{"no config", "0000000000" + zeros, "config: ends too early"},
		{"report data cut", "0000000000" + zeros[2:], "report data: ends too early"},
		{"quote cut", "0000" + "0c0102", "quote: ends too early"},
		{"length in two bytes for one", "0000" + "0500" + "09", "quote: length not in its shortest form"},
		{"length in four bytes for two", "0000" + "02010000", "quote: length not in its shortest form"},
		{"length cut", "0000" + "02", "quote: ends too early"},
		{"length of 2^30", "0000" + "0300000040", "quote: length larger than any attestation"},
		{"more events than bytes", "0000" + "00" + "08" + zeros[:22*2-2], "events: ends too early"},
		{"more events than are allowed", "0000" + "00" + "0e000400" + zeros, "events: more than 4096"},
		{"more runtime events than bytes", "0000" + "00" + "00" + "08" + "000000", "runtime events: ends too early"},
		{"event on register 4", "0000" + "00" + "04" + "04000000" + "04000000" + "000000" + "00" + zeros + "00", "event 0: imr is 4, want 0 to 3"},
		{"digest of one byte", "0000" + "00" + "04" + "01000000" + "04000000" + "04aa" + "0000" + "00" + zeros + "00", "event 0: digest of 1 bytes, want 48 or none"},
		{"event name not UTF-8", "0000" + "00" + "04" + "01000000" + "04000000" + "00" + "04ff" + "00" + "00" + zeros + "00", "event 0: event: not UTF-8"},
		{"config not UTF-8", "0000000000" + zeros + "04ff", "config: not UTF-8"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := versioned.Parse(unhex(t, tt.hex))
			if want := "reading attestation: " + tt.want; err == nil || err.Error() != want {
				t.Errorf("Parse(%s) = %v, %v, want %q", tt.hex, got, err, want)
			}
		})
	}
	if _, err := versioned.Parse(make([]byte, versioned.MaxSize+1)); err == nil || !strings.Contains(err.Error(), "want at most 10485760") {
		t.Errorf("Parse(too large) = %v, want the bound", err)
	}
}

func TestEveryTruncationIsRefused(t *testing.T) {
	a, err := versioned.New(evidence(t))
	if err != nil {
		t.Fatal(err)
	}
	b, err := a.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for n := range b {
		if _, err := versioned.Parse(b[:n]); err == nil || !strings.Contains(err.Error(), "ends too early") {
			t.Fatalf("Parse(first %d of %d bytes) = %v, want it to end too early", n, len(b), err)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	good := evidence(t)
	tests := []struct{ name, quote, log, want string }{
		{"no quote", "", "", "header of 48 bytes, 0 left"},
		{"log that is none", string(good.Quote), "x", "event log is not JSON"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := versioned.New(&attest.Evidence{Quote: []byte(tt.quote), EventLog: []byte(tt.log)})
			if want := "making attestation: " + tt.want; err == nil || err.Error() != want {
				t.Errorf("New() = %v, want %q", err, want)
			}
		})
	}
	a, err := versioned.New(&attest.Evidence{Quote: good.Quote})
	if err != nil || len(a.Events) != 0 || len(a.RuntimeEvents) != 0 {
		t.Errorf("New(no event log) = %+v, %v, want no events", a, err)
	}
	if ev, err := a.Evidence(); err != nil || ev.EventLog != nil {
		t.Errorf("Evidence() = %v, %v, want no event log", ev, err)
	}
}

func TestMarshalRefuses(t *testing.T) {
	tests := []struct {
		name string
		a    versioned.Attestation
		want string
	}{
		{"event on register 4", versioned.Attestation{Events: eventlog.Log{{IMR: 4}}}, "event 0: imr is 4, want 0 to 3"},
		{"runtime event not UTF-8", versioned.Attestation{RuntimeEvents: []versioned.RuntimeEvent{{Name: "\xff"}}}, "runtime event 0: event is not UTF-8"},
		{"config not UTF-8", versioned.Attestation{Config: "\xff"}, "config is not UTF-8"},
		{"too large", versioned.Attestation{Quote: make([]byte, versioned.MaxSize)}, fmt.Sprintf("%d bytes, want at most 10485760", versioned.MaxSize+73)},
		{"quote too large", versioned.Attestation{Quote: make([]byte, versioned.MaxSize+1)}, "0 events and a quote of 10485761 bytes, want at most 4096 in 10485760"},
		{"too many events", versioned.Attestation{Events: make(eventlog.Log, 4097)}, "4097 events and a quote of 0 bytes, want at most 4096 in 10485760"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := tt.a.Marshal()
			if want := "writing attestation: " + tt.want; err == nil || err.Error() != want {
				t.Errorf("Marshal() = %v, want %q", err, want)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	a, err := versioned.New(evidence(f))
	if err != nil {
		f.Fatal(err)
	}
	a.Quote = a.Quote[:64] // the certificates in it would only slow it down
	b, err := a.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(append(make([]byte, 5+64), 0))
	f.Add([]byte{0x83, 0xa7})
	f.Add(a.Marshal1())
	f.Add(unhex(f, sample1()))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := versioned.Parse(b)
		if err != nil {
			return
		}
		got, err := a.Marshal()
		if err != nil || b[0] == 0 && !bytes.Equal(got, b) {
			t.Fatalf("Marshal(Parse(%x)) = %x, %v", b, got, err)
		}
		again, err := versioned.Parse(got)
		if diff := cmp.Diff(a, again, cmpopts.EquateEmpty()); err != nil || diff != "" {
			t.Fatalf("Parse(Marshal(Parse(%x))) = %v, (-want +got)\n%s", b, err, diff)
		}
		// May refuse, must not panic.
		_, _ = a.Evidence()
	})
}
