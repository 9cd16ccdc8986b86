package configfs_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"teekms/internal/attest/configfs"
	"teekms/internal/attest/eventlog"
	"teekms/internal/attest/tdx"
)

// recorded reads a file that go-tdx-guest recorded on a GCP machine.
func recorded(t testing.TB, name string) []byte {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/google/go-tdx-guest").Output()
	if err != nil {
		t.Fatalf("go list = %v", err)
	}
	b, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "testing/testdata/ccel", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRecordedLogReplaysToItsQuote(t *testing.T) {
	log, err := configfs.ParseCCEL(recorded(t, "ccel_data.dat"))
	if err != nil {
		t.Fatalf("ParseCCEL() = %v", err)
	}
	q, err := tdx.ParseQuote(recorded(t, "cos-113-tdx-quote.dat"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := log.Replay()
	if err != nil || got != q.RTMRs() {
		t.Errorf("Replay() = %x, %v, want %x", got, err, q.RTMRs())
	}
	if len(log) < 30 {
		t.Errorf("%d events, want at least 30", len(log))
	}
}

func TestAttestCarriesTheRecordedLog(t *testing.T) {
	k, _ := newKernel(t)
	path := filepath.Join(t.TempDir(), "CCEL")
	if err := os.WriteFile(path, recorded(t, "ccel_data.dat"), 0o600); err != nil {
		t.Fatal(err)
	}
	ev, err := configfs.New(configfs.Config{Client: k, CCEL: path}).Attest(t.Context(), reportData)
	if err != nil {
		t.Fatal(err)
	}
	got, err := eventlog.Parse(ev.EventLog)
	if err != nil {
		t.Fatal(err)
	}
	want, err := configfs.ParseCCEL(recorded(t, "ccel_data.dat"))
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("EventLog = %v, (-want +got)\n%s", err, diff)
	}
	if err := os.WriteFile(path, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := configfs.New(configfs.Config{Client: k, CCEL: path}).Attest(t.Context(), reportData); err == nil || !strings.Contains(err.Error(), "reading event log of firmware: "+path+": header: ends too early") {
		t.Errorf("Attest(broken log) = %v, want the header to end too early", err)
	}
}

// table builds logs of the crypto-agile format.
type table struct{ bytes.Buffer }

func (b *table) put(values ...any) *table {
	for _, v := range values {
		if s, ok := v.(string); ok {
			v = []byte(s)
		}
		if err := binary.Write(b, binary.LittleEndian, v); err != nil {
			panic(err)
		}
	}
	return b
}

type (
	u16 = uint16
	u32 = uint32
	u8  = uint8
)

// header begins a log with SHA-256 and SHA-384.
func header() *table {
	var spec table
	spec.put("Spec ID Event03\x00", u32(0), u8(0), u8(2), u8(0), u8(2), u32(2), u16(11), u16(32), u16(12), u16(48), u8(0))
	b := new(table)
	return b.put(u32(1), u32(3), make([]byte, 20), u32(spec.Len()), spec.Bytes())
}

func digest48(c byte) []byte { return bytes.Repeat([]byte{c}, 48) }

func TestParseCCEL(t *testing.T) {
	log := header().
		put(u32(0), u32(3), u32(0), u32(1), "x").                  // not extended
		put(u32(0), u32(4), u32(1), u16(12), digest48(1), u32(0)). // MRTD
		put(u32(1), u32(4), u32(2), u16(11), make([]byte, 32), u16(12), digest48(2), u32(2), "ab").
		put(u32(4), u32(9), u32(1), u16(12), digest48(3), u32(5000), make([]byte, 5000))
	want := eventlog.Log{
		{IMR: 0, Type: 4, Digest: digest48(2), Payload: []byte("ab")},
		{IMR: 3, Type: 9, Digest: digest48(3)},
	}
	for name, fill := range map[string][]byte{
		"no fill": nil, "fill of ones": bytes.Repeat([]byte{0xff}, 100), "fill of zeros": make([]byte, 100), "little fill": {0, 0, 0}, "little fill of ones": {0xff},
	} {
		got, err := configfs.ParseCCEL(append(bytes.Clone(log.Bytes()), fill...))
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("ParseCCEL(%s) = %v, (-want +got)\n%s", name, err, diff)
		}
	}
}

func TestParseCCELRefuses(t *testing.T) {
	spec := func(body ...any) []byte {
		var s table
		s.put("Spec ID Event03\x00", u32(0), u32(0)).put(body...)
		return new(table).put(u32(1), u32(3), make([]byte, 20), u32(s.Len()), s.Bytes()).Bytes()
	}
	event := func(values ...any) []byte { return header().put(values...).Bytes() }
	many := header()
	for range 4097 {
		many.put(u32(1), u32(4), u32(1), u16(12), digest48(1), u32(0))
	}
	tests := []struct {
		name string
		log  []byte
		want string
	}{
		{"nothing", nil, "header: ends too early"},
		{"header of another type", new(table).put(u32(1), u32(4), make([]byte, 20), u32(0)).Bytes(), "header: type is 4, want 3"},
		{"old format", new(table).put(u32(1), u32(3), make([]byte, 20), u32(16), make([]byte, 16)).Bytes(), "header: not a log of the crypto-agile format"},
		{"header cut", header().Bytes()[:60], "header: ends too early"},
		{"17 algorithms", spec(u32(17)), "header: 17 algorithms, want at most 16"},
		{"algorithms cut", spec(u32(2), u16(12)), "header: ends too early"},
		{"algorithm given twice", spec(u32(2), u16(12), u16(48), u16(12), u16(48)), "header: algorithm 0x000c given twice or with a digest of 48 bytes"},
		{"digest of 65 bytes", spec(u32(1), u16(12), u16(65)), "header: algorithm 0x000c given twice or with a digest of 65 bytes"},
		{"no SHA-384", spec(u32(1), u16(11), u16(32)), "header: no SHA-384 in it"},
		{"SHA-384 of another size", spec(u32(1), u16(12), u16(32)), "header: no SHA-384 in it"},
		{"event cut", event(u32(1), u32(4)), "event 0: ends too early"},
		{"event with 17 digests", event(u32(1), u32(4), u32(17), u32(0)), "event 0: 17 digests, want at most 16"},
		{"event with an unknown algorithm", event(u32(1), u32(4), u32(1), u16(4), make([]byte, 20), u32(0)), "event 0: algorithm 0x0004 is not in the header"},
		{"event with two digests of a kind", event(u32(1), u32(4), u32(2), u16(12), digest48(1), u16(12), digest48(2), u32(0)), "event 0: two SHA-384 digests"},
		{"event without SHA-384", event(u32(1), u32(4), u32(1), u16(11), make([]byte, 32), u32(0)), "event 0: no SHA-384 digest"},
		{"event for register 5", event(u32(5), u32(4), u32(1), u16(12), digest48(1), u32(0)), "event 0: imr is 4, want 0 to 3"},
		{"data longer than the log", event(u32(1), u32(4), u32(1), u16(12), digest48(1), u32(0xffffffff)), "event 0: ends too early"},
		{"something after the fill", append(append(header().Bytes(), bytes.Repeat([]byte{0xff}, 20)...), 1), "before event 0: something follows the fill"},
		{"something after zeros", append(append(header().Bytes(), make([]byte, 20)...), 1), "before event 0: something follows the fill"},
		{"too many events", many.Bytes(), "more than 4096 events"},
		{"too large", make([]byte, 4<<20+1), "log of more than 4194304 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := configfs.ParseCCEL(tt.log)
			if err == nil || err.Error() != tt.want {
				t.Errorf("ParseCCEL() = %v, %v, want %q", got, err, tt.want)
			}
		})
	}
}

func FuzzParseCCEL(f *testing.F) {
	f.Add(header().Bytes())
	f.Add(header().put(u32(1), u32(4), u32(2), u16(11), make([]byte, 32), u16(12), digest48(2), u32(2), "ab", u32(0xffffffff)).Bytes())
	f.Add(header().put(u32(0), u32(3), u32(0), u32(1), "x", make([]byte, 64)).Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		log, err := configfs.ParseCCEL(b)
		if err != nil {
			return
		}
		text, err := log.Marshal()
		if err != nil {
			t.Fatalf("Marshal() = %v", err)
		}
		again, err := eventlog.Parse(text)
		if diff := cmp.Diff(log, again); err != nil || diff != "" {
			t.Fatalf("Parse(Marshal()) = %v, (-want +got)\n%s", err, diff)
		}
	})
}
