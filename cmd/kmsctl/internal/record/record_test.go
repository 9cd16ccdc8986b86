package record_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"maps"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"teekms/cmd/kmsctl/internal/kmstest"
	"teekms/cmd/kmsctl/internal/record"
	"teekms/internal/attest/simtd"
	"teekms/internal/attest/versioned"
)

func prefixed(b []byte) string { return "0x" + hex.EncodeToString(b) }

func TestParseReadsEveryForm(t *testing.T) {
	k := kmstest.New(t, simtd.Config{})
	want := &record.Record{
		CAPublic: k.Roots.CAPublic(), K256Public: k.Roots.K256Public(),
		Quote: k.Evidence.Quote, EventLog: k.Evidence.EventLog,
	}
	a, err := versioned.New(k.Evidence)
	if err != nil {
		t.Fatal(err)
	}
	wire, err := a.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	newer := map[string]string{
		"ca_pubkey":   hex.EncodeToString(want.CAPublic),
		"k256_pubkey": hex.EncodeToString(want.K256Public),
		"attestation": hex.EncodeToString(wire),
	}
	split := maps.Clone(newer)
	split["quote"], split["eventlog"] = "", ""
	tests := []struct {
		name, encoding string
		text           []byte
	}{
		{"base64, as this KMS writes it", "base64", k.Record(t, base64.StdEncoding.EncodeToString)},
		{"hex, as another KMS writes it", "hex", k.Record(t, hex.EncodeToString)},
		{"hex with 0x, as Bootstrap answers", "hex", k.Record(t, prefixed)},
		{"attestation of a newer KMS", "hex", kmstest.JSON(t, newer)},
		{"attestation beside empty quote and event log", "hex", kmstest.JSON(t, split)},
		{"spaces around", "hex", append([]byte("\n "), append(k.Record(t, hex.EncodeToString), '\n')...)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := record.Parse(tt.text)
			if err != nil {
				t.Fatalf("Parse() = %v", err)
			}
			want.Encoding = tt.encoding
			got.EventLog = compact(t, got.EventLog)
			want.EventLog = compact(t, want.EventLog)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("Parse() (-want +got):\n%s", diff)
			}
		})
	}
}

// compact makes event logs comparable: an attestation does not keep their text.
func compact(t *testing.T, log []byte) []byte {
	t.Helper()
	var v any
	if err := json.Unmarshal(log, &v); err != nil {
		t.Fatal(err)
	}
	return kmstest.JSON(t, v)
}

