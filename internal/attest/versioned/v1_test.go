package versioned_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
	"teekms/internal/attest/simtd"
	"teekms/internal/attest/tdx"
	"teekms/internal/attest/versioned"
)

// known1 is what a guest's own encoder wrote of a quote 0102ff, one event and
// report data of two bytes.
const known1 = "83a776657273696f6e01a8706c6174666f726d82a46b696e64a3746478a46461746182a571756f7465930102ccffa96576656e745f6c6f679185a3696d7203aa6576656e745f74797065ce08000001a6646967657374c401aaa56576656e74a165ad6576656e745f7061796c6f6164c401bba5737461636b82a46b696e64a664737461636ba46461746183ab7265706f72745f64617461920707ae72756e74696d655f6576656e74739182a56576656e74a165a77061796c6f6164c401cca6636f6e666967a27b7d"

// sample1 is known1 with a digest and report data of the sizes they must have.
func sample1() string {
	s := strings.Replace(known1, "c401aa", "c430"+strings.Repeat("aa", 48), 1)
	return strings.Replace(s, "920707", "dc0040"+strings.Repeat("07", 64), 1)
}

func TestKnownVersion1(t *testing.T) {
	want := &versioned.Attestation{
		Quote:         []byte{1, 2, 0xff},
		Events:        eventlog.Log{{IMR: 3, Type: 0x08000001, Digest: bytes.Repeat([]byte{0xaa}, 48), Name: "e", Payload: []byte{0xbb}}},
		RuntimeEvents: []versioned.RuntimeEvent{{Name: "e", Payload: []byte{0xcc}}},
		ReportData:    [64]byte(bytes.Repeat([]byte{7}, 64)),
		Config:        "{}",
	}
	got, err := versioned.Parse(unhex(t, sample1()))
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("Parse() = %v, (-want +got)\n%s", err, diff)
	}
	if got := hex.EncodeToString(want.Marshal1()); got != sample1() {
		t.Errorf("Marshal1() = %s, want %s", got, sample1())
	}
}

// edited1 is sample1 with one piece of its hex replaced.
func edited1(t *testing.T, old, replacement string) []byte {
	t.Helper()
	s := strings.Replace(sample1(), old, replacement, 1)
	if s == sample1() {
		t.Fatalf("the sample has no %s", old)
	}
	return unhex(t, s)
}

func hexText(s string) string { return hex.EncodeToString([]byte(s)) }

func TestVersion1ReadsOtherSpellings(t *testing.T) {
	want, err := versioned.Parse(unhex(t, sample1()))
	if err != nil {
		t.Fatal(err)
	}
	kind, data, _ := strings.Cut(sample1()[strings.Index(sample1(), "82a46b696e64a664737461636b")+2:], "a464617461")
	data = "a464617461" + data
	tests := []struct{ name, old, replacement string }{
		{"quote as binary", "930102ccff", "c4030102ff"},
		{"payload as integers", "c401bb", "91ccbb"},
		{"integers longer than needed", "a776657273696f6e01", "a776657273696f6ecf0000000000000001"},
		{"headers longer than needed", "930102ccff", "dd00000003cd0001cc02ce000000ff"},
		{"text longer than needed", "a3746478", "d903746478"},
		{"map longer than needed", "83a7", "de0003a7"},
		{"version of a runtime event nil", "82a56576656e74a165a7", "83a776657273696f6ec0a56576656e74a165a7"},
		{"version of an event 1", "85a3696d72", "86a776657273696f6e01a3696d72"},
		{"preimage of an event", "85a3696d72", "86a8" + hexText("preimage") + "c401aaa3696d72"},
		{"preimage nil", "85a3696d72", "86a8" + hexText("preimage") + "c0a3696d72"},
		{"data before kind", kind + data, data + kind},
		{"unknown key beside kind", "82" + kind, "83a178c3" + kind},
		{"unknown key with a tree", "83a776657273696f6e01", "84a17893c2cb0000000000000000d40000" + "a776657273696f6e01"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := edited1(t, tt.old, tt.replacement)
			got, err := versioned.Parse(b)
			if diff := cmp.Diff(want, got); err != nil || diff != "" {
				t.Errorf("Parse(%x) = %v, (-want +got)\n%s", b, err, diff)
			}
		})
	}
}

