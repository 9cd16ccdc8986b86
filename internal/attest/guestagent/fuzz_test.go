package guestagent

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
	"teekms/internal/attest/simtd"
	"teekms/internal/attest/tdx"
	"teekms/internal/attest/versioned"
)

// FuzzAnswers decodes an agent's answers as those to every method. The seeds
// are small: the fuzzer shrinks each find by trial.
func FuzzAnswers(f *testing.F) {
	td, err := simtd.Open(simtd.Config{Dir: f.TempDir()})
	if err != nil {
		f.Fatal(err)
	}
	quote, err := td.Quote([64]byte{}, simtd.Shape{EditChain: func([]byte) []byte { return []byte("chain") }})
	if err != nil {
		f.Fatal(err)
	}
	log, err := eventlog.Log{{IMR: 3, Type: eventlog.RuntimeEventType, Name: "app-id", Payload: []byte{1}}}.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	a, err := versioned.New(&attest.Evidence{Quote: quote, EventLog: log, VMConfig: "{}"})
	if err != nil {
		f.Fatal(err)
	}
	attestation, err := a.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	zeros := attest.NoReportData()
	seeds := [][]byte{
		fmt.Appendf(nil, `{"attestation":"%x"}`, attestation),
		fmt.Appendf(nil, `{"quote":"%x","event_log":%q,"vm_config":"{}"}`, quote, log),
	}
	if _, err := decodeAttestation(seeds[0], zeros); err != nil {
		f.Fatalf("decodeAttestation(seed) = %v", err)
	}
	if _, err := decodeQuote(seeds[1], zeros); err != nil {
		f.Fatalf("decodeQuote(seed) = %v", err)
	}
	for _, s := range seeds {
		f.Add(s)
	}
	f.Add([]byte(`{"attestation":"0000","quote":"00","event_log":"[]","vm_config":{},"os_image_hash":"0x"}`))
	f.Add([]byte(`{"key":"` + strings.Repeat("7f", KeySize) + `","signature_chain":["00","00"]}`))
	f.Add([]byte(`{"key":"0x` + strings.Repeat("00", KeySize) + `"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, decode := range []func([]byte, attest.ReportData) (*attest.Evidence, error){decodeAttestation, decodeQuote} {
			ev, err := decode(b, zeros)
			if err != nil {
				continue
			}
			q, err := tdx.ParseQuote(ev.Quote)
			if err != nil || q.ReportData() != zeros.Bytes() || len(q.Raw) != len(ev.Quote) {
				t.Errorf("decoded a quote of %d bytes, %v", len(ev.Quote), err)
			}
		}
		_, _ = decodeInfo(b) // must not panic
		key, err := decodeKey(b)
		if usable := key.Len() == KeySize && !bytes.Equal(key.Bytes(), make([]byte, KeySize)); usable != (err == nil) || err != nil && key.Len() != 0 {
			t.Errorf("decodeKey() = key of %d bytes, %v", key.Len(), err)
		}
	})
}