func TestParseReadsARecordWithoutQuote(t *testing.T) {
	k := kmstest.New(t, simtd.Config{})
	k.Evidence.Quote, k.Evidence.EventLog = nil, nil
	for _, encode := range []func([]byte) string{hex.EncodeToString, prefixed, base64.StdEncoding.EncodeToString} {
		r, err := record.Parse(k.Record(t, encode))
		if err != nil {
			t.Fatalf("Parse() = %v", err)
		}
		if len(r.Quote) != 0 || len(r.EventLog) != 0 {
			t.Errorf("Parse() = quote %x, event log %x, want none", r.Quote, r.EventLog)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	k := kmstest.New(t, simtd.Config{})
	good := map[string]string{}
	if err := json.Unmarshal(k.Record(t, hex.EncodeToString), &good); err != nil {
		t.Fatal(err)
	}
	with := func(name, value string) []byte {
		m := maps.Clone(good)
		m[name] = value
		return kmstest.JSON(t, m)
	}
	without := func(name string) []byte {
		m := maps.Clone(good)
		delete(m, name)
		return kmstest.JSON(t, m)
	}
	text := string(kmstest.JSON(t, good))
	tests := []struct {
		name string
		text []byte
		want string
	}{
		{"nothing", nil, "not a JSON object"},
		{"an array", []byte(`[]`), "not a JSON object"},
		{"half a text", []byte(text[:len(text)/2]), "want a string"},
		{"an object without end", []byte(strings.TrimSuffix(text, "}")), "no end"},
		{"text after the object", []byte(text + "{}"), "text after the object"},
		{"a key given twice", []byte(`{"quote":"","quote":""}`), "quote: given twice"},
		{"a key in other case", with("Quote", ""), `unknown key "Quote"`},
		{"an unknown key", with("signature", ""), `unknown key "signature"`},
		{"a number for a string", []byte(`{"quote":1}`), "quote: want a string"},
		{"null for a string", []byte(`{"quote":null}`), "quote: want a string"},
		{"no ca_pubkey", without("ca_pubkey"), "ca_pubkey: missing"},
		{"no k256_pubkey", without("k256_pubkey"), "k256_pubkey: missing"},
		{"no quote", without("quote"), "quote: missing"},
		{"no eventlog", without("eventlog"), "eventlog: missing"},
		{"quote and attestation", with("attestation", "00"), "both attestation and quote"},
		{"an unknown encoding", with("k256_pubkey", good["k256_pubkey"]+"00"), "68 (hex with 0x)"},
		{"hex that is none", with("quote", "0g"), "quote: encoding/hex"},
		{"odd hex", with("quote", "0"), "quote: encoding/hex"},
		{"base64 among hex", with("eventlog", "W10="), "eventlog: encoding/hex"},
		{"another curve", with("ca_pubkey", "3049301306072a8648ce3d020106082a8648ce3d030101"), "ca_pubkey: not a public key"},
		{"a long ca_pubkey", with("ca_pubkey", good["ca_pubkey"]+"00"), "ca_pubkey: not a public key"},
		{"no point of secp256k1", with("k256_pubkey", "02"+strings.Repeat("ff", 32)), "k256_pubkey: not a point of secp256k1"},
		{"too much", bytes.Repeat([]byte{' '}, record.MaxSize+1), "want at most"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, err := record.Parse(tt.text)
			if r != nil || err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Parse() = record %t, %v, want none and an error with %q", r != nil, err, tt.want)
			}
		})
	}
}

func TestParseRefusesAnAttestationThatIsNone(t *testing.T) {
	k := kmstest.New(t, simtd.Config{})
	text := kmstest.JSON(t, map[string]string{
		"ca_pubkey":   hex.EncodeToString(k.Roots.CAPublic()),
		"k256_pubkey": hex.EncodeToString(k.Roots.K256Public()),
		"attestation": "ff00",
	})
	if r, err := record.Parse(text); r != nil || err == nil || !strings.HasPrefix(err.Error(), "attestation: ") {
		t.Errorf("Parse() = record %t, %v, want none and an error about the attestation", r != nil, err)
	}
}

// FuzzParse holds that what is read is read again from its base64 form.
func FuzzParse(f *testing.F) {
	k := kmstest.New(f, simtd.Config{})
	k.Evidence.Quote = k.Evidence.Quote[:8]
	k.Evidence.EventLog = []byte("[]")
	for _, encode := range []func([]byte) string{hex.EncodeToString, prefixed, base64.StdEncoding.EncodeToString} {
		f.Add(k.Record(f, encode))
	}
	f.Add([]byte(`{"ca_pubkey":"","k256_pubkey":"","attestation":""}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := record.Parse(text)
		if err != nil {
			return
		}
		e := base64.StdEncoding.EncodeToString
		again, err := record.Parse(kmstest.JSON(t, map[string]string{
			"ca_pubkey": e(r.CAPublic), "k256_pubkey": e(r.K256Public), "quote": e(r.Quote), "eventlog": e(r.EventLog),
		}))
		if err != nil {
			t.Fatalf("Parse() of what was parsed = %v", err)
		}
		r.Encoding = again.Encoding
		if !bytes.Equal(r.CAPublic, again.CAPublic) || !bytes.Equal(r.K256Public, again.K256Public) ||
			!bytes.Equal(r.Quote, again.Quote) || !bytes.Equal(r.EventLog, again.EventLog) {
			t.Error("Parse() again gives another record")
		}
	})
}