func TestVersion1Refuses(t *testing.T) {
	deep := strings.Repeat("91", 40) + "c0"
	tests := []struct{ name, old, replacement, want string }{
		{"report data of two bytes", "dc0040" + strings.Repeat("07", 64), "920707", "stack: report_data: 2 bytes, want 64"},
		{"digest of one byte", "c430" + strings.Repeat("aa", 48), "c401aa", "platform: event_log: 0: digest of 1 bytes, want 48 or none"},
		{"version 2", "6f6e01", "6f6e02", "version: is 2, want 1"},
		{"version as text", "6f6e01", "6f6ea131", "version: begins with 0xa1, want an unsigned integer"},
		{"other platform", "a3746478", "a7" + hexText("sev-snp"), `platform: "sev-snp" is not supported, only tdx`},
		{"pod stack", "a664737461636ba4", "aa" + hexText("dstack-pod") + "a4", `stack: "dstack-pod" is not supported, only dstack`},
		{"version missing", "83a776657273696f6e01", "82", "version: missing"},
		{"quote twice", "82a571756f7465930102ccff", "83a571756f746590a571756f7465930102ccff", "platform: quote: given twice"},
		{"platform twice", "83a776657273696f6e01", "84a8" + hexText("platform") + "82a46b696e64a3746478a464617461c0a776657273696f6e01", "platform: given twice"},
		{"integer of the quote over 255", "930102ccff", "930102cd0100", "platform: quote: is 256, want at most 255"},
		{"negative integer", "930102ccff", "930102ff", "platform: quote: begins with 0xff, want an unsigned integer"},
		{"quote as text", "930102ccff", "a3010203", "platform: quote: begins with 0xa3, want bytes"},
		{"quote longer than the input", "930102ccff", "ddffffffff0102ccff", "platform: data: ends too early"},
		{"event_type over 32 bits", "ce08000001", "cf0000000108000001", "platform: event_log: 0: event_type: is 4429185025, want at most 4294967295"},
		{"event on register 4", "a3696d7203", "a3696d7204", "platform: event_log: 0: imr is 4, want 0 to 3"},
		{"form 3 of a digest", "85a3696d72", "86a776657273696f6e03a3696d72", "platform: event_log: 0: version: is 3, want at most 2"},
		{"form 0 of a digest", "85a3696d72", "86a776657273696f6e00a3696d72", "platform: event_log: 0: version: is 0, want 1 or 2"},
		{"config as binary", "a27b7d", "c4027b7d", "stack: config: begins with 0xc4, want text"},
		{"config not UTF-8", "a27b7d", "a27bff", "stack: config: not UTF-8"},
		{"deep value of an unknown key", "83a776657273696f6e01", "84a178" + deep + "a776657273696f6e01", "value of an unknown key: nested deeper than 16"},
		{"reserved code", "83a776657273696f6e01", "84a178c1a776657273696f6e01", "value of an unknown key: 0xc1 begins no value"},
		{"byte after the end", "a27b7d", "a27b7dc0", "1 bytes after the end"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := versioned.Parse(edited1(t, tt.old, tt.replacement))
			if want := "reading attestation: " + tt.want; err == nil || !strings.HasPrefix(err.Error(), want) {
				t.Errorf("Parse() = %v, %v, want %q", got, err, want)
			}
		})
	}
	if _, err := versioned.Parse(edited1(t, "a3746478", "a7"+hexText("sev-snp"))); !errors.Is(err, versioned.ErrUnsupported) {
		t.Errorf("Parse(SEV-SNP) = %v, want %v", err, versioned.ErrUnsupported)
	}
	many := &versioned.Attestation{RuntimeEvents: make([]versioned.RuntimeEvent, eventlog.MaxEvents+1)}
	if _, err := versioned.Parse(many.Marshal1()); err == nil || err.Error() != "reading attestation: stack: runtime_events: more than 4096" {
		t.Errorf("Parse(too many events) = %v, want the bound", err)
	}
}

