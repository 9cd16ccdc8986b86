package evidence_test

import (
	"bytes"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"teekms/cmd/kmsctl/internal/evidence"
	"teekms/cmd/kmsctl/internal/kmstest"
	"teekms/internal/attest/simtd"
	"teekms/internal/attest/versioned"
	"teekms/internal/ratls"
)

// The forms themselves are told apart and verified in the tests of the command
// that uses them (cli/registry_test.go); here is what they have to agree on.
func TestEveryFormHoldsTheSameQuote(t *testing.T) {
	k := kmstest.New(t, simtd.Config{})
	a, err := versioned.New(k.Evidence)
	if err != nil {
		t.Fatal(err)
	}
	wire, err := a.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	quote := hex.EncodeToString(k.Evidence.Quote)
	tests := []struct {
		name  string
		text  []byte
		ofKMS bool
	}{
		{"record", k.Record(t, hex.EncodeToString), true},
		{"answer of GetQuote", kmstest.JSON(t, map[string]string{"quote": quote, "event_log": string(k.Evidence.EventLog)}), false},
		{"answer of Attest", kmstest.JSON(t, map[string]string{"attestation": "0x" + hex.EncodeToString(wire)}), false},
		{"attestation", wire, false},
		{"attestation in hex", []byte(" 0x" + strings.ToUpper(hex.EncodeToString(wire)) + "\n"), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, err := evidence.Parse(tt.text)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(k.Evidence.Quote, f.Evidence.Quote); diff != "" || f.OfKMS != tt.ofKMS || f.Certificate != nil {
				t.Errorf("Parse() = of a KMS %t, certificate %v, want %t and none; quote (-want +got)\n%s", f.OfKMS, f.Certificate, tt.ofKMS, diff)
			}
		})
	}
	c, err := ratls.NewCertificate(t.Context(), ratls.ClientCertConfig{Attester: k.TD, Generation: ratls.Gen8})
	if err != nil {
		t.Fatal(err)
	}
	if f, err := evidence.Parse(c.Certificate[0]); err != nil || f.Certificate == nil || f.OfKMS || len(f.Evidence.Quote) == 0 {
		t.Errorf("Parse() of a certificate = %+v, %v, want its Evidence", f, err)
	}
}

func TestReadTakesNoHugeFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "huge")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, evidence.MaxSize+1); err != nil {
		t.Fatal(err)
	}
	if f, err := evidence.Read(t.Context(), path); f != nil || err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("Read() = %v, %v, want that the file is too large", f, err)
	}
}

// FuzzParse holds that whatever is read has Evidence.
func FuzzParse(f *testing.F) {
	k := kmstest.New(f, simtd.Config{})
	quote := hex.EncodeToString(k.Evidence.Quote)
	f.Add(kmstest.JSON(f, map[string]string{"quote": quote, "event_log": "[]"}))
	f.Add(kmstest.JSON(f, map[string]any{"quote": quote, "event_log": []string{}}))
	f.Add([]byte(`{"attestation":"00"}`))
	f.Add([]byte(`{"ca_pubkey":""}`))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n"))
	f.Add([]byte{0x30, 0x82, 0})
	f.Add([]byte("00ff"))
	f.Fuzz(func(t *testing.T, text []byte) {
		file, err := evidence.Parse(bytes.Clone(text))
		if (err == nil) != (file != nil) || file != nil && file.Evidence == nil {
			t.Errorf("Parse() = %+v, %v, want Evidence or an error", file, err)
		}
	})
}