func TestEveryTruncationOfVersion1IsRefused(t *testing.T) {
	b := unhex(t, sample1())
	for n := range b {
		if _, err := versioned.Parse(b[:n]); err == nil || !strings.Contains(err.Error(), "ends too early") {
			t.Fatalf("Parse(first %d of %d bytes) = %v, want it to end too early", n, len(b), err)
		}
	}
}

// withSecondForm has a runtime event whose digest has the second form.
func withSecondForm(t *testing.T) (*simtd.TD, *attest.Evidence) {
	t.Helper()
	td, err := simtd.Open(simtd.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if err := td.ExtendEvent(eventlog.Event{IMR: 3, Type: eventlog.RuntimeEventType, Name: "late", Payload: []byte{1}, Version: 2}); err != nil {
		t.Fatal(err)
	}
	ev, err := td.Attest(t.Context(), attest.NoReportData())
	if err != nil {
		t.Fatal(err)
	}
	return td, ev
}

func TestSecondFormIsWrittenInVersion1(t *testing.T) {
	td, ev := withSecondForm(t)
	a, err := versioned.New(ev)
	if err != nil {
		t.Fatal(err)
	}
	for name, a := range map[string]*versioned.Attestation{"whole": a, "stripped": a.Strip()} {
		b, err := a.Marshal()
		if err != nil || b[0] != 0x83 {
			t.Fatalf("%s: Marshal() = %x…, %v, want a map", name, b[:1], err)
		}
		parsed, err := versioned.Parse(b)
		if diff := cmp.Diff(a, parsed, cmpopts.EquateEmpty()); err != nil || diff != "" {
			t.Fatalf("%s: Parse() = %v, (-want +got)\n%s", name, err, diff)
		}
		got, err := parsed.Evidence()
		if err != nil {
			t.Fatal(err)
		}
		v, err := tdx.NewVerifier(tdx.Config{TrustAnchor: td.Root(), Collateral: td})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.Verify(t.Context(), got); err != nil {
			t.Errorf("%s: Verify() = %v", name, err)
		}
	}
}

func TestFormsOfTheTwoListsMustAgree(t *testing.T) {
	_, ev := withSecondForm(t)
	a, err := versioned.New(ev)
	if err != nil {
		t.Fatal(err)
	}
	a.RuntimeEvents[len(a.RuntimeEvents)-1].Version = 1
	if _, err := a.Evidence(); err == nil || !strings.Contains(err.Error(), "of the event log is not that of the list") {
		t.Errorf("Evidence() = %v, want the lists to differ", err)
	}
}

func TestStripLeavesWhatIsVerified(t *testing.T) {
	a := &versioned.Attestation{
		Events: eventlog.Log{
			{IMR: 0, Type: 10, Digest: make([]byte, 48), Name: "acpi-loader", Payload: []byte("ACPI DATA")},
			{IMR: 0, Type: 10, Digest: make([]byte, 48), Payload: []byte("other")},
			{IMR: 1, Type: 10, Digest: make([]byte, 48), Payload: []byte("ACPI DATA")},
			{IMR: 3, Type: 4, Digest: make([]byte, 48), Payload: []byte{1}},
			{IMR: 3, Type: eventlog.RuntimeEventType, Digest: make([]byte, 48), Name: "e", Payload: []byte{2}},
		},
		RuntimeEvents: []versioned.RuntimeEvent{{Name: "e", Payload: []byte{2}}},
		Config:        "{}",
	}
	want := &versioned.Attestation{
		Events: eventlog.Log{
			{IMR: 0, Type: 10, Digest: make([]byte, 48), Name: "acpi-loader", Payload: []byte("ACPI DATA")},
			{IMR: 3, Type: 4, Digest: make([]byte, 48)},
			{IMR: 3, Type: eventlog.RuntimeEventType, Name: "e", Payload: []byte{2}},
		},
		RuntimeEvents: []versioned.RuntimeEvent{{Name: "e", Payload: []byte{2}}},
		Config:        "{}",
	}
	before := len(a.Events[4].Digest)
	if diff := cmp.Diff(want, a.Strip()); diff != "" {
		t.Errorf("Strip() (-want +got)\n%s", diff)
	}
	if len(a.Events) != 5 || len(a.Events[4].Digest) != before {
		t.Error("Strip() changed its receiver")
	}
}
